"""The app that counts queries."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.backends.signals import connection_created

from testproject.metering import watch_connection


class MeterConfig(AppConfig):
    """Watches each connection from its begin."""

    name = "applications.meter"
    label = "applications_meter"

    def ready(self) -> None:
        """Connect to Django's signal."""
        connection_created.connect(watch_connection, dispatch_uid="applications.meter")
