"""What all queues of tasks share, where something is amiss: the task is published and run, and sees no less."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction

from django_replica_router import Token, current_scope, get_stats, scope
from django_replica_router.contrib import background
from django_replica_router.contrib.background import (
    Run,
    hand_on,
    handed_on,
    remember_result,
    see_result,
    token_to_publish,
)
from django_replica_router.errors import ConfigurationError, StoreError
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import carrying
from django_replica_router.recording.carrying import token_of
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.pollers import ReplicaPoller
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.stores.store import RedisStore
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, stand_still, wait_until_known

pytestmark = pytest.mark.usefixtures("note")


@pytest.fixture(autouse=True)
def _as_in_a_new_process() -> Iterator[None]:
    """Nothing was told so far, and no task was run."""
    background._told.clear()
    before = background._works.set(False)
    yield
    background._works.reset(before)


@pytest.fixture
def lagging(cluster: Cluster) -> Iterator[Cluster]:
    """Replicas show what there is now, and nothing newer."""
    stand_still(cluster)
    yield cluster
    for replica in cluster.replicas:
        replica.resume()


def publish(**kwargs: Any) -> Token:
    """Publish a task."""
    return token_to_publish("task", **kwargs)


def title(token: Any = "") -> str:
    """Return the title that a task sees."""
    run = Run(token)
    try:
        return Note.objects.values_list("title", flat=True).get()
    finally:
        run.close()


def result_title(name: str) -> str:
    """Return the title that whoever learns of a result sees."""
    with scope():
        see_result(name)
        return Note.objects.values_list("title", flat=True).get()


def fail(*args: Any, **kwargs: Any) -> Any:
    """Do as a cache that is away."""
    message = "away"
    raise StoreError(message)


def test_where_the_package_is_switched_off(lagging: Cluster, settings: Any) -> None:
    """What came with a token goes on; nothing is asked for."""
    with scope():
        Note.objects.update(title="second")
        token = publish()
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "ENABLED": False}
    assert not publish()
    with scope(token=token):
        assert publish() == token
        remember_result(["result"])
    assert title(None) == "second"


def test_who_was_never_connected_has_written_nothing(cluster: Cluster) -> None:
    """As a process that publishes by the clock, and has no business with the primary."""
    connection.close()
    assert not publish()
    assert connection.connection is None


def test_a_worker_is_asked_between_two_tasks(lagging: Cluster) -> None:
    """What it publishes there follows from the last one, although its connection was closed."""
    with scope():
        Note.objects.update(title="second")
    title()
    connections.close_all()
    assert title(publish()) == "second"


def test_a_task_whose_token_is_lost_sees_all_there_is(lagging: Cluster) -> None:
    """Unknown is never "nothing to see"."""
    Note.objects.update(title="second")
    assert title("") == "first"
    assert title(None) == "second"


def test_a_cache_that_fails_costs_no_task(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told of; and the token is unknown then."""
    hand_on("task", Token())
    assert handed_on("task", 0.0) == ""
    assert handed_on("task", 0.0) is None  # it was for that run only
    monkeypatch.setattr(type(background.caches["default"]), "set", fail)
    monkeypatch.setattr(type(background.caches["default"]), "get", fail)
    hand_on("task", Token())
    assert handed_on("task", 0.0) is None
    assert "could not be kept" in caplog.text
    assert "could not be read" in caplog.text


