"""What the monitor concludes from samples and readings, fed by hand and timed by hand: no threads."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router import registry
from django_replica_router.inflight import InFlight
from django_replica_router.monitor import Monitor
from django_replica_router.policy import Replica, ReplicaState, may_serve
from django_replica_router.pollers import Poller
from django_replica_router.postgres import Examination, ReplicaAnswer, ServerIdentity
from django_replica_router.readings import Reading, Sample, Wanted
from django_replica_router.signals import replica_lost, replica_restored
from django_replica_router.tokens import NOWHERE, Position

STREAMING = ReplicaState.STREAMING
BAD = [state for state in ReplicaState if state is not STREAMING]
INTERVAL = 1.0
SILENCE = 3 * INTERVAL + 2.0  # three looks, and the time that a connection may take


class Cluster:
    """A monitor of two replicas, on a clock that stands still until it is moved."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.now = 1000.0
        self.monitor = Monitor("default", ["r1", "r2"], interval, clock=lambda: self.now)

    def sample(self, lsn: int, timeline: int = 1, *, at: float | None = None) -> None:
        """Let the primary say where it is."""
        moment = self.now if at is None else at
        self.monitor.publish_sample(Sample(moment, Position(timeline, lsn)))

    def read(
        self,
        lsn: int,
        alias: str = "r1",
        *,
        state: ReplicaState = STREAMING,
        at: float | None = None,
        catch_up: float = 0.0,
        remark: str = "",
    ) -> None:
        """Let a replica say what it has replayed."""
        moment = self.now if at is None else at
        reading = Reading(state, lsn, -math.inf, moment, catch_up, remark)
        self.monitor.publish_reading(alias, reading)

    def replica(self, alias: str = "r1") -> Replica:
        """Return what is known of a replica now."""
        return next(replica for replica in self.monitor.replicas() if replica.alias == alias)

    def watch(self, times: int) -> list[float]:
        """Let the watcher act so many times; return how long it has waited each time, and at last."""
        ticks = Ticks(times)
        self.monitor._ended = ticks  # type: ignore[assignment]
        self.monitor.watch()
        return ticks.waited

    def woken(self) -> list[str]:
        """Return the aliases of servers that are to be looked at now, and let them sleep again."""
        monitor = self.monitor
        pollers = [monitor._primary_poller, *monitor._pollers.values()]
        found = [poller.alias for poller in pollers if poller._wake.is_set()]
        for poller in pollers:
            poller._wake.clear()
        return found


@pytest.fixture(scope="module", autouse=True)
def no_real_monitor() -> None:
    """Stop the monitor of real servers that another test has started: it would take the replies."""
    registry.stop_monitors()


@pytest.fixture
def cluster() -> Cluster:
    """Return a cluster of which nothing is known yet."""
    return Cluster()


@pytest.fixture
def news() -> Iterator[list[tuple[str, str, ReplicaState | None]]]:
    """Return the list of the signals that are sent."""
    found: list[tuple[str, str, ReplicaState | None]] = []

    def on_lost(sender: str, state: ReplicaState, **kwargs: Any) -> None:
        found.append(("lost", sender, state))

    def on_restored(sender: str, **kwargs: Any) -> None:
        found.append(("restored", sender, None))

    replica_lost.connect(on_lost)
    replica_restored.connect(on_restored)
    yield found
    replica_lost.disconnect(on_lost)
    replica_restored.disconnect(on_restored)


# At first


def test_at_first_nothing_is_known(cluster: Cluster) -> None:
    """Before any look no replica may serve, no timeline is known, and nothing is asked for."""
    assert cluster.monitor.replicas() == [
        Replica("r1", ReplicaState.UNKNOWN, -1, math.inf),
        Replica("r2", ReplicaState.UNKNOWN, -1, math.inf),
    ]
    assert cluster.monitor.timeline is None
    assert cluster.monitor.primary_identity is None
    assert cluster.monitor.wanted == Wanted(-1, -math.inf)
    assert cluster.woken() == []


def test_reading_without_a_sample_is_of_unknown_age(cluster: Cluster) -> None:
    """A replica that answers before the primary did may be of any age, and serves nobody."""
    cluster.read(100)
    assert cluster.replica() == Replica("r1", STREAMING, 100, math.inf)
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)


def test_a_monitor_that_was_stopped_has_no_news(
    cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
    news: list[tuple[str, str, ReplicaState | None]],
) -> None:
    """What one of its threads that hung finds out late is no business of the next monitor's."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.stop()
    caplog.clear()
    news.clear()
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "late")
    assert (caplog.messages, news) == ([], [])


def test_monitor_that_was_never_started_can_be_stopped(cluster: Cluster) -> None:
    """Making a monitor starts no thread; stopping it then is no error, and ends it for good."""
    monitor = cluster.monitor
    threads = [monitor._primary_poller, monitor._watcher, *monitor._pollers.values()]
    monitor.stop()
    assert [thread.ident for thread in threads] == [None] * 4
    assert monitor.stopped


# Age


def test_replica_is_as_old_as_the_newest_sample_that_it_has_replayed(cluster: Cluster) -> None:
    """Age counts from the moment of the newest sample at or before the watermark."""
    for second in range(5):
        cluster.sample(100 + 10 * second, at=1000.0 + second)
    cluster.now = 1004.5
    for lsn, age in [
        (99, math.inf),
        (100, 4.5),
        (109, 4.5),
        (110, 3.5),
        (139, 1.5),
        (140, 0.5),
        (999, 0.5),
    ]:
        fresh = Cluster()
        fresh.now = 1004.5
        for second in range(5):
            fresh.sample(100 + 10 * second, at=1000.0 + second)
        fresh.read(lsn)
        assert fresh.replica().age == age, lsn


def test_idle_cluster_does_not_age(cluster: Cluster) -> None:
    """Where nothing is written for an hour, a replica that has everything stays fresh."""
    for _ in range(3600):
        cluster.sample(100)
        cluster.read(100)
        cluster.now += 1.0
        assert cluster.replica().age == 1.0
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)


def test_replica_whose_receiver_died_ages(cluster: Cluster) -> None:
    """A replica that answers but gets nothing more ages from the last sample it has replayed."""
    for second in range(20):
        cluster.sample(100 + second)
        cluster.read(min(100 + second, 105))
        assert cluster.replica().state is STREAMING
        assert cluster.replica().age == max(0.0, second - 5.0)
        cluster.now += 1.0
    assert not may_serve(cluster.replica(), NOWHERE, 10.0)


def test_replica_that_catches_up_is_young_again(cluster: Cluster) -> None:
    """Age falls at once when the backlog has been replayed, in steps where it is replayed in parts."""
    for second in range(10):
        cluster.sample(100 + second)
        cluster.read(100)
        cluster.now += 1.0
    assert cluster.replica().age == 10.0
    cluster.read(104)
    assert cluster.replica().age == 6.0
    cluster.read(109)
    assert cluster.replica().age == 1.0


def test_age_grows_with_the_clock_between_two_looks(cluster: Cluster) -> None:
    """Nothing that was known a moment ago is taken for known now."""
    cluster.sample(100)
    cluster.read(100)
    cluster.now += 2.25
    assert cluster.replica().age == 2.25


def test_old_samples_are_dropped_and_age_is_not_understated() -> None:
    """A replica that is further behind than the samples reach keeps its last known moment."""
    cluster = Cluster()
    cluster.sample(100)
    cluster.read(100)
    began = cluster.now
    for second in range(3000):
        cluster.now += 1.0
        cluster.sample(200 + second)
    cluster.read(150)
    assert cluster.replica().age == cluster.now - began


steps = st.lists(
    st.tuples(st.sampled_from(["write", "replay", "sample", "read", "lose"]), st.integers(1, 9)),
    max_size=40,
)


@given(steps)
def test_age_is_never_less_than_the_truth(script: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: all that was written before "now - age" has been replayed."""
    cluster = Cluster()
    commits: list[tuple[float, int]] = []
    written = replayed = 100
    for action, amount in script:
        cluster.now += amount / 4
        if action == "write":
            written += amount
            commits.append((cluster.now, written))
        elif action == "replay":
            replayed = min(written, replayed + amount)
        elif action == "sample":
            cluster.sample(written)
        elif action == "read":
            cluster.read(replayed)
        else:
            cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "gone")
        known = cluster.replica()
        assert known.watermark <= replayed
        assert all(lsn <= replayed for at, lsn in commits if at < cluster.now - known.age)


