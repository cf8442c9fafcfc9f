"""The app's configuration."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, TracebackType

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured

from django_replica_router.driver import find_problem


class DriverError(ImproperlyConfigured):
    """psycopg 3 cannot be used. The message says what to install."""


class ReplicaRouterConfig(AppConfig):
    """Connects the package to Django.

    Raises:
        DriverError: psycopg 3 cannot be used. Here, before Django loads any model: that needs the driver.
    """

    name = "django_replica_router"
    verbose_name = "Replica router"

    def __init__(self, app_name: str, app_module: ModuleType | None) -> None:
        problem = find_problem()
        if problem is not None:
            _tell_without_traceback()
            raise DriverError(problem)
        super().__init__(app_name, app_module)

    def ready(self) -> None:
        """Connect receivers and register checks."""
        from django_replica_router import checks, conf, receivers

        conf.reread()  # what was read before all models were there
        receivers.connect()
        checks.register()


def _tell_without_traceback() -> None:
    """Have what ends by a DriverError print its sentence alone, as manage.py does for the errors of its commands.

    In a thread, too: there runserver loads the site.
    """
    told, told_in_threads = sys.excepthook, threading.excepthook

    def tell(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, DriverError):
            sys.stderr.write(f"{error}\n")
        else:
            told(kind, error, traceback)

    def tell_in_thread(ended: threading.ExceptHookArgs) -> None:
        if isinstance(ended.exc_value, DriverError):
            sys.stderr.write(f"{ended.exc_value}\n")
        else:
            told_in_threads(ended)

    sys.excepthook, threading.excepthook = tell, tell_in_thread
