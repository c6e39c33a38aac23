from __future__ import annotations

from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class VisualSearchConfig(AppConfig):
    name = "visual_search"
    verbose_name = "Visual search"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from visual_search import checks
        from visual_search.index import signals

        checks.register_all()
        signals.connect()
        if apps.is_installed("drf_spectacular"):
            import visual_search.api.schema  # noqa: F401  # registers the views' OpenAPI extensions
        post_migrate.connect(_schedule_sweep, sender=self, dispatch_uid="visual_search.schedule")


def _schedule_sweep(*, using: str, **kwargs: Any) -> None:
    from visual_search.index.queue import schedule_sweep

    schedule_sweep(using)
