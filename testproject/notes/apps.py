"""The notes app."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.backends.signals import connection_created

from testproject.metering import watch_connection


class NotesConfig(AppConfig):
    """Notes, and the meter that tells which database served them."""

    name = "testproject.notes"

    def ready(self) -> None:
        """Have every connection metered from its first statement."""
        connection_created.connect(watch_connection, dispatch_uid="testproject.metering")
