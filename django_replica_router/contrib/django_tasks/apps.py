"""The app that connects the package to Django's tasks."""

from __future__ import annotations

from django.apps import AppConfig


class DjangoTasksConfig(AppConfig):
    """Connects the package to Django's tasks."""

    name = "django_replica_router.contrib.django_tasks"
    label = "replica_router_django_tasks"
    verbose_name = "Replica router for Django's tasks"

    def ready(self) -> None:
        """Connect to the signals of each package of tasks, and to its results."""
        from django_replica_router.contrib.django_tasks import receivers

        receivers.connect()
