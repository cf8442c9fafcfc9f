"""Statements that a replica cancels, and what is shown by the primary in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.db.utils import OperationalError
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.registry import find_monitor
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until, wait_until_known
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="old")
    wait_until_known(cluster)
    return note


def serves(alias: str) -> bool:
    """Tell whether this process takes a replica for one that may serve."""
    monitor = find_monitor("default")
    return monitor is not None and monitor.health.replica(alias).state is ReplicaState.STREAMING


class Conflicts:
    """Has the next statements on a connection cancelled, as a standby does to go on replaying.

    Args:
        left: how many statements.
    """

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if self.left:
            self.left -= 1
            message = "canceling statement due to conflict with recovery"
            raise OperationalError(message) from psycopg.errors.SerializationFailure(message)
        return execute(sql, params, many, context)


@pytest.mark.parametrize(
    ("conflicts", "brief", "repeated", "retried"),
    [(1, 60.0, 1, 0), (2, 60.0, 1, 1), (1, -1.0, 0, 1)],
    ids=["once", "twice", "after a while"],
)
def test_a_statement_that_has_just_begun_is_repeated_where_it_was_cancelled(
    note: Note,
    cluster: Cluster,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    conflicts: int,
    brief: float,
    repeated: int,
    retried: int,
) -> None:
    """The reader stays on the replica. What is cancelled again, or ran for long, the primary answers."""
    monkeypatch.setattr("django_replica_router.connections.on_replica._BRIEF", brief)

    def action(request: HttpRequest) -> str:
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        served.clear()
        with connections[alias].execute_wrapper(Conflicts(conflicts)):
            return Note.objects.get().title

    pop_stats()
    assert visit(Client(), action) == "old"
    assert ("default" in served.aliases("notes_note")) == bool(retried)
    stats = get_stats()
    assert stats.get("repeated_after_conflict", 0) == repeated
    assert stats.get("retried_replica_fault", 0) == retried


def test_what_the_primary_showed_in_place_of_a_replica_is_not_taken_back(
    ann: User, note: Note, healed: Cluster
) -> None:
    """The last statement of a request may be the one that a replica fails: that is seen as well."""
    client = sign_in(ann)
    wait_until_known(healed)
    usual: list[str] = []

    def action(request: HttpRequest) -> str:
        assert request.user.is_authenticated
        before = Note.objects.get()
        usual.append(str(before._state.db))
        assert before.title == "old"
        with connections[usual[0]].execute_wrapper(Conflicts(2)):
            return Note.objects.get().title

    for replica in healed.replicas:
        replica.pause()
    healed.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
    assert visit(client, action) == "new"
    wait_until(lambda: serves(usual[0]), f"{usual[0]} to serve")
    assert visit(client, lambda request: Note.objects.get().title) == "new"
