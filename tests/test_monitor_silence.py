"""Servers that say nothing."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from django_replica_router.policy import ReplicaState, may_serve
from django_replica_router.replicas import inflight
from django_replica_router.replicas.inflight import InFlight, Waiter
from django_replica_router.values.tokens import NOWHERE
from tests.monitored import BAD, INTERVAL, STREAMING, Cluster, cluster, news, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name
SILENCE = 3 * INTERVAL + 2.0  # three looks, and the time that a connection may take


# Silence


@pytest.mark.parametrize("interval", [0.1, 1.0, 5.0])
def test_reading_that_is_not_renewed_is_no_knowledge(interval: float) -> None:
    """Where no look has succeeded for three intervals and a time-out, the replica is out."""
    cluster = Cluster(interval)
    cluster.sample(100)
    cluster.read(100)
    cluster.now += 3 * interval + 2.0
    assert cluster.replica().state is STREAMING
    cluster.now += 0.001
    assert cluster.replica().state is ReplicaState.SILENT
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)
    cluster.read(100)
    assert cluster.replica().state is STREAMING


def test_replica_that_does_not_answer_is_out(cluster: Cluster) -> None:
    """A look that has been waiting for more than a second takes the replica out, until it is over."""
    cluster.sample(100)
    cluster.read(100)
    looks = cluster.monitor.known.looks["r1"]
    looks.busy_since = cluster.now
    cluster.now += 1.0
    assert cluster.replica().state is STREAMING
    cluster.now += 0.001
    assert cluster.replica().state is ReplicaState.SILENT
    assert cluster.replica("r2").state is ReplicaState.UNKNOWN
    looks.busy_since = None
    assert cluster.replica().state is STREAMING


@pytest.mark.parametrize("state", BAD)
def test_silence_does_not_hide_another_state(cluster: Cluster, state: ReplicaState) -> None:
    """A replica that is out for a reason keeps the reason."""
    cluster.read(100, state=state)
    cluster.now += 2 * SILENCE
    assert cluster.replica().state is state


def test_silent_replica_is_told_lost_and_its_waiting_ended(
    cluster: Cluster, news: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher takes a silent replica out once, and goes on ending who waits for it."""
    flight = Flight(monkeypatch)
    cluster.sample(100)
    for alias in ("r1", "r2"):
        cluster.read(100, alias)
    news.clear()
    cluster.monitor.known.looks["r1"].busy_since = cluster.now
    cluster.now += 1.5
    cluster.watch(3)
    assert news == [("lost", "r1", ReplicaState.SILENT)]
    assert flight.ended == [("r1", 1.0)] * 3
    assert cluster.replica().state is ReplicaState.SILENT
    assert cluster.replica("r2").state is STREAMING


class Flight:
    """Statements in flight, as the watcher is told of them.

    Args:
        waits: seconds that each statement to ``r1`` has waited.
        mute: the servers that have answered nothing for a while.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, waits: Sequence[float] = (), mute: Sequence[str] = ()
    ) -> None:
        self.ended: list[tuple[str, float]] = []
        self.asked: list[tuple[str, float]] = []
        self.waits = waits
        self.mute = mute
        for name in ("end", "is_mute", "shortest_wait"):
            monkeypatch.setattr(
                f"django_replica_router.replicas.watching.in_flight.{name}", getattr(self, name)
            )

    def end(self, alias: str, patience: float) -> int:
        self.ended.append((alias, patience))
        return 1

    def is_mute(self, alias: str, seconds: float) -> bool:
        self.asked.append((alias, seconds))
        return alias in self.mute

    def shortest_wait(self, alias: str, least: float) -> float | None:
        waits = self.waits if alias == "r1" else ()
        return min((wait for wait in waits if wait > least), default=None)


def test_who_waits_for_a_server_that_answers_nobody_is_not_kept(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a look and all else has gone unanswered for a second, who asked last need not wait one."""
    flight = Flight(monkeypatch, mute=["r1", "r2"])
    cluster.sample(100)
    for alias in ("r1", "r2"):
        cluster.read(100, alias)
    cluster.monitor.known.looks["r1"].busy_since = cluster.now
    cluster.now += 1.0
    cluster.watch(1)
    assert flight.ended == []  # it may answer yet, and r2 was not even asked
    cluster.now += 0.001
    cluster.watch(1)
    assert flight.ended == [("r1", 0.0)]
    assert set(flight.asked) == {("r1", 1.0)}


