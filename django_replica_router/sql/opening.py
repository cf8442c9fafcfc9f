"""Connections to servers that are the package's own, not Django's."""

from __future__ import annotations

import sys
from typing import Any

import psycopg
from django.db import connections


def connect(alias: str, timeout: float) -> psycopg.Connection[Any]:
    """Open a connection of the monitor's own to the server of an alias.

    Args:
        alias: a key of ``DATABASES``.
        timeout: seconds after which to give up; the driver's least is 2.

    Raises:
        psycopg.Error: the server cannot be reached.
    """
    params = connections.create_connection(alias).get_connection_params()
    # These belong to Django's use of the connection, not to the server's address.
    for name in ("cursor_factory", "context", "prepare_threshold", "isolation_level"):
        params.pop(name, None)
    if is_under_test():
        # A test database cannot be dropped while anybody is connected to it. Django's test runner
        # connects to this one to create it, so it exists and may be used.
        params["dbname"] = "postgres"
    params |= {
        "autocommit": True,
        "application_name": "django-replica-router",
        "connect_timeout": max(1, round(timeout)),
    }
    return psycopg.Connection.connect(**params)


def is_under_test() -> bool:
    """Tell whether Django's test runner has set this process up."""
    # Looked up, not imported: django.test has no business in a production process.
    utils = sys.modules.get("django.test.utils")
    return utils is not None and hasattr(utils._TestState, "saved_data")
