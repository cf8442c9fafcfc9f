"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig


class ReplicaRouterConfig(AppConfig):
    """Connects the package to Django."""

    name = "django_replica_router"
    verbose_name = "Replica router"

    def ready(self) -> None:
        """Connect receivers and register checks."""
        from django_replica_router import checks, receivers

        receivers.connect()
        checks.register()
