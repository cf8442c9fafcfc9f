"""The app that connects the package to Celery."""

from __future__ import annotations

from django.apps import AppConfig


class CeleryConfig(AppConfig):
    """Connects the package to Celery."""

    name = "django_replica_router.contrib.celery"
    label = "replica_router_celery"
    verbose_name = "Replica router for Celery"

    def ready(self) -> None:
        """Connect to Celery's signals, and to its results."""
        from django_replica_router.contrib.celery import results, runs

        runs.connect()
        results.connect()