# Watermark


def test_watermark_never_falls(cluster: Cluster) -> None:
    """What a replica was once seen to have replayed stays replayed, whatever it says later."""
    cluster.sample(200)
    for lsn, watermark in [(100, 100), (150, 150), (120, 150), (0, 150), (-1, 150), (151, 151)]:
        cluster.read(lsn)
        assert cluster.replica().watermark == watermark


def test_replicas_are_known_apart(cluster: Cluster) -> None:
    """A reading of one replica says nothing of another."""
    cluster.sample(100)
    cluster.read(100, "r1")
    assert cluster.replica("r1").state is STREAMING
    assert cluster.replica("r2") == Replica("r2", ReplicaState.UNKNOWN, -1, math.inf)


@pytest.mark.parametrize("state", BAD)
def test_replica_in_bad_health_has_no_watermark(cluster: Cluster, state: ReplicaState) -> None:
    """Whatever a replica has replayed before, in another state it serves nobody."""
    cluster.sample(100)
    cluster.read(100)
    cluster.read(100, state=state)
    replica = cluster.replica()
    assert (replica.state, replica.watermark, replica.age) == (state, -1, math.inf)
    cluster.read(100)
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)


def test_forgotten_replica_serves_nobody_until_it_is_read_again(cluster: Cluster) -> None:
    """A server that is another one than before has replayed nothing that is known."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.forget("r1")
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)
    assert cluster.replica().watermark == -1
    cluster.read(60)  # rebuilt from a backup: lower than before, and that counts
    assert cluster.replica().watermark == 60


def test_replica_that_was_started_anew_is_of_unknown_age_at_first(cluster: Cluster) -> None:
    """What it shows may be less than it showed before, up to what the primary had at the start."""
    cluster.sample(90)
    cluster.now += 1.0
    cluster.read(100)
    cluster.sample(100)
    cluster.now += 1.0
    cluster.monitor.forget("r1")
    cluster.read(100)
    assert cluster.replica() == Replica("r1", STREAMING, 100, math.inf)
    cluster.now += 1.0
    cluster.sample(110)
    cluster.read(109)
    assert cluster.replica().age == math.inf
    cluster.read(110)
    assert cluster.replica().age == 0.0


def test_lost_replica_serves_nobody_until_it_is_read_again(cluster: Cluster) -> None:
    """A replica that failed a request is out at once, and back with the next look that succeeds."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert cluster.replica().state is ReplicaState.UNREACHABLE
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)
    cluster.read(100)
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)


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
    poller = cluster.monitor._pollers["r1"]
    poller.busy_since = cluster.now
    cluster.now += 1.0
    assert cluster.replica().state is STREAMING
    cluster.now += 0.001
    assert cluster.replica().state is ReplicaState.SILENT
    assert cluster.replica("r2").state is ReplicaState.UNKNOWN
    poller.busy_since = None
    assert cluster.replica().state is STREAMING


@pytest.mark.parametrize("state", BAD)
def test_silence_does_not_hide_another_state(cluster: Cluster, state: ReplicaState) -> None:
    """A replica that is out for a reason keeps the reason."""
    cluster.read(100, state=state)
    cluster.now += 2 * SILENCE
    assert cluster.replica().state is state


class Ticks:
    """An event that is awaited some times in vain and then set."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.waited: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.waited.append(timeout)
        self.left -= 1
        return self.left < 0

    def set(self) -> None:
        self.left = 0


def test_silent_replica_is_told_lost_and_its_waiting_ended(
    cluster: Cluster, news: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher takes a silent replica out once, and goes on ending who waits for it."""
    flight = Flight(monkeypatch)
    cluster.sample(100)
    for alias in ("r1", "r2"):
        cluster.read(100, alias)
    news.clear()
    cluster.monitor._pollers["r1"].busy_since = cluster.now
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
                f"django_replica_router.monitor.in_flight.{name}", getattr(self, name)
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
    cluster.monitor._pollers["r1"].busy_since = cluster.now
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
    cluster.monitor._pollers["r1"].busy_since = cluster.now
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
    cluster.monitor.lose("r1", ReplicaState.SILENT, "")
    cluster.monitor._pollers["r1"].busy_since = cluster.now - 0.5
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
        cluster.monitor._pollers["r2"].busy_since = cluster.now - busy_for
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
    known = InFlight()
    assert known.shortest_wait("r1", -1.0) is None
    first = known.enter("r1", None)
    before = known.shortest_wait("r1", -1.0)
    assert before is not None
    second = known.enter("r1", None)
    known._waiting[first] = known._waiting[first]._replace(since=time.monotonic() - 50.0)
    assert 50.0 <= (known.shortest_wait("r1", 40.0) or 0.0) < 60.0
    assert (known.shortest_wait("r1", -1.0) or 0.0) < 40.0
    assert known.shortest_wait("r1", 60.0) is None
    assert known.shortest_wait("r2", -1.0) is None
    for number in (first, second):
        known.leave(number)
    assert known.shortest_wait("r1", -1.0) is None


def test_server_is_mute_that_answers_nothing_any_more() -> None:
    """Of one that has never answered nothing is known; that a waiting was ended is no answer."""
    known = InFlight()
    number = known.enter("r1", None)
    assert not known.is_mute("r1", 0.0)
    known.leave(number)
    assert not known.is_mute("r1", 60.0)
    known._answered_at["r1"] -= 120.0
    assert known.is_mute("r1", 60.0)
    assert not known.is_mute("r2", 0.0)
    number = known.enter("r1", None)
    assert known.end("r1", 60.0) == 0
    assert known.end("r1", 0.0) == 1
    known.leave(number)
    assert known.is_mute("r1", 60.0)
    known.leave(known.enter("r1", None))
    assert not known.is_mute("r1", 60.0)


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
    cluster.monitor._pollers["r1"]._lives = [("one",)]
    cluster.read(100, state=state)
    cluster.monitor.note_replayed("r1", life, lsn)
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
    cluster.monitor._news = News()
    news.clear()
    cluster.sample(50, timeline=2)
    assert news == [("lost", "r1", ReplicaState.UNKNOWN)]


