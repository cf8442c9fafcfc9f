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

# Filled by migrations. A test that changes them would change the tests after it.
_INITIAL = ("django_content_type", "auth_permission", "django_site", "django_migrations")

# The initial rows of this process's databases, as COPY gives them: by alias, then by table.
_initial_rows: dict[str, dict[str, list[bytes]]] = {}


def commit_test_data() -> None:
    """Have ``TestCase`` do what it does on a database without transactions, only faster."""
    fixture_setup = vars(TestCase)["_fixture_setup"].__func__

    def remember_and_set_up(cls: Any) -> None:
        for alias in cls._databases_names(include_mirrors=False):
            if alias not in _initial_rows:
                with connections[alias].cursor() as cursor:
                    _initial_rows[alias] = _read_initial(cursor)
        fixture_setup(cls)

    patched: Any = TestCase
    patched._databases_support_transactions = classmethod(lambda cls: False)
    patched._fixture_setup = classmethod(remember_and_set_up)
    patched._fixture_teardown = _restore


def _read_initial(cursor: Any) -> dict[str, list[bytes]]:
    rows: dict[str, list[bytes]] = {}
    for table in _INITIAL:
        with cursor.copy(f"COPY {table} TO STDOUT") as copy:
            rows[table] = sorted(bytes(row) for row in copy)
    return rows


def _restore(self: Any) -> None:
    # Imported here: a model can be imported only once the apps are loaded.
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()
    for alias in self._databases_names(include_mirrors=False):
        connection = connections[alias]
        # All there are: a router of the test may hide the tables of some models.
        names = set(connection.introspection.table_names()) - set(_INITIAL)
        with connection.cursor() as cursor:
            _empty(cursor, [connection.ops.quote_name(name) for name in sorted(names)])
            if _read_initial(cursor) != _initial_rows[alias]:
                _write_initial(cursor, _initial_rows[alias])


def _empty(cursor: Any, tables: list[str]) -> None:
    # Django's own way truncates every table and fills those of the migrations again: 0.1 s a test.
    cursor.execute("SELECT " + ", ".join(f"EXISTS (SELECT FROM {table})" for table in tables))
    filled = [table for table, has in zip(tables, cursor.fetchone(), strict=True) if has]
    if filled:
        cursor.execute(f"TRUNCATE {', '.join(filled)} CASCADE")


def _write_initial(cursor: Any, rows: dict[str, list[bytes]]) -> None:
    cursor.execute(f"TRUNCATE {', '.join(rows)} CASCADE")
    for table, lines in rows.items():
        with cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for line in lines:
                copy.write(line)


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
