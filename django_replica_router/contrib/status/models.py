"""What the admin lists, and what the permission is for. It has no table."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _


class NothingManager(models.Manager["Replicas"]):
    """Finds nothing, and asks no database for it: ``dumpdata`` goes through every model."""

    def get_queryset(self) -> models.QuerySet[Replicas]:
        """Return no rows."""
        return super().get_queryset().none()


class Replicas(models.Model):
    """The servers of the site, as the admin's index names them."""

    objects: ClassVar[NothingManager] = NothingManager()

    class Meta:
        managed = False
        default_permissions = ("view",)
        default_manager_name = "objects"
        base_manager_name = "objects"
        verbose_name = _("replicas")
        verbose_name_plural = _("replicas")

    def __str__(self) -> str:
        return str(self._meta.verbose_name)
