"""The tables: registers that only rise, visits, and one that long reads and truncation meet on."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Register(models.Model):
    """A number that every write raises by one. Number 0 is everybody's, the others a user's own."""

    value = models.BigIntegerField()

    objects: ClassVar[models.Manager[Register]] = models.Manager()

    class Meta:
        app_label = "torture"
        managed = False
        db_table = "torture_register"

    def __str__(self) -> str:
        return f"register {self.pk}: {self.value}"


class Visit(models.Model):
    """How often a register was asked for. Nobody must see that at once: its writes bind nobody."""

    hits = models.BigIntegerField()

    objects: ClassVar[models.Manager[Visit]] = models.Manager()

    class Meta:
        app_label = "torture"
        managed = False
        db_table = "torture_visit"

    def __str__(self) -> str:
        return f"visits of register {self.pk}: {self.hits}"


class Scratch(models.Model):
    """Rows without a meaning, for statements that conflict with each other."""

    filler = models.TextField()

    objects: ClassVar[models.Manager[Scratch]] = models.Manager()

    class Meta:
        app_label = "torture"
        managed = False
        db_table = "torture_scratch"

    def __str__(self) -> str:
        return f"scratch {self.pk}"
