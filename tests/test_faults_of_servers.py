"""Servers that are promoted, or of another cluster, or left behind by a failover."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, router
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.sql import answering
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until, wait_until_known
from tests.faulty import find_serving, no_repetition, note, state_of, wait_for_state  # noqa: F401 - fixtures
from tests.helpers import Served
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def test_a_promoted_replica_is_left_with_its_next_answer(note: Note, healed: Cluster) -> None:
    """Its rows are not used, though the monitor has not looked yet."""

    def action(request: HttpRequest) -> list[str]:
        alias, replica = find_serving(healed)
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        after = Note.objects.get()
        return [alias, after.title]

    before, title = visit(Client(), action)
    assert before.startswith("replica")
    assert title == "first"


@pytest.mark.parametrize("lock_wait", [1.0, None])
@pytest.mark.parametrize("is_open", [True, False], ids=["open connection", "new connection"])
def test_a_select_that_writes_writes_nothing_on_a_promoted_replica(
    is_open: bool, lock_wait: float | None, note: Note, healed: Cluster, settings: Any
) -> None:
    """Its function would write to another history, and once more where it should."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "LOCK_WAIT": lock_wait}
    connections.close_all()

    def action(request: HttpRequest) -> list[int]:
        alias, replica = find_serving(healed)
        if not is_open:
            connections[alias].close()
            find_serving(healed)  # over one that has asked nothing by itself
        replica.promote()
        with connections[router.db_for_read(Note)].cursor() as cursor:
            cursor.execute("SELECT notes_touch(%s)", [note.pk])
            ((here,),) = cursor.fetchall()
        ((there,),) = replica.execute("SELECT version FROM notes_note", dbname="app")
        return [here, there]

    assert visit(Client(), action) == [note.version + 1, note.version]


