"""The one table, and a view of it that costs time."""

from __future__ import annotations

from django.db import models


class Row(models.Model):
    """A row of one user; every change raises its version by one."""

    version = models.BigIntegerField(default=1)

    class Meta:
        managed = False
        db_table = "load_row"

    def __str__(self) -> str:
        return f"row {self.pk}, version {self.version}"


class CostlyRow(models.Model):
    """A row that only one client at a time can read or write on each server."""

    version = models.BigIntegerField(default=1)

    class Meta:
        managed = False
        db_table = "load_costly_row"

    def __str__(self) -> str:
        return f"costly row {self.pk}, version {self.version}"