def test_a_server_that_answers_others_is_given_its_second_for_each(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look that is not answered may be its connection's fault: the server may only be busy."""
    flight = Flight(monkeypatch)
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.looks["r1"].busy_since = cluster.now
    cluster.now += 5.0
    cluster.watch(1)
    assert flight.ended == [("r1", 1.0)]


def test_a_new_look_at_a_silent_server_gets_its_second_as_well(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps the server is back: until the new look has told, nobody is ended early."""
    flight = Flight(monkeypatch, mute=["r1"])
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.lose("r1", ReplicaState.SILENT, "")
    cluster.monitor.known.looks["r1"].busy_since = cluster.now - 0.5
    cluster.watch(1)
    assert flight.ended == [("r1", 1.0)]


@pytest.mark.parametrize(
    ("busy_for", "pause"), [(None, 0.1), (0.5, 0.1), (0.501, 0.02), (5.0, 0.02)]
)
def test_servers_are_watched_more_closely_where_one_is_about_to_be_lost(
    cluster: Cluster, busy_for: float | None, pause: float
) -> None:
    """Ten times a second, and fifty times while a look has been unanswered for half a second."""
    if busy_for is not None:
        cluster.monitor.known.looks["r2"].busy_since = cluster.now - busy_for
    assert cluster.watch(1) == [pause] * 2


@pytest.mark.parametrize(
    ("waits", "looked_ago", "expected"),
    [
        ([], 60.0, False),
        ([0.05], 60.0, False),
        ([0.051], 60.0, True),
        ([0.051], 0.052, True),  # sent after the look
        ([0.051], 0.05, False),  # the look was answered since
        ([9.0], 0.25, False),  # a long one: the server was asked a moment ago
        ([9.0], 0.251, True),
        ([9.0, 0.051], 0.052, True),  # and one that was sent since then
        ([9.0, 0.01], 0.25, False),
    ],
)
def test_replica_is_looked_at_where_a_statement_takes_long(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    looked_ago: float,
    expected: bool,
) -> None:
    """Whether the server hangs is found out at once, and not when the interval is over.

    One look tells for all statements that were sent before it, for a quarter of a second.
    """
    Flight(monkeypatch, waits)
    cluster.sample(100)
    for alias in ("r1", "r2"):
        cluster.read(100, alias, at=cluster.now - looked_ago)
    cluster.woken()
    cluster.watch(1)
    assert cluster.woken() == (["r1"] if expected else [])


def test_it_is_known_how_long_statements_wait() -> None:
    """For which server, and no longer than they do; what counts is the one that was sent last."""
    known, first, second = InFlight(), Waiter(), Waiter()
    assert known.shortest_wait("r1", -1.0) is None

    def look_inside() -> None:
        before = known.shortest_wait("r1", -1.0)
        assert before is not None
        first.since -= 50.0
        known.ask(second, "r1", None, look_at_both)

    def look_at_both() -> None:
        assert 50.0 <= (known.shortest_wait("r1", 40.0) or 0.0) < 60.0
        assert (known.shortest_wait("r1", -1.0) or 0.0) < 40.0
        assert 50.0 <= known.longest_wait("r1") < 60.0
        assert known.shortest_wait("r1", 60.0) is None
        assert known.shortest_wait("r2", -1.0) is None

    known.ask(first, "r1", None, look_inside)
    assert known.shortest_wait("r1", -1.0) is None


def test_a_statement_inside_another_of_the_same_connection_waits_by_itself() -> None:
    """As one of a site's wrapper: the one around it is watched as before, also when that has ended."""
    known, waiter = InFlight(), Waiter()

    def wait_inside() -> None:
        waiter.since -= 50.0
        known.ask(waiter, "r1", None, lambda: None)
        assert known.longest_wait("r1") >= 50.0
        with known.waiting("r1", None):
            assert (known.shortest_wait("r1", -1.0) or 0.0) < 40.0

    known.ask(waiter, "r1", None, wait_inside)
    assert known.longest_wait("r1") == 0.0


def test_server_is_mute_that_answers_nothing_any_more() -> None:
    """Of one that has never answered nothing is known; that a waiting was ended is no answer."""
    known, waiter = InFlight(), Waiter()
    assert not known.ask(waiter, "r1", None, known.is_mute, "r1", 0.0)
    assert not known.is_mute("r1", 60.0)
    known._answered_at["r1"] -= 120.0
    assert known.is_mute("r1", 60.0)
    assert not known.is_mute("r2", 0.0)
    assert known.ask(waiter, "r1", None, known.end, "r1", 60.0) == 0
    known._answered_at["r1"] -= 120.0
    assert known.ask(waiter, "r1", None, known.end, "r1", 0.0) == 1
    assert known.is_mute("r1", 60.0)
    with known.waiting("r1", None):
        assert known.end("r1", 0.0) == 1
    assert known.is_mute("r1", 60.0)
    known.ask(waiter, "r1", None, lambda: None)
    assert not known.is_mute("r1", 60.0)


def test_who_has_been_answered_is_not_ended_any_more() -> None:
    """Its socket may be another's by then: what began to wait since, or waits no more, is left alone."""
    known, waiter = InFlight(), Waiter()
    shut: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inflight, "shut_down", shut.append)
        known.ask(waiter, "r1", "old", lambda: None)
        assert not known._end(waiter, math.inf)
        now = time.monotonic()

        def meet_a_late_end() -> None:
            assert not known._end(waiter, now - 1.0)
            assert not waiter.is_ended
            assert known._end(waiter, math.inf)

        known.ask(waiter, "r1", "new", meet_a_late_end)
    assert shut == ["new"]
    assert not waiter.is_ended


def test_without_a_second_look_a_socket_of_later_is_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where the choice alone counts, the test above fails."""

    def end(self: InFlight, waiter: Waiter, limit: float) -> bool:
        inflight.shut_down(waiter.raw)
        return True

    monkeypatch.setattr(InFlight, "_end", end)
    with pytest.raises(AssertionError):
        test_who_has_been_answered_is_not_ended_any_more()


@pytest.mark.parametrize(
    ("state", "life", "lsn", "watermark"),
    [
        (STREAMING, ("one",), 150, 150),
        (STREAMING, ("one",), 50, 100),  # an answer that was long on its way
        (STREAMING, ("other",), 150, 100),  # not the server that was looked at
        (ReplicaState.UNREACHABLE, ("one",), 150, -1),  # out for a reason
    ],
)
def test_what_a_replica_tells_a_request_counts_where_it_is_known_and_well(
    cluster: Cluster, state: ReplicaState, life: tuple[str], lsn: int, watermark: int
) -> None:
    """A position only rises, and of a server of which nothing is known it says nothing."""
    cluster.sample(200)
    cluster.monitor.servers.begin_life("r1", ("one",))
    cluster.read(100, state=state)
    cluster.monitor.answers.note_replayed("r1", life, lsn)
    assert cluster.replica().watermark == watermark
    assert cluster.replica().state is state


def test_threads_announce_the_news_together(cluster: Cluster, news: list[Any]) -> None:
    """What another thread has taken meanwhile is no error, which would end the watcher's thread."""

    class News(list[Any]):
        """Somebody else takes the last before this thread does."""

        def pop(self, index: Any = -1) -> Any:
            if len(self) == 1:
                self.clear()
            return super().pop(index)

    cluster.sample(100)
    cluster.read(100)
    cluster.read(100, "r2")
    cluster.monitor.known._news = News()
    news.clear()
    cluster.sample(50, timeline=2)
    assert news == [("lost", "r1", ReplicaState.UNKNOWN)]


@pytest.mark.parametrize("moment", ["before the lock", "in doubt"])
def test_what_a_server_told_before_it_was_replaced_is_not_the_next_ones(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """However late a request comes with the answer of a life that is over, it does not count."""
    monitor, known = cluster.monitor, cluster.monitor.known
    poller = monitor._pollers["r1"]
    cluster.sample(500)
    poller._note_life(("one",))
    cluster.read(100)

    class Lock(threading.Condition):
        """What is done elsewhere while a thread waits for it."""

        def __enter__(self) -> bool:
            monkeypatch.setattr(known, "changed", changed)
            poller._note_life(("two",))
            return changed.__enter__()

        def __exit__(self, *error: Any) -> None:
            changed.__exit__(*error)

    changed = known.changed
    if moment == "before the lock":
        monkeypatch.setattr(known, "changed", Lock())
        monitor.answers.note_replayed("r1", ("one",), 400)
    else:
        known.forget("r1")  # as when another process has met the next life already
        monitor.answers.note_replayed("r1", ("one",), 400)
        assert cluster.replica().watermark == -1
        poller._note_life(("two",))
    cluster.read(50)
    assert poller.life == ("two",)
    assert cluster.replica().watermark == 50


def test_connection_that_was_ended_leaves_the_replica_silent(
    cluster: Cluster, news: list[Any]
) -> None:
    """That a connection breaks which was ended because of the silence is no news."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.lose("r1", ReplicaState.SILENT, "")
    news.clear()
    cluster.monitor.report("r1", OSError("broken"))
    assert cluster.replica().state is ReplicaState.SILENT
    cluster.monitor.known.lose("r1", ReplicaState.PROMOTED, "")
    assert cluster.replica().state is ReplicaState.PROMOTED
    assert news == []


@pytest.mark.parametrize(
    ("has_failed", "waits", "expected"),
    [(False, None, False), (True, None, True), (False, 1.0, False), (False, 1.001, True)],
)
def test_primary_that_fails_or_hangs_is_down(
    cluster: Cluster, has_failed: bool, waits: float | None, expected: bool
) -> None:
    """The primary is down where the last look has failed, or this one waits for over a second."""
    looks = cluster.monitor.known.primary_looks
    looks.failures = int(has_failed)
    looks.busy_since = None if waits is None else cluster.now - waits
    assert cluster.monitor.known.primary_is_down is expected