@pytest.mark.not_pooled("each statement is read-only by itself there")
@pytest.mark.parametrize("is_open", [True, False], ids=["open connection", "new connection"])
def test_without_sessions_that_stay_read_only_it_does(
    is_open: bool, note: Note, healed: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the server's next answer tells of the promotion, and comes too late."""
    monkeypatch.setattr(answering, "_STAYS_READ_ONLY", "{is_local} IS NOT NULL")
    with pytest.raises(AssertionError):
        test_a_select_that_writes_writes_nothing_on_a_promoted_replica(
            is_open, 1.0, note, healed, settings
        )


def test_a_connection_that_the_code_has_opened_is_watched_as_well(
    note: Note, healed: Cluster
) -> None:
    """One that was there before the package chose the replica tells of a promotion, too."""
    for replica in healed.replicas:
        connections[replica.name].close()
        assert Note.objects.using(replica.name).get().title == "first"

    def action(request: HttpRequest) -> list[str]:
        alias, replica = find_serving(healed)
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        return [alias, Note.objects.get().title]

    before, title = visit(Client(), action)
    assert before.startswith("replica")
    assert title == "first"


def test_a_promoted_replica_is_known_as_such(note: Note, healed: Cluster) -> None:
    """Its position stands still and is not NULL: only recovery tells."""
    healed.replicas[0].promote()
    wait_for_state(healed.replicas[0], ReplicaState.PROMOTED)


def test_a_replica_of_another_cluster_serves_nobody(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """Its positions mean nothing here."""
    with Cluster(replicas=1, cache=False, databases=("app",)) as other:
        original = dict(connections["replica1"].settings_dict)
        connections["replica1"].close()
        connections["replica1"].settings_dict["PORT"] = other.replicas[0].port
        stop_monitors()
        try:
            with scope():
                Note.objects.get()
            wait_for_state(cluster.replicas[0], ReplicaState.FOREIGN)
            served.clear()
            for _ in range(10):
                visit(Client(), lambda request: Note.objects.get().title)
            assert "replica1" not in served.aliases()
        finally:
            connections["replica1"].settings_dict.update(original)
            connections["replica1"].close()
            stop_monitors()


def test_the_primary_configured_as_a_replica_serves_nobody_as_such(
    note: Note, cluster: Cluster
) -> None:
    """It would serve, but the mistake would never be noticed."""
    original = dict(connections["replica1"].settings_dict)
    connections["replica1"].close()
    connections["replica1"].settings_dict["PORT"] = cluster.entrance(cluster.primary)
    stop_monitors()
    try:
        with scope():
            Note.objects.get()
        wait_for_state(cluster.replicas[0], ReplicaState.PRIMARY)
    finally:
        connections["replica1"].settings_dict.update(original)
        connections["replica1"].close()
        stop_monitors()


def test_what_is_unusual_about_a_replica_is_logged(
    note: Note, healed: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Paused, without a receiver, delayed: each has its line."""
    one, two = healed.replicas
    one.pause()
    two.set_delay(0.05)
    wait_until(lambda: "'replica1': its replay is paused" in caplog.text, "the line of a pause")
    wait_until(lambda: "it delays replay by 0.05 s" in caplog.text, "the line of a delay")
    one.resume()
    one.cut()
    wait_until(lambda: "'replica1': it receives no WAL" in caplog.text, "the line of a receiver")


def test_failover_keeps_what_survived_and_strands_nobody(
    ann: User, note: Note, healed: Cluster, served: Served
) -> None:
    """The primary dies, a replica is promoted, the alias now means that one."""
    client = sign_in(ann)
    visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="second"), "post")
    wait_until_known(healed)
    first, second = healed.replicas
    original = dict(connections["default"].settings_dict)
    healed.primary.kill()
    first.promote()
    second.follow(first)
    connections["default"].close()
    connections["default"].settings_dict["PORT"] = healed.entrance(first)

    def title(request: HttpRequest) -> str:
        return Note.objects.get().title

    try:
        assert visit(client, title) == "second"
        visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="third"), "post")
        for _ in range(5):
            assert visit(client, title) == "third"
        wait_for_state(second, ReplicaState.STREAMING)

        def served_by_follower() -> bool:
            served.clear()
            assert visit(client, title) == "third"
            return served.only_replicas("notes_note")

        wait_until(served_by_follower, "the follower to serve")
        assert state_of(first) is not ReplicaState.STREAMING
    finally:
        connections["default"].settings_dict.update(original)
        connections["default"].close()


def test_a_replica_left_on_the_old_timeline_serves_nobody(
    ann: User, note: Note, healed: Cluster, served: Served
) -> None:
    """Its position is higher than that of new tokens, and their rows are not there."""
    client = sign_in(ann)
    wait_until_known(healed)
    first, second = healed.replicas
    first.cut()
    # Only the second gets this, which is lost with the primary.
    healed.primary.execute("CREATE TABLE lost AS SELECT generate_series(1, 10000)", dbname="app")
    second.wait_replayed(healed.primary.flush())
    original = dict(connections["default"].settings_dict)
    healed.primary.kill()
    first.promote()
    connections["default"].close()
    connections["default"].settings_dict["PORT"] = healed.entrance(first)
    try:
        visit(client, lambda request: Note.objects.filter(pk=note.pk).update(title="new"), "post")
        assert second.replay_lsn() > first.insert_lsn()
        for _ in range(10):
            assert visit(client, lambda request: Note.objects.get().title) == "new"
        wait_until(
            lambda: state_of(second) in {ReplicaState.TIMELINE, ReplicaState.AHEAD},
            "the old timeline to be noticed",
        )
        served.clear()
        for _ in range(10):
            assert visit(client, lambda request: Note.objects.get().title) == "new"
            assert visit(Client(), lambda request: Note.objects.get().title) == "new"
        assert served.only_primary("notes_note")
    finally:
        connections["default"].settings_dict.update(original)
        connections["default"].close()
        connection.close()
