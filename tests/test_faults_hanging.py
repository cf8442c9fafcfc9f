"""A server that hangs delays nobody for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import pytest
from django.db import connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.policy import ReplicaState
from testproject.cluster import Cluster, ReplicaServer
from testproject.notes.models import Note, Tag
from tests.conftest import PATIENT, TIMEOUT, wait_until, wait_until_routed
from tests.faulty import NO_CURSORS, find_serving, no_repetition, note, wait_for_state  # noqa: F401 - fixtures
from tests.helpers import Served
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def wait_until_counted(event: str) -> None:
    """Return once an event is counted: by the thread that watches, while this one goes on."""
    wait_until(lambda: get_stats().get(event, 0) >= 1, f"{event} to be counted")


@contextmanager
def rescue(replica: ReplicaServer) -> Iterator[None]:
    """Let a server that hangs go on after a while: a test that waits for it then fails, and ends."""
    timer = threading.Timer(TIMEOUT, replica.resume_process)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def answer_though_it_hangs(
    cluster: Cluster, prepare: Callable[[Any], object] = lambda connection: None
) -> None:
    """See a request answered in time whose replica hangs in the midst of it.

    Args:
        cluster: the servers.
        prepare: is given Django's connection to the replica before that.
    """

    def action(request: HttpRequest) -> list[Any]:
        alias, replica = find_serving(cluster)
        prepare(connections[alias])
        replica.suspend()
        with rescue(replica):
            began = time.monotonic()
            title = Note.objects.get().title
            return [title, time.monotonic() - began]

    pop_stats()
    title, seconds = visit(Client(), action)
    assert title == "first"
    wait_until_counted("waits_ended")
    # The bound of the package, plus a busy machine; TCP alone would take minutes.
    assert seconds < 10


@pytest.mark.hangs
def test_a_replica_that_hangs_delays_nobody_for_long(note: Note, healed: Cluster) -> None:
    """Stopped in the middle of a session: what runs there is ended and run on the primary."""
    answer_though_it_hangs(healed)


@pytest.mark.hangs
def test_a_replica_that_hangs_when_django_asks_for_its_health_delays_nobody_for_long(
    note: Note, healed: Cluster
) -> None:
    """With ``CONN_HEALTH_CHECKS`` the first thing that waits for it is no statement of the site's."""

    def have_its_health_asked_for(asked: Any) -> None:
        asked.health_check_enabled, asked.health_check_done = True, False
        # A pooler has who connects wait for seconds for a server that hangs.
        cast(Any, asked).connect_timeout = 0.5

    answer_though_it_hangs(healed, have_its_health_asked_for)


@pytest.mark.hangs
@NO_CURSORS
@pytest.mark.parametrize("where", ["free", "in a transaction"])
def test_a_replica_that_hangs_between_two_fetches_is_not_waited_for(
    note: Note, healed: Cluster, where: str, settings: Any
) -> None:
    """Rows that the caller has seen cannot be taken back: the error is raised, and soon."""
    pop_stats()
    with scope():
        alias, replica = find_serving(healed)
        block = nullcontext() if where == "free" else transaction.atomic(using=alias)
        # Django connects anew at the end of the block.
        cast(Any, connections[alias]).connect_timeout = 0.5
        with pytest.raises(Exception, match="connection"), rescue(replica), block:  # noqa: PT012
            rows = Tag.objects.iterator(chunk_size=10)
            assert next(rows)._state.db == alias
            replica.suspend()
            settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CONNECT_TIMEOUT": 0.5}
            list(rows)
        assert Note.objects.get().title == "first"
    wait_until_counted("waits_ended")


@pytest.mark.hangs
@NO_CURSORS
def test_a_replica_that_hangs_before_the_first_fetch_delays_nobody_for_long(
    note: Note, healed: Cluster
) -> None:
    """The caller has seen no row yet: he gets all of them, from the primary."""
    pop_stats()
    with scope():
        alias, replica = find_serving(healed)
        with connections[alias].chunked_cursor() as cursor, rescue(replica):
            cursor.execute("SELECT name, pg_is_in_recovery() FROM notes_tag")
            replica.suspend()
            assert cursor.fetchmany(10)[9] == ("tag 009", False)
    wait_until_counted("waits_ended")


@pytest.mark.hangs
@NO_CURSORS
def test_a_replica_that_hangs_when_a_cursor_is_closed_is_not_seen(
    note: Note, healed: Cluster
) -> None:
    """Whoever has all the rows that he wanted is not told that there was nothing left to close."""
    pop_stats()
    with scope():
        _, replica = find_serving(healed)
        rows = Tag.objects.iterator(chunk_size=10)
        assert next(rows).name == "tag 000"
        replica.suspend()
        with rescue(replica):
            began = time.monotonic()
            rows.close()  # type: ignore[attr-defined]
            assert time.monotonic() - began < 10
        assert Note.objects.get().title == "first"
    wait_until_counted("waits_ended")


@pytest.mark.hangs
def test_a_replica_that_hangs_is_left_out(note: Note, healed: Cluster, served: Served) -> None:
    """New requests do not even try it; when it answers again, it serves again."""
    replica = healed.replicas[0]
    replica.suspend()
    wait_for_state(replica, ReplicaState.SILENT)
    connections.close_all()
    for _ in range(10):
        assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    assert replica.name not in served.aliases()
    replica.resume_process()
    wait_for_state(replica, ReplicaState.STREAMING)
    wait_until_routed()


def test_a_connection_that_is_not_accepted_is_given_up_in_time(
    note: Note, healed: Cluster, served: Served, settings: Any
) -> None:
    """A request does not wait for a host that does not answer as long as TCP would.

    Nor as long as the setting said when it connected before.
    """
    assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    settings.REPLICA_ROUTER = {**PATIENT, "CONNECT_TIMEOUT": 0.2}
    connections.close_all()
    for replica in healed.replicas:
        replica.suspend()
    served.clear()
    began = time.monotonic()
    # Before the monitor knows.
    assert visit(Client(), lambda request: Note.objects.get().title) == "first"
    assert served.only_primary("notes_note")
    assert time.monotonic() - began < PATIENT["CONNECT_TIMEOUT"]
