"""Run Django's ``TestCase`` classes without their transaction, so that their reads are routed.

Inside the transaction of a ``TestCase`` every read belongs to the primary, and of Django's tests
nine in ten are such. With their data committed the same tests read from the replica until they
have written, as requests do.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.db import connections
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from tests.django_suite.modes import PRIMARY, REPLICA

# Filled by migrations; what tests add to them does no harm.
_KEPT = frozenset({"auth_permission", "django_content_type", "django_migrations", "django_site"})


def commit_test_data() -> None:
    """Have ``TestCase`` do what it does on a database without transactions, only faster."""
    TestCase._databases_support_transactions = classmethod(lambda cls: False)  # type: ignore[attr-defined]
    TestCase._fixture_teardown = _empty_tables  # type: ignore[attr-defined]


def _empty_tables(self: Any) -> None:
    # Imported here: a model can be imported only once the apps are loaded.
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()
    # Django's own way truncates every table and fills those of the migrations again: 0.1 s a test.
    for alias in self._databases_names(include_mirrors=False):
        connection = connections[alias]
        quote = connection.ops.quote_name
        # All there are: a router of the test may hide the tables of some models.
        names = set(connection.introspection.table_names()) - _KEPT
        tables = [quote(name) for name in sorted(names)]
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT " + ", ".join(f"EXISTS (SELECT FROM {table})" for table in tables)
            )
            filled = [table for table, has in zip(tables, cursor.fetchone(), strict=True) if has]
            if filled:
                cursor.execute(f"TRUNCATE {', '.join(filled)} CASCADE")


def count_queries_of_both() -> None:
    """Have ``assertNumQueries`` of the primary count what went to its replica as well.

    How many queries a test sends is to stay the same. Where they go is what this mode changes.
    """
    enter, leave = CaptureQueriesContext.__enter__, CaptureQueriesContext.__exit__

    def enter_both(self: Any) -> Any:
        if self.connection.alias == PRIMARY:
            replica = connections[REPLICA]
            replica.queries_log = self.connection.queries_log
            replica.force_debug_cursor = True
            # What is sent to open a connection is not the test's.
            with suppress(AssertionError):
                replica.ensure_connection()
        return enter(self)

    def leave_both(self: Any, *error: Any) -> None:
        if self.connection.alias == PRIMARY:
            connections[REPLICA].force_debug_cursor = False
        leave(self, *error)

    CaptureQueriesContext.__enter__ = enter_both  # type: ignore[method-assign]
    CaptureQueriesContext.__exit__ = leave_both  # type: ignore[method-assign]
