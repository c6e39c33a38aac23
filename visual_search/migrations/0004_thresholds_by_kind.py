"""A threshold for photos and one for texts: their scores lie apart. What was set before goes on for both."""

from django.db import migrations, models
from django.db.models import F


def copy_to_both(apps, schema_editor):
    versions = apps.get_model("visual_search", "IndexVersion").objects.using(schema_editor.connection.alias)
    versions.update(photo_threshold=F("score_threshold"), text_threshold=F("score_threshold"))


def copy_back(apps, schema_editor):
    versions = apps.get_model("visual_search", "IndexVersion").objects.using(schema_editor.connection.alias)
    versions.update(score_threshold=F("photo_threshold"))


class Migration(migrations.Migration):

    dependencies = [
        ('visual_search', '0003_version_activated_at'),
    ]

    operations = [
        migrations.AddField(
            model_name='indexversion',
            name='photo_threshold',
            field=models.FloatField(blank=True, help_text='Score that a product must reach where photos alone are searched with; calibrated.', null=True),
        ),
        migrations.AddField(
            model_name='indexversion',
            name='text_threshold',
            field=models.FloatField(blank=True, help_text='The same for texts alone.', null=True),
        ),
        migrations.RunPython(copy_to_both, copy_back, elidable=True),
        migrations.RemoveField(
            model_name='indexversion',
            name='score_threshold',
        ),
    ]
