"""The torture app."""

from __future__ import annotations

from django.apps import AppConfig
from django.db.backends.signals import connection_created


class TortureConfig(AppConfig):
    """Registers, and the meter that tells which database served them."""

    name = "tests.torture"
    label = "torture"

    def ready(self) -> None:
        """Have every connection metered from its first statement."""
        from tests.torture.site import watch_connection

        connection_created.connect(watch_connection, dispatch_uid="tests.torture")
