"""What tests of the package's database backend have in common."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections

from django_replica_router.backends.mixin import TokenMixin
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until
from tests.torture.proxy import ProxyProcess
from tests.written import note, record_of  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name
CARRIED = "pg_current_wal_insert_lsn"
OWN = "django_replica_router.backends.postgresql"
DJANGO = "django.db.backends.postgresql"


@contextmanager
def engine(name: str, **options: Any) -> Iterator[None]:
    """Have all connections of this process made by a database backend, with these settings."""
    before = {alias: dict(connections.settings[alias]) for alias in connections}
    try:
        for alias in before:
            connections[alias].close()
            del connections[alias]
            connections.settings[alias].update(ENGINE=name, **options)
        yield
    finally:
        for alias, settings in before.items():
            connections[alias].close()
            connections[alias].close_pool()  # type: ignore[attr-defined]
            del connections[alias]
            connections.settings[alias].clear()
            connections.settings[alias].update(settings)


@pytest.fixture(autouse=True)
def _own_engine(cluster: Cluster, test_site: None) -> Iterator[None]:
    with engine(OWN):
        assert isinstance(connections["default"], TokenMixin)
        yield


@pytest.fixture
def only_writes(settings: Any) -> None:
    """A site that remembers what its users have written, and not what they have seen."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}


@pytest.fixture
def touching_view(cluster: Cluster, note: Note) -> Iterator[str]:
    """A view that writes to the note, as no text of a statement tells."""
    cluster.primary.execute(
        f"CREATE VIEW touching AS SELECT notes_touch({note.pk}) AS touched", dbname="app"
    )
    yield "SELECT * FROM touching"
    cluster.primary.execute("DROP VIEW touching", dbname="app")


class Wire:
    """The messages that were sent over the connection to the primary."""

    trace = ""

    @property
    def sent(self) -> list[str]:
        """Return the statements that were sent, one text a message."""
        messages = re.split(r"^[^\t\n]*\t([FB])\t\d+\t", self.trace, flags=re.MULTILINE)[1:]
        return [
            text.removeprefix("Query\t ").strip()
            for sender, text in zip(messages[::2], messages[1::2], strict=True)
            if sender == "F"
        ]


@contextmanager
def wire() -> Iterator[Wire]:
    """Have the driver write down every message."""
    wire = Wire()
    connection.ensure_connection()
    pgconn = connection.connection.pgconn
    with tempfile.TemporaryFile("r+") as file:
        pgconn.trace(file.fileno())
        try:
            yield wire
        finally:
            pgconn.untrace()
            file.seek(0)
            wire.trace = file.read()


def execute(statement: str, params: Any = None) -> list[Any]:
    """Run a statement on the primary, past the ORM."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


def is_pinned(user: User) -> bool:
    """Tell whether the user reads from the primary, because of a write with no position."""
    record = record_of(user)
    return record is not None and record.pinned_until_ms > 0


def _cut(cluster: Cluster, proxy: ProxyProcess, pid: int) -> None:
    _wait_for_commit(cluster, pid)
    proxy.set_mode("primary", "reset")


def _wait_for_commit(cluster: Cluster, pid: int) -> None:
    question = "SELECT wait_event FROM pg_stat_activity WHERE pid = %s"
    wait_until(
        lambda: cluster.primary.execute(question, [pid]) == [("SyncRep",)], "the commit to wait"
    )


@contextmanager
def plain_role(cluster: Cluster, function: str) -> Iterator[None]:
    """Work as a role that may not call a function."""
    cluster.primary.execute(
        f"CREATE ROLE plain; GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; "
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain; "
        f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC",
        dbname="app",
    )
    try:
        execute("SET ROLE plain")
        yield
    finally:
        connection.close()
        cluster.primary.execute(
            f"GRANT EXECUTE ON FUNCTION {function} TO PUBLIC; DROP OWNED BY plain; DROP ROLE plain",
            dbname="app",
        )


UNPREPARED = pytest.mark.not_pooled(
    "prepared statements stay with one server connection", modes=("transaction",)
)


def current_state() -> Any:
    """Return what the present scope knows of the primary."""
    from django_replica_router import current_scope

    present = current_scope()
    assert present is not None
    return present.cluster("default")
