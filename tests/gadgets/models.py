from __future__ import annotations

import uuid

from django.db import models


class Maker(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Line(models.Model):
    name = models.CharField(max_length=50)
    maker = models.ForeignKey(Maker, models.SET_NULL, null=True)

    def __str__(self) -> str:
        return self.name


class Tag(models.Model):
    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Gadget(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    name = models.CharField(max_length=50)
    line = models.ForeignKey(Line, models.SET_NULL, null=True)
    tags = models.ManyToManyField(Tag)
    picture = models.ImageField(upload_to="gadgets", blank=True)

    def __str__(self) -> str:
        return self.name


class GadgetProxy(Gadget):
    class Meta:
        proxy = True


class Phone(Gadget):
    inches = models.FloatField(default=6)


class Variant(models.Model):
    gadget = models.ForeignKey(Gadget, models.CASCADE)
    colour = models.CharField(max_length=20)

    def __str__(self) -> str:
        return self.colour