def test_a_store_that_fails_holds_up_the_result(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until replicas have what nobody can be told of."""
    before = get_stats().get("tokens_unstored", 0)
    with scope():
        Note.objects.update(title="second")
        with monkeypatch.context() as patch:
            patch.setattr(RedisStore, "merge", fail)
            remember_result(["result"])
    assert get_stats()["tokens_unstored"] == before + 1


def test_a_result_of_nobody_knows_what(lagging: Cluster) -> None:
    """As of a run that was killed: the primary serves whoever learns of it."""
    Note.objects.update(title="second")
    assert result_title("result") == "first"
    remember_result(["result"])
    assert result_title("result") == "second"


def test_a_result_in_an_open_transaction(lagging: Cluster) -> None:
    """It has no position yet: the primary serves, before the end and after it."""
    with scope(), transaction.atomic():
        Note.objects.update(title="second")
        remember_result(["result"])
    assert result_title("result") == "second"


def test_a_result_where_nobody_knows_the_cluster(
    lagging: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its token may be about this one."""

    def unknown(primary: str) -> int:
        raise ConfigurationError(primary)

    def make_and_forget(opened: Any) -> Token:
        token = token_of(opened)
        monkeypatch.setattr(carrying, "system_of", unknown)
        return token

    monkeypatch.setattr(background, "token_of", make_and_forget)
    with scope():
        Note.objects.update(title="second")
        remember_result(["result"])
    assert result_title("result") == "second"


def test_outside_of_a_scope_nobody_sees(cluster: Cluster) -> None:
    """There the primary answers."""
    see_result("result")
    assert current_scope() is None


def test_a_transaction_that_has_failed_is_left_alone(cluster: Cluster) -> None:
    """It commits nothing, and its error is the code's own."""

    def divide() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            try:
                cursor.execute("SELECT 1 / 0")
            finally:
                publish()

    with pytest.raises(DatabaseError, match="division"):
        divide()


def test_a_read_only_transaction_can_be_named(cluster: Cluster) -> None:
    """It is given a number, and goes on."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION READ ONLY")
        (entry,) = publish().entries.values()
        assert len(entry.open) == 1
        assert Note.objects.using("default").count() == 1


def test_a_row_of_the_transaction_needs_no_waiting(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Who finds it finds all that was committed with it; and nothing is told of."""
    with transaction.atomic():
        publish(commits_with=True)
    assert "publishes" not in caplog.text


def test_the_block_of_a_test_case_is_no_fault(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """It never ends in a commit."""
    block = transaction.atomic()
    block._from_testcase = True
    with block:
        publish()
    assert "publishes" not in caplog.text


def test_waiting_for_a_replica(lagging: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends where one has the token, where time is up, and at once where none ever will."""
    with scope():
        Note.objects.update(title="second")
        token = publish()
    with closing(Run(token)) as run:
        assert not run.wait_for_replica(0.05)
        with monkeypatch.context() as patch:
            replicas = Health.replicas
            patch.setattr(
                Health,
                "replicas",
                lambda self: [r._replace(state=ReplicaState.UNREACHABLE) for r in replicas(self)],
            )
            assert run.wait_for_replica(60.0)
        for replica in lagging.replicas:
            replica.resume()
        wait_until_known(lagging)
        assert run.wait_for_replica(60.0)
    pin = Token({0: background.Entry(background.pin(background.get_config()))})
    with closing(Run(pin)) as pinned:
        assert pinned.wait_for_replica(60.0)


def test_a_run_that_cannot_begin_leaves_no_scope(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it raises is the worker's affair."""
    monkeypatch.setattr(background, "wait_for_transactions", fail)
    with pytest.raises(StoreError):
        Run("")
    assert current_scope() is None


@pytest.mark.parametrize("waits", [True, False])
def test_the_first_task_of_a_process_gets_to_know_the_replicas(
    cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Else its first read would go to the primary, and all of them where each task is a process."""
    wait_until_known(cluster)
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "WAIT": 0.0}
    monkeypatch.setattr(background, "_FIRST_LOOK", 60.0 if waits else 0.0)
    stop_monitors()
    look, has_read = ReplicaPoller.look, threading.Event()

    def look_afterwards(self: ReplicaPoller, connection: Any) -> None:
        assert has_read.wait(TIMEOUT)
        look(self, connection)

    if not waits:  # however long the read takes
        monkeypatch.setattr(ReplicaPoller, "look", look_afterwards)
    run = Run("")
    alias = str(Note.objects.get()._state.db)
    has_read.set()
    run.close()
    assert (alias != "default") is waits