@pytest.mark.parametrize("moment", ["before the lock", "between the two steps"])
def test_what_a_server_told_before_it_was_replaced_is_not_the_next_ones(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """However late a request comes with the answer of a life that is over, it does not count."""
    monitor = cluster.monitor
    poller = monitor._pollers["r1"]
    cluster.sample(500)
    poller._note_life(("one",))
    cluster.read(100)

    class Lock(threading.Condition):
        """What is done elsewhere while a thread waits for it."""

        def __enter__(self) -> bool:
            monkeypatch.setattr(monitor, "_changed", changed)
            poller._note_life(("two",))
            return changed.__enter__()

        def __exit__(self, *error: Any) -> None:
            changed.__exit__(*error)

    forget, changed = monitor.forget, monitor._changed

    def forget_slowly(alias: str) -> None:
        forget(alias)
        monitor.note_replayed("r1", ("one",), 400)

    if moment == "before the lock":
        monkeypatch.setattr(monitor, "_changed", Lock())
        monitor.note_replayed("r1", ("one",), 400)
    else:
        monkeypatch.setattr(monitor, "forget", forget_slowly)
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
    cluster.monitor.lose("r1", ReplicaState.SILENT, "")
    news.clear()
    cluster.monitor.report("r1", OSError("broken"))
    assert cluster.replica().state is ReplicaState.SILENT
    cluster.monitor.lose("r1", ReplicaState.PROMOTED, "")
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
    poller = cluster.monitor._primary_poller
    poller._failures = int(has_failed)
    poller.busy_since = None if waits is None else cluster.now - waits
    assert cluster.monitor.primary_is_down is expected


# Ahead of the primary


def test_replica_ahead_of_the_primary_is_out_and_stays_out(cluster: Cluster) -> None:
    """A replica that has more than its primary follows another history, also when it is overtaken."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    assert cluster.replica().state is ReplicaState.AHEAD
    for lsn in (149, 150, 151, 500):
        cluster.now += 1.0
        cluster.sample(lsn)
        cluster.read(150)
        assert cluster.replica().state is ReplicaState.AHEAD
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.read(500)
    assert cluster.replica().state is ReplicaState.AHEAD
    assert cluster.replica("r2").state is ReplicaState.UNKNOWN


def test_replica_that_was_rebuilt_is_no_longer_ahead(cluster: Cluster) -> None:
    """Another server, or another life of it, is given another chance."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    cluster.monitor.forget("r1")
    cluster.now += 1.0
    cluster.sample(102)
    cluster.read(102)
    assert may_serve(cluster.replica(), Position(1, 102), 1.0)


def test_replica_at_the_primarys_very_position_is_not_ahead(cluster: Cluster) -> None:
    """Having all that the primary has is what a good replica does."""
    cluster.sample(100)
    cluster.read(120)
    cluster.now += 1.0
    cluster.sample(120)
    assert cluster.replica().state is STREAMING


def test_reading_that_is_newer_than_the_sample_proves_nothing(cluster: Cluster) -> None:
    """A replica that was asked after the primary may have more than the primary had then."""
    cluster.sample(100)
    cluster.now += 1.0
    cluster.read(150)
    cluster.sample(101, at=cluster.now - 0.5)
    assert cluster.replica().state is STREAMING


def test_answer_that_took_long_proves_nothing(cluster: Cluster) -> None:
    """A replica whose answer came after the primary was asked may have more, though asked before."""
    cluster.sample(90)
    asked_replica = cluster.now + 1.0
    asked_primary = cluster.now + 1.2
    cluster.now += 1.5  # now the replica's answer is here, of a moment since it was asked
    cluster.read(105, at=asked_replica)
    cluster.sample(
        100, at=asked_primary
    )  # the primary's answer was there first, its thread was not
    assert cluster.replica().state is STREAMING
    cluster.now += 1.0
    cluster.sample(104)
    assert cluster.replica().state is ReplicaState.AHEAD


# Timelines


def test_after_a_failover_old_readings_do_not_count(cluster: Cluster) -> None:
    """When the primary is on a new timeline, nothing that was replayed before is known to be of it."""
    cluster.sample(100, timeline=1)
    cluster.read(100, "r1")
    cluster.read(90, "r2")
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    assert cluster.monitor.timeline == 2
    assert [replica.state for replica in cluster.monitor.replicas()] == [ReplicaState.UNKNOWN] * 2
    assert [replica.watermark for replica in cluster.monitor.replicas()] == [-1] * 2


def test_after_a_failover_a_replica_counts_from_the_baseline_on(cluster: Cluster) -> None:
    """A replica is unknown until it has replayed what the new timeline had when it was first seen."""
    cluster.sample(100, timeline=1)
    cluster.read(100)
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    for lsn in (100, 105, 109):
        cluster.now += 1.0
        cluster.read(lsn)
        assert cluster.replica() == Replica("r1", ReplicaState.UNKNOWN, -1, math.inf)
    cluster.sample(120, timeline=2)
    cluster.read(111)
    assert cluster.replica().state is STREAMING
    assert cluster.replica().watermark == 111
    assert cluster.replica().age == 3.0


def test_ejected_replica_is_judged_anew_after_a_failover(cluster: Cluster) -> None:
    """A replica that was ahead of the old primary may follow the new one."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    assert cluster.replica().state is ReplicaState.AHEAD
    cluster.now += 1.0
    cluster.sample(150, timeline=2)
    cluster.now += 1.0
    cluster.sample(300, timeline=2)
    cluster.read(300)
    assert cluster.replica().state is STREAMING


def test_failover_ends_all_waiting_for_old_positions(cluster: Cluster) -> None:
    """A position of the old timeline is not chased on the new one."""
    cluster.sample(100)
    cluster.monitor.want(10**6, 0.0)
    cluster.sample(110, timeline=2)
    assert cluster.monitor.wanted == Wanted()


def test_failover_is_logged_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The first sample of a new timeline leaves one line, the very first sample none."""
    caplog.set_level(logging.INFO, "django_replica_router")
    cluster.sample(100)
    assert caplog.messages == []
    cluster.sample(110, timeline=2)
    cluster.sample(120, timeline=2)
    assert caplog.messages == [
        "The primary 'default' is on timeline 2 now: its replicas count again once they have "
        "replayed it."
    ]


# Signals


def test_change_is_told_once(cluster: Cluster, news: list[Any]) -> None:
    """A signal is sent when a replica begins or ceases to serve, and not again while it lasts."""
    cluster.sample(100)
    for _ in range(3):
        cluster.read(100)
    assert news == [("restored", "r1", None)]
    news.clear()
    for _ in range(3):
        cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert news == [("lost", "r1", ReplicaState.UNREACHABLE)]
    news.clear()
    cluster.read(100)
    cluster.read(100)
    assert news == [("restored", "r1", None)]


def test_another_reason_is_no_further_loss(
    cluster: Cluster, news: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Between two states that do not serve nothing is sent; the log has each reason."""
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert news == []
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.read(100, state=ReplicaState.PROMOTED)
    cluster.monitor.lose("r1", ReplicaState.SILENT, "")
    cluster.read(100)
    assert news == [
        ("restored", "r1", None),
        ("lost", "r1", ReplicaState.UNREACHABLE),
        ("restored", "r1", None),
    ]
    for state in (ReplicaState.UNREACHABLE, ReplicaState.PROMOTED, ReplicaState.SILENT):
        assert state.value in caplog.text


@pytest.mark.parametrize("state", [state for state in BAD if state is not ReplicaState.UNKNOWN])
def test_loss_tells_the_state(cluster: Cluster, news: list[Any], state: ReplicaState) -> None:
    """The signal of a loss says what is wrong."""
    cluster.sample(100)
    cluster.read(100, "r2")
    news.clear()
    cluster.read(100, "r2", state=state)
    assert news == [("lost", "r2", state)]


def test_ejection_is_told(cluster: Cluster, news: list[Any]) -> None:
    """A replica that is found ahead by a sample is told lost, once."""
    cluster.sample(100)
    cluster.read(150)
    news.clear()
    for _ in range(3):
        cluster.now += 1.0
        cluster.sample(101)
        cluster.read(150)
    assert news == [("lost", "r1", ReplicaState.AHEAD)]


def test_failover_is_told_as_a_loss(cluster: Cluster, news: list[Any]) -> None:
    """A replica that does not count on a new timeline is lost, before it is restored."""
    cluster.sample(100)
    cluster.read(100)
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    cluster.read(111)
    assert news == [
        ("restored", "r1", None),
        ("lost", "r1", ReplicaState.UNKNOWN),
        ("restored", "r1", None),
    ]


def test_listener_that_fails_harms_nobody(cluster: Cluster, news: list[Any]) -> None:
    """A receiver that raises keeps neither the others nor the monitor from going on."""

    def fail(**kwargs: Any) -> None:
        raise ValueError("listener")

    replica_restored.connect(fail)
    try:
        cluster.sample(100)
        cluster.read(100)
    finally:
        replica_restored.disconnect(fail)
    assert news == [("restored", "r1", None)]
    assert cluster.replica().state is STREAMING


def test_listener_may_ask_the_monitor(cluster: Cluster) -> None:
    """Signals are sent outside the lock: a listener in another thread may use the monitor."""
    found: list[Any] = []

    def ask(**kwargs: Any) -> None:
        thread = threading.Thread(
            target=lambda: found.append(cluster.monitor.wait_for(lambda: "free", 0.0))
        )
        thread.start()
        thread.join(5.0)

    replica_restored.connect(ask)
    try:
        cluster.read(100)
    finally:
        replica_restored.disconnect(ask)
    assert found == ["free"]


def test_changes_are_logged(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which replica is out and why, and when it is back."""
    caplog.set_level(logging.INFO, "django_replica_router")
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, OSError("refused"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "Replica 'r1' serves."),
        (
            "WARNING",
            "Replica 'r1' does not serve: cannot be connected to, or does not answer. refused",
        ),
    ]


# What requests ask


def test_sample_has_the_replicas_looked_at(cluster: Cluster) -> None:
    """Each new position of the primary is compared with the replicas' at once."""
    cluster.sample(100)
    assert cluster.woken() == ["r1", "r2"]


def test_wanted_position_has_those_looked_at_that_lack_it(cluster: Cluster) -> None:
    """Only replicas that are not known to have the position are looked at."""
    cluster.sample(100)
    cluster.read(100, "r1")
    cluster.read(50, "r2")
    cluster.woken()
    cluster.monitor.want(80, 0.5)
    assert cluster.woken() == ["r2"]
    cluster.monitor.want(101, 0.0)
    assert cluster.woken() == ["r1", "r2"]


def test_highest_wanted_position_counts(cluster: Cluster) -> None:
    """A lower position that is wanted later does not replace the higher one."""
    cluster.monitor.want(80, 0.5)
    assert cluster.monitor.wanted == Wanted(80, 999.5)
    cluster.now += 1.0
    cluster.monitor.want(70, 0.0)
    assert cluster.monitor.wanted == Wanted(80, 999.5)
    cluster.monitor.want(90, 0.25)
    assert cluster.monitor.wanted == Wanted(90, 1000.75)


def test_position_is_as_old_as_anybody_has_told(cluster: Cluster) -> None:
    """A token taken anew for an old position does not make the position young.

    Nor is a lower position younger; of a higher one nothing is known but what its token tells.
    """
    want = cluster.monitor.want
    assert want(80, 0.5) == 0.5
    cluster.now += 1.0
    assert want(80, 0.0) == 1.5
    assert want(70, 0.25) == 1.5
    assert want(80, 4.0) == 4.0
    assert want(90, 0.25) == 0.25


@pytest.mark.parametrize(
    ("first", "second", "age", "within", "expected"),
    [
        ((STREAMING, 0.1), (STREAMING, 5.0), 0.0, 0.1, True),
        ((STREAMING, 0.1), (STREAMING, 5.0), 0.0, 0.09, False),
        ((STREAMING, 5.0), (STREAMING, 0.1), 0.0, 0.1, True),
        ((STREAMING, 5.0), (STREAMING, 5.0), 4.9, 0.1, True),
        ((STREAMING, 5.0), (STREAMING, 5.0), 4.8, 0.1, False),
        ((ReplicaState.UNREACHABLE, 0.0), (STREAMING, 5.0), 0.0, 0.1, False),
        ((ReplicaState.UNKNOWN, 0.0), (ReplicaState.AHEAD, 0.0), 9.0, 9.0, False),
    ],
)
def test_catching_up_is_expected_by_experience(
    cluster: Cluster,
    first: tuple[ReplicaState, float],
    second: tuple[ReplicaState, float],
    age: float,
    within: float,
    expected: bool,
) -> None:
    """Waiting pays where some replica in service usually has a position of that age so soon."""
    cluster.sample(100)
    for alias, (state, catch_up) in (("r1", first), ("r2", second)):
        cluster.read(50, alias, state=state, catch_up=catch_up)
    assert cluster.monitor.expects(age, within) is expected


def test_what_was_looked_at_since_then_is_known(cluster: Cluster) -> None:
    """A look counts from its moment on, for the replicas that are in service."""
    cluster.sample(100)
    cluster.read(100, "r1")
    cluster.now += 1.0
    cluster.read(100, "r2")
    replicas = cluster.monitor.replicas()
    assert cluster.monitor.has_looked_since(1000.0, replicas)
    assert not cluster.monitor.has_looked_since(1000.5, replicas)
    assert cluster.monitor.has_looked_since(1000.5, replicas[1:])
    assert cluster.monitor.has_looked_since(1000.5, [])
    cluster.monitor.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.now += 1.0
    cluster.read(100, "r2")
    assert cluster.monitor.has_looked_since(1001.5, cluster.monitor.replicas())


@pytest.mark.parametrize(
    ("age", "max_lag", "expected"),
    [(0.0, 10.0, []), (2.5, 10.0, []), (2.6, 10.0, ["default"]), (0.1, 0.0, ["default"])],
)
def test_primary_is_sampled_where_the_last_sample_proves_too_little(
    cluster: Cluster, age: float, max_lag: float, expected: list[str]
) -> None:
    """A sample older than a quarter of the lag that is allowed is renewed at once."""
    cluster.sample(100)
    cluster.woken()
    cluster.now += age
    cluster.monitor.refresh(max_lag)
    assert cluster.woken() == expected


def test_primary_is_sampled_where_it_never_was(cluster: Cluster) -> None:
    """Before the first sample any request asks for one."""
    cluster.monitor.refresh(10.0)
    assert cluster.woken() == ["default"]


def test_replica_that_failed_a_request_is_looked_at_at_once(
    cluster: Cluster, news: list[Any]
) -> None:
    """Reporting a failure takes the replica out, tells it, and has it looked at."""
    cluster.sample(100)
    cluster.read(100)
    cluster.woken()
    news.clear()
    cluster.monitor.report("r1", OSError("refused"))
    assert cluster.replica().state is ReplicaState.UNREACHABLE
    assert cluster.woken() == ["r1"]
    assert news == [("lost", "r1", ReplicaState.UNREACHABLE)]


def test_server_that_fails_is_given_time(cluster: Cluster) -> None:
    """While looks at a server fail, nobody hurries the next one; stopping does."""
    poller = cluster.monitor._pollers["r1"]
    poller._failures = 1
    cluster.sample(100)
    cluster.monitor.want(50, 0.0)
    cluster.monitor.report("r1", OSError("refused"))
    assert cluster.woken() == ["r2"]
    cluster.monitor.stop()
    assert cluster.woken() == ["default", "r1", "r2"]


def test_monitor_knows_whom_it_serves(cluster: Cluster) -> None:
    """Another list of replicas, another order or another interval wants another monitor."""
    monitor = cluster.monitor
    assert monitor.serves(("r1", "r2"), INTERVAL)
    assert monitor.serves(["r1", "r2"], INTERVAL)
    assert not monitor.serves(("r1",), INTERVAL)
    assert not monitor.serves(("r2", "r1"), INTERVAL)
    assert not monitor.serves(("r1", "r2", "r3"), INTERVAL)
    assert not monitor.serves(("r1", "r2"), 0.5)


# Waiting


def test_wait_ends_at_once_where_there_is_nothing_to_wait_for(cluster: Cluster) -> None:
    """What is found by the first look is returned, without any wait, also with no time at all."""
    for timeout in (60.0, 0.0, -1.0):
        looks: list[int] = []

        def look(looks: list[int] = looks) -> str:
            looks.append(1)
            return "found"

        assert cluster.monitor.wait_for(look, timeout) == "found"
        assert len(looks) == 1


@pytest.mark.parametrize("found", [False, 0, ""], ids=repr)
def test_anything_but_none_ends_the_wait(cluster: Cluster, found: Any) -> None:
    """A look may find something false, and that ends the wait as well."""
    assert cluster.monitor.wait_for(lambda: found, 60.0) is found


@pytest.mark.parametrize("timeout", [0.0, 0.001])
def test_wait_in_vain_ends_with_its_time(cluster: Cluster, timeout: float) -> None:
    """After the time-out there is a last look, and then None."""
    looks: list[int] = []
    assert cluster.monitor.wait_for(lambda: looks.append(1), timeout) is None
    assert len(looks) >= 1


def test_last_look_after_the_time_out_counts(cluster: Cluster) -> None:
    """What is there when the time is over is found."""
    answers = iter([None, "late"])
    assert cluster.monitor.wait_for(lambda: next(answers, "late"), 0.001) == "late"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((100, STREAMING), (100, STREAMING), True),
        ((101, STREAMING), (500, STREAMING), True),
        ((100, STREAMING), (99, STREAMING), False),
        ((100, STREAMING), (0, ReplicaState.UNREACHABLE), True),
        ((0, ReplicaState.AHEAD), (0, ReplicaState.TIMELINE), True),
        ((100, STREAMING), (0, ReplicaState.UNKNOWN), False),
    ],
)
def test_all_replicas_in_service_are_waited_for(
    cluster: Cluster,
    first: tuple[int, ReplicaState],
    second: tuple[int, ReplicaState],
    expected: bool,
) -> None:
    """A position has arrived where no replica that serves lacks it; the others do not matter."""
    cluster.sample(100)
    for alias, (lsn, state) in (("r1", first), ("r2", second)):
        cluster.read(lsn, alias, state=state)
    assert cluster.monitor.wait_for_all(100, 0.001) is expected
    assert cluster.monitor.wanted.lsn == 100


