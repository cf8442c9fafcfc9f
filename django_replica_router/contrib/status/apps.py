"""The app of the status page."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class StatusConfig(AppConfig):
    """Has processes keep how servers were in the last minutes, and shows it."""

    name = "django_replica_router.contrib.status"
    label = "replica_router_status"
    verbose_name = _("Replica router")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Have that be kept."""
        from django_replica_router.replicas.telling import Trails

        Trails.are_kept = True
