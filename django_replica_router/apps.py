"""The app's configuration."""

from __future__ import annotations

from django.apps import AppConfig


class ReplicaRouterConfig(AppConfig):
    """Connects the package to Django."""

    name = "django_replica_router"
    verbose_name = "Replica router"

    def ready(self) -> None:
        """Connect receivers and register checks."""
        from django_replica_router import checks, conf, receivers

        conf.reread()  # what was read before all models were there
        receivers.connect()
        checks.register()