def test_who_reads_does_not_wait_for_a_replica_that_is_too_old_to_serve(cluster: Cluster) -> None:
    """One that is delayed by hours would keep every response back."""
    cluster.sample(100, at=1000.0)
    cluster.read(100, "r1")
    cluster.sample(200, at=1005.0)
    cluster.read(200, "r2")
    cluster.now = 1005.0
    for max_lag, expected in ((10.0, False), (1.0, True)):
        assert cluster.monitor.wait_for_all(200, 0.001, max_lag) is expected


@pytest.mark.parametrize("event", ["read", "sample"])
def test_wait_ends_with_the_news(cluster: Cluster, event: str) -> None:
    """Every reading and every sample wakes all who wait, each of whom looks again."""
    cluster.sample(100)
    cluster.read(100)
    found: list[Any] = []
    waiting = threading.Semaphore(0)

    def look() -> int | None:
        waiting.release()
        if event == "read":
            return lsn if (lsn := cluster.replica().watermark) > 100 else None
        return timeline if (timeline := cluster.monitor.timeline) == 2 else None

    threads = [
        threading.Thread(target=lambda: found.append(cluster.monitor.wait_for(look, 60.0)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=5.0)
    # publish_... takes the lock, which a waiter gives away only when it waits.
    cluster.read(101) if event == "read" else cluster.sample(110, timeline=2)
    for thread in threads:
        thread.join(5.0)
    assert found == ([101] * 3 if event == "read" else [2] * 3)


def test_error_of_a_look_reaches_who_waits(cluster: Cluster) -> None:
    """A look that fails does not hang, and leaves the monitor usable."""

    def fail() -> None:
        raise ValueError("look")

    with pytest.raises(ValueError, match="look"):
        cluster.monitor.wait_for(fail, 60.0)
    cluster.read(100)


# What a look at a replica means

SYSTEM = "7000000000000000001"
PRIMARY_LIFE = ("start", "10.0.0.1", 5432)
LIFE = ("start", "10.0.0.2", 5432)
OTHER_LIFE = ("start", "10.0.0.3", 5432)
MINE = ServerIdentity(SYSTEM, LIFE)
FOREIGN = ServerIdentity("7000000000000000002", LIFE)
HEALTHY = Examination(is_paused=False, delay=0.0, has_receiver=True, timeline=1)


class Replies:
    """What the replica "r1" says of itself, to a poller which is run by hand."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.poller = cluster.monitor._pollers["r1"]
        self.poller.identity = MINE
        self.answer = ReplicaAnswer(True, 100, LIFE)
        self.system = SYSTEM
        self.examination = HEALTHY
        self.examined = 0
        self.takes = 0.0
        cluster.monitor._primary_poller.identity = ServerIdentity(SYSTEM, PRIMARY_LIFE)
        monkeypatch.setattr("django_replica_router.postgres.ask_replica", self._ask)
        monkeypatch.setattr("django_replica_router.postgres.examine_replica", self._examine)
        monkeypatch.setattr("django_replica_router.postgres.identify", self._identify)

    def _ask(self, connection: Any) -> ReplicaAnswer:
        self.cluster.now += self.takes
        return self.answer

    def _identify(self, connection: Any) -> ServerIdentity:
        return ServerIdentity(self.system, self.answer.life, self.answer.in_recovery)

    def _examine(self, connection: Any) -> Examination:
        self.examined += 1
        return self.examination

    def look(self) -> ReplicaState:
        """Take one look, and return the state that it gives."""
        self.poller.look(None)  # type: ignore[arg-type]
        return self.cluster.replica().state


@pytest.fixture
def replies(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Replies:
    """Return the answers of a replica that is in perfect health."""
    return Replies(cluster, monkeypatch)


def test_healthy_replica_streams(cluster: Cluster, replies: Replies) -> None:
    """A standby of the same cluster and timeline that tells its position serves."""
    assert replies.look() is ReplicaState.UNKNOWN  # the primary was not asked yet
    cluster.sample(100)
    cluster.now += 1.0
    cluster.sample(100)
    assert replies.look() is STREAMING
    assert cluster.replica() == Replica("r1", STREAMING, 100, 0.0)
    assert cluster.monitor.readings["r1"].read_at == cluster.now


@pytest.mark.parametrize("in_recovery", [True, False])
@pytest.mark.parametrize("replayed", [None, 0, 100])
@pytest.mark.parametrize("identity", [None, MINE, FOREIGN], ids=["unknown", "mine", "foreign"])
@pytest.mark.parametrize("timeline", [0, 1, 2])
@pytest.mark.parametrize("has_sample", [True, False])
def test_unknown_is_never_healthy(
    cluster: Cluster,
    replies: Replies,
    in_recovery: bool,
    replayed: int | None,
    identity: ServerIdentity | None,
    timeline: int,
    has_sample: bool,
) -> None:
    """A replica streams only where all that is asked is known and right, and else tells why not."""
    if has_sample:
        cluster.sample(100)
    replies.poller.identity = identity
    replies.answer = ReplicaAnswer(in_recovery, replayed, LIFE)
    replies.examination = HEALTHY._replace(timeline=timeline)
    faults = [
        (not has_sample, ReplicaState.UNKNOWN),
        (identity != MINE, ReplicaState.FOREIGN),
        (not in_recovery, ReplicaState.PROMOTED),
        (timeline != 1, ReplicaState.TIMELINE),
        (replayed is None, ReplicaState.NO_POSITION),
    ]
    expected = next((state for holds, state in faults if holds), STREAMING)
    assert replies.look() is expected
    assert cluster.replica().watermark == (replayed if expected is STREAMING else -1)


def test_primary_itself_is_told_from_a_promoted_replica(cluster: Cluster, replies: Replies) -> None:
    """An alias that reaches the primary is no replica, and says so."""
    cluster.sample(100)
    replies.answer = ReplicaAnswer(False, 100, PRIMARY_LIFE)
    assert replies.look() is ReplicaState.PRIMARY


def test_pooler_that_leads_to_another_cluster_is_noticed(
    cluster: Cluster, replies: Replies
) -> None:
    """On one connection, the next answer may be of a server that was never asked who it is."""
    cluster.sample(100)
    assert replies.look() is STREAMING
    replies.system = FOREIGN.system
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    assert replies.look() is ReplicaState.FOREIGN


def test_replica_that_stayed_on_the_old_timeline_is_out(cluster: Cluster, replies: Replies) -> None:
    """A replica that has more than the new primary, of the old history, does not serve."""
    cluster.sample(500)
    replies.answer = replies.answer._replace(replayed=500)
    assert replies.look() is STREAMING
    cluster.now += 0.1
    cluster.sample(450, timeline=2)
    for lsn in (460, 499, 500, 501, 900):
        assert replies.look() is not STREAMING
        assert not may_serve(cluster.replica(), Position(2, 460), 10.0)
        cluster.now += 1.0
        cluster.sample(lsn, timeline=2)
    replies.examination = HEALTHY._replace(timeline=2)
    replies.answer = replies.answer._replace(replayed=900)
    assert replies.look() is STREAMING


@pytest.mark.parametrize(
    ("takes", "state"), [(0.0, STREAMING), (1.0, STREAMING), (1.01, ReplicaState.SLOW)]
)
def test_replica_that_takes_too_long_is_out(
    cluster: Cluster, replies: Replies, takes: float, state: ReplicaState
) -> None:
    """An answer that took more than a second is right, but nobody should wait so long for the next."""
    cluster.sample(100)
    replies.takes = takes
    assert replies.look() is state


def test_position_is_of_the_moment_before_it_was_asked_for(
    cluster: Cluster, replies: Replies
) -> None:
    """A reading counts from before the question, since the answer may be as old as that."""
    cluster.sample(100)
    began = cluster.now
    replies.takes = 0.75
    replies.look()
    assert cluster.monitor.readings["r1"].read_at == began


def test_replica_is_examined_at_most_twice_an_interval(cluster: Cluster, replies: Replies) -> None:
    """Close looks for a waiting request do not ask all questions each time; another server is asked all."""
    cluster.sample(100)
    for _ in range(10):
        replies.look()
        cluster.now += 0.01
    assert replies.examined == 1
    cluster.now += 0.5
    replies.look()
    assert replies.examined == 2
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    replies.look()
    assert replies.examined == 3


def test_new_life_forgets_the_old_one(cluster: Cluster, replies: Replies) -> None:
    """A server that was started anew, or another one, keeps nothing of what was known."""
    cluster.sample(100)
    replies.look()
    assert cluster.replica().watermark == 100
    replies.answer = ReplicaAnswer(True, 60, OTHER_LIFE)
    assert replies.look() is STREAMING
    assert cluster.replica() == Replica("r1", STREAMING, 60, math.inf)
    assert replies.poller.life == OTHER_LIFE


def test_servers_that_answer_in_turn_are_noticed(cluster: Cluster, replies: Replies) -> None:
    """A life that is over and comes back belongs to another server behind the same alias."""
    cluster.sample(100)
    states = []
    for life in (LIFE, OTHER_LIFE, LIFE, LIFE):
        replies.answer = replies.answer._replace(life=life)
        states.append(replies.look())
    assert states == [STREAMING, STREAMING, ReplicaState.BALANCED, ReplicaState.BALANCED]


def test_request_that_met_another_server_is_believed(cluster: Cluster, replies: Replies) -> None:
    """Where a request and the next look meet different servers, the alias is several."""
    cluster.sample(100)
    replies.look()
    cluster.woken()
    assert cluster.monitor.is_same_server("r1", LIFE)
    assert cluster.woken() == []
    assert not cluster.monitor.is_same_server("r1", OTHER_LIFE)
    assert cluster.woken() == ["r1"]
    assert replies.look() is ReplicaState.BALANCED


def test_request_that_met_a_server_before_its_restart_proves_nothing(
    cluster: Cluster, replies: Replies
) -> None:
    """Its report may come late: the alias is one server nevertheless."""
    cluster.sample(100)
    assert replies.look() is STREAMING
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    replies.look()
    assert not cluster.monitor.is_same_server("r1", LIFE)
    replies.look()
    assert cluster.replica().state is not ReplicaState.BALANCED


def test_restart_that_a_request_noticed_first_is_a_restart(
    cluster: Cluster, replies: Replies
) -> None:
    """Where the next look meets the server that the request has met, it was started anew."""
    cluster.sample(100)
    replies.look()
    assert not cluster.monitor.is_same_server("r1", OTHER_LIFE)
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    assert replies.look() is STREAMING
    assert cluster.monitor.is_same_server("r1", OTHER_LIFE)


@pytest.mark.parametrize(
    ("examination", "remark"),
    [
        (HEALTHY, ""),
        (HEALTHY._replace(is_paused=True), "its replay is paused"),
        (HEALTHY._replace(has_receiver=False), "it receives no WAL"),
        (HEALTHY._replace(delay=2.5), "it delays replay by 2.5 s"),
        (
            Examination(True, 60.0, False, 1),
            "its replay is paused, it receives no WAL, it delays replay by 60 s",
        ),
    ],
    ids=["healthy", "paused", "cut", "delayed", "all"],
)
def test_what_is_unusual_is_logged_and_takes_no_replica_out(
    cluster: Cluster,
    replies: Replies,
    caplog: pytest.LogCaptureFixture,
    examination: Examination,
    remark: str,
) -> None:
    """A paused, cut or delayed replica is told in the log once, and serves while it is young enough."""
    cluster.sample(100)
    replies.look()
    caplog.clear()
    replies.examination = examination
    for _ in range(3):
        cluster.now += 1.0
        assert replies.look() is STREAMING
    assert caplog.messages == ([f"Replica 'r1': {remark}."] if remark else [])
    caplog.clear()
    replies.examination = HEALTHY
    cluster.now += 1.0
    replies.look()
    assert caplog.messages == (["Replica 'r1': nothing unusual any more."] if remark else [])


@pytest.mark.parametrize("before", [ReplicaState.UNKNOWN, ReplicaState.SILENT])
def test_what_is_unusual_about_a_replica_that_comes_into_service_is_logged(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, before: ReplicaState
) -> None:
    """At the start, or after it was lost for a moment: its state is news, and so is what is unusual."""
    cluster.sample(100)
    cluster.monitor.lose("r1", before, "")
    caplog.clear()
    for _ in range(2):
        cluster.read(100, remark="its replay is paused")
    assert caplog.messages == ["Replica 'r1': its replay is paused."]
    caplog.clear()
    cluster.read(100, state=ReplicaState.TIMELINE, remark="it receives no WAL")
    text = f"Replica 'r1' does not serve: {ReplicaState.TIMELINE.value}. it receives no WAL"
    assert caplog.messages == [text]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError("refused"), ReplicaState.UNREACHABLE),
        (psycopg.OperationalError("refused"), ReplicaState.UNREACHABLE),
        (psycopg.errors.ConnectionTimeout("timed out"), ReplicaState.SILENT),
    ],
    ids=["system", "driver", "timeout"],
)
def test_failed_look_takes_the_replica_out(
    cluster: Cluster, replies: Replies, error: Exception, state: ReplicaState
) -> None:
    """A look that fails says whether the replica refuses or is silent."""
    cluster.sample(100)
    replies.look()
    replies.poller.failed(error)
    assert cluster.replica().state is state


# How often a replica is looked at


def test_replica_is_looked_at_at_leisure_where_nobody_waits(cluster: Cluster) -> None:
    """Between two looks lies the interval, also where everybody has what they want."""
    poller = cluster.monitor._pollers["r1"]
    assert poller.next_delay() == INTERVAL
    cluster.sample(100)
    cluster.read(100)
    assert poller.next_delay() == INTERVAL
    cluster.monitor.want(100, 0.0)
    assert poller.next_delay() == INTERVAL


def test_replica_is_looked_at_closely_while_somebody_waits(cluster: Cluster) -> None:
    """The delay begins at half a millisecond, doubles up to 20, and is the interval in the end."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.want(100, 0.0)
    delays = [poller.next_delay() for _ in range(8)]
    assert delays == [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.02, 0.02]
    cluster.read(100)
    poller._follow_chase(100)
    assert poller.next_delay() == INTERVAL
    cluster.monitor.want(200, 0.0)
    assert poller.next_delay() == 0.0005


def test_long_chase_gets_rarer(cluster: Cluster) -> None:
    """The longer a replica lags, the rarer the looks, up to the interval."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.want(100, 0.0)
    for _ in range(12):
        poller.next_delay()
    cluster.now += 10.0
    assert poller.next_delay() == pytest.approx(0.2)
    cluster.now += 1000.0
    assert poller.next_delay() == INTERVAL


def chase(cluster: Cluster, usually: float, seconds: float) -> list[tuple[float, float]]:
    """Return when a replica is looked at, and after which delay, for a position it does not reach.

    Args:
        cluster: at leisure.
        usually: seconds that the position before has taken.
        seconds: how long to watch; moments are those since the position was written.
    """
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.want(100, 0.0)
    poller.next_delay()
    cluster.now += usually
    poller._follow_chase(100)
    cluster.read(100)
    cluster.monitor.want(200, 0.0)
    began, looks = cluster.now, []
    while cluster.now - began < seconds:
        delay = poller.next_delay()
        cluster.now += delay
        looks.append((cluster.now - began, delay))
        poller._follow_chase(150)
    return looks


@pytest.mark.parametrize("usually", [0.02, 0.05, 0.5, 5.0])
def test_replica_is_looked_at_most_closely_when_the_position_is_due(
    cluster: Cluster, usually: float
) -> None:
    """However late or early it is, who waits is kept for a quarter of that at most, or a thousandth.

    It is due when it has taken as long as the one before.
    """
    looks = chase(cluster, usually, 2 * usually)
    for at, delay in looks:
        assert (
            delay <= max(0.25 * abs(usually - at), 0.001 * usually, 0.0005) + 1e-9 or at < usually
        )
    first = next(delay for at, delay in looks if at >= usually)
    assert first <= max(0.001 * usually, 0.0005)


@pytest.mark.parametrize("usually", [0.02, 0.05, 0.5, 5.0])
def test_replica_is_not_loaded_by_looks(cluster: Cluster, usually: float) -> None:
    """Beside fifty looks a second, thirty are taken for each position before it is due.

    As many are taken afterwards where it is late.
    """
    in_time = chase(cluster, usually, usually)
    late = chase(Cluster(), usually, 3 * usually)
    assert len(in_time) <= 50 * usually + 30
    assert len(late) <= 50 * 3 * usually + 60


def test_looks_get_rarer_until_the_position_comes_near(cluster: Cluster) -> None:
    """They begin closely, for it may be there at once."""
    looks = [delay for at, delay in chase(cluster, 0.5, 0.5) if at < 0.35]
    assert looks[:5] == [0.0005, 0.001, 0.002, 0.004, 0.008]
    assert set(looks[6:]) == {0.02}


@pytest.mark.parametrize("state", BAD)
def test_replica_in_bad_health_is_not_chased(cluster: Cluster, state: ReplicaState) -> None:
    """Nobody waits for a replica that serves nobody."""
    cluster.sample(100)
    cluster.read(90, state=state)
    cluster.monitor.want(100, 0.0)
    assert cluster.monitor._pollers["r1"].next_delay() == INTERVAL


def test_time_to_catch_up_is_remembered(cluster: Cluster) -> None:
    """What a position took from its writing to its replay is what the next one is expected to take."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.want(100, 0.25)
    poller.next_delay()
    cluster.now += 0.5
    poller._follow_chase(95)
    assert poller._catch_up == 1.5  # as long again as it is overdue
    cluster.now += 0.25
    poller._follow_chase(100)
    assert poller._catch_up == 1.0
    cluster.monitor.want(200, 0.125)
    poller._follow_chase(200)  # there before anybody looked
    assert poller._catch_up == 0.125


def test_chase_ends_with_the_history_that_it_was_of(cluster: Cluster) -> None:
    """A position that the new timeline may never have is not waited for, nor does it count as slow."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.want(10**9, 0.0)
    poller.next_delay()
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    cluster.now += 60.0
    cluster.sample(200, timeline=2)
    cluster.read(190)
    poller._follow_chase(190)
    cluster.monitor.want(200, 0.0)
    assert poller.next_delay() == 0.0005
    cluster.now += 0.5
    poller._follow_chase(200)
    assert poller._catch_up == 0.5


# The threads' loop, run by hand


class ScriptedPoller(Poller):
    """A poller that does not look at any server, and whose waits end at once."""

    def __init__(self, monitor: Monitor, script: list[Exception | None]) -> None:
        super().__init__(monitor, "r1")
        self.script = script
        self.delays: list[float] = []
        self.errors: list[Exception] = []
        self._wake: Any = SimpleNamespace(clear=lambda: None, wait=self._wait, set=lambda: None)

    def _wait(self, delay: float) -> None:
        assert self.busy_since is None
        self.delays.append(delay)
        if not self.script:
            self.monitor.stopped = True

    def _connect(self) -> Any:
        self._connection = self._connection or self.open()
        return self._connection

    def identify(self, connection: Any) -> None:
        pass

    def open(self) -> Any:
        """Return what stands for a connection."""
        return SimpleNamespace(close=lambda: None)

    def look(self, connection: Any) -> None:
        assert self.busy_since == self.monitor.clock()
        error = self.script.pop(0)
        if error is not None:
            raise error

    def failed(self, error: Exception) -> None:
        self.errors.append(error)


def rounded_up(delays: Sequence[float], expected: Sequence[float]) -> bool:
    """Tell whether each delay is the expected one but for a jitter of a fifth less."""
    return len(delays) == len(expected) and all(
        0.8 * full <= delay <= full for delay, full in zip(delays, expected, strict=True)
    )


def test_failing_server_is_looked_at_more_and_more_rarely(cluster: Cluster) -> None:
    """Looks that fail back off exponentially, up to a quarter of a minute, with jitter."""
    errors: list[Exception | None] = [OSError(str(number)) for number in range(7)]
    poller = ScriptedPoller(cluster.monitor, [*errors, None, OSError("again")])
    poller.run()
    assert poller.errors == [*errors, poller.errors[-1]]
    assert rounded_up(poller.delays, [1, 2, 4, 8, 15, 15, 15, 1, 1])


def test_look_that_is_in_the_way_of_replay_is_repeated(cluster: Cluster) -> None:
    """A standby that cancels a look by a recovery conflict is well; one that does so again may not be."""
    conflicts = [psycopg.errors.SerializationFailure(str(number)) for number in range(3)]
    poller = ScriptedPoller(cluster.monitor, [conflicts[0], None, *conflicts[1:]])
    poller.run()
    assert poller.errors == [conflicts[2]]
    assert rounded_up(poller.delays, [INTERVAL] * 2)


def test_server_that_was_down_for_a_day_is_still_looked_at(cluster: Cluster) -> None:
    """However often it has failed, the thread goes on, and sees it come back."""
    poller = ScriptedPoller(cluster.monitor, [*[OSError("x")] * 3000, None])
    poller.run()
    assert not poller.has_failed
    assert len(poller.delays) == 3001


def test_looks_are_spread_in_time(cluster: Cluster) -> None:
    """The pause between two looks is never twice the same, nor longer than the interval."""
    poller = ScriptedPoller(cluster.monitor, [None] * 20)
    poller.run()
    assert rounded_up(poller.delays, [INTERVAL] * 20)
    assert len(set(poller.delays)) > 10


def test_looks_leave_the_random_numbers_of_the_site_alone(cluster: Cluster) -> None:
    """Jitter draws from numbers of its own: the threads disturb nobody who has seeded ``random``."""
    before = random.getstate()
    ScriptedPoller(cluster.monitor, [None, OSError("x"), None]).run()
    assert random.getstate() == before


def test_connection_is_closed_after_a_failure_and_at_the_end(cluster: Cluster) -> None:
    """A connection on which a look has failed is not used again, and none is left open."""
    opened: list[str] = []

    class CountingPoller(ScriptedPoller):
        def open(self) -> Any:
            name = f"connection {len(opened)}"
            opened.append(name)
            return SimpleNamespace(close=lambda: opened.append(f"close {name}"))

    poller = CountingPoller(cluster.monitor, [None, OSError("x"), None, None])
    poller.run()
    assert opened == ["connection 0", "close connection 0", "connection 2", "close connection 2"]
    assert poller._connection is None


# The monitors of a process


class IdleMonitor(Monitor):
    """A monitor that only notes that it was started and stopped."""

    made: list[IdleMonitor]

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.events: list[str] = []
        self.made.append(self)

    def start(self) -> None:
        self.events.append("start")

    def stop(self, timeout: float = 1.0) -> None:
        self.events.append("stop")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[IdleMonitor]:
    """Return the monitors that were made, in a registry of the test's own."""
    IdleMonitor.made = []
    monkeypatch.setattr(registry, "_registry", registry._Registry(IdleMonitor))
    monkeypatch.setattr(registry, "_inherited", None)
    return IdleMonitor.made


def test_monitor_is_made_when_it_is_needed(made: list[IdleMonitor]) -> None:
    """A monitor is started by the first who asks, and found by the others."""
    assert registry.find_monitor("default") is None
    monitor = registry.get_monitor("default", ("r1",), 1.0)
    assert registry.get_monitor("default", ("r1",), 1.0) is monitor
    assert registry.find_monitor("default") is monitor
    other = registry.get_monitor("other", ("a1",), 1.0)
    assert made == [monitor, other]
    assert [monitor.events for monitor in made] == [["start"], ["start"]]


def test_threads_that_ask_at_once_get_one_monitor(made: list[IdleMonitor]) -> None:
    """Eight threads that ask at the same time do not make two monitors."""
    barrier = threading.Barrier(8)
    found: list[Monitor] = []

    def ask() -> None:
        barrier.wait()
        found.append(registry.get_monitor("default", ("r1",), 1.0))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == made * 8


@pytest.mark.parametrize(("replicas", "interval"), [(("r1", "r2"), 1.0), (("r1",), 0.5)])
def test_monitor_follows_the_settings(
    made: list[IdleMonitor], replicas: tuple[str, ...], interval: float
) -> None:
    """When the settings change, the old monitor is stopped and a new one started."""
    registry.get_monitor("default", ("r1",), 1.0)
    new = registry.get_monitor("default", replicas, interval)
    assert [monitor.events for monitor in made] == [["start", "stop"], ["start"]]
    assert registry.find_monitor("default") is new


def test_all_monitors_are_stopped_together(made: list[IdleMonitor]) -> None:
    """After stop_monitors() none is left, and the next who asks gets a new one."""
    first = registry.get_monitor("default", ("r1",), 1.0)
    registry.get_monitor("other", ("a1",), 1.0)
    registry.stop_monitors()
    assert [monitor.events for monitor in made] == [["start", "stop"]] * 2
    assert registry.find_monitor("default") is None
    assert registry.get_monitor("default", ("r1",), 1.0) is not first


def test_child_process_begins_anew(made: list[IdleMonitor]) -> None:
    """After a fork the parent's monitors are left alone, also where a lock was held at the fork."""
    monitor = registry.get_monitor("default", ("r1",), 1.0)
    with registry._registry.lock:
        registry._after_fork()
        assert registry.find_monitor("default") is None
        assert registry.get_monitor("default", ("r1",), 1.0) is not monitor
    assert made[0].events == ["start"]


def test_maker_of_monitors_can_be_replaced(made: list[IdleMonitor]) -> None:
    """Tests of a site may have monitors of another kind, and put back what was before."""
    registry.get_monitor("default", ("r1",), 1.0)

    class Other(IdleMonitor):
        pass

    before: Callable[..., Monitor] = registry.replace_factory(Other)
    assert before is IdleMonitor
    assert made[0].events == ["start", "stop"]
    assert type(registry.get_monitor("default", ("r1",), 1.0)) is Other
    assert registry.replace_factory(before) is Other
    assert type(registry.get_monitor("default", ("r1",), 1.0)) is IdleMonitor


def test_reading_is_nothing_by_default() -> None:
    """A reading that nobody has filled in is of no health, no position and no time."""
    assert Reading() == (ReplicaState.UNKNOWN, -1, -math.inf, -math.inf, 0.0, "", -math.inf)
