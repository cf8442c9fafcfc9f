"""How often a replica is looked at, and the threads that do so."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import registry
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.pollers import Poller
from django_replica_router.replicas.readings import Reading
from tests.monitored import BAD, INTERVAL, Cluster, cluster, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# How often a replica is looked at


def test_replica_is_looked_at_at_leisure_where_nobody_waits(cluster: Cluster) -> None:
    """Between two looks lies the interval, also where everybody has what they want."""
    poller = cluster.monitor._pollers["r1"]
    assert poller.next_delay() == INTERVAL
    cluster.sample(100)
    cluster.read(100)
    assert poller.next_delay() == INTERVAL
    cluster.monitor.waiting.want(100, 0.0)
    assert poller.next_delay() == INTERVAL


def test_replica_is_looked_at_closely_while_somebody_waits(cluster: Cluster) -> None:
    """The delay begins at half a millisecond, doubles up to 20, and is the interval in the end."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.waiting.want(100, 0.0)
    delays = [poller.next_delay() for _ in range(8)]
    assert delays == [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.02, 0.02]
    cluster.read(100)
    poller._follow_chase(100)
    assert poller.next_delay() == INTERVAL
    cluster.monitor.waiting.want(200, 0.0)
    assert poller.next_delay() == 0.0005


def test_long_chase_gets_rarer(cluster: Cluster) -> None:
    """The longer a replica lags, the rarer the looks, up to the interval."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.waiting.want(100, 0.0)
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
    cluster.monitor.waiting.want(100, 0.0)
    poller.next_delay()
    cluster.now += usually
    poller._follow_chase(100)
    cluster.read(100)
    cluster.monitor.waiting.want(200, 0.0)
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
    cluster.monitor.waiting.want(100, 0.0)
    assert cluster.monitor._pollers["r1"].next_delay() == INTERVAL


def test_time_to_catch_up_is_remembered(cluster: Cluster) -> None:
    """What a position took from its writing to its replay is what the next one is expected to take."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.waiting.want(100, 0.25)
    poller.next_delay()
    cluster.now += 0.5
    poller._follow_chase(95)
    assert poller._catch_up == 1.5  # as long again as it is overdue
    cluster.now += 0.25
    poller._follow_chase(100)
    assert poller._catch_up == 1.0
    cluster.monitor.waiting.want(200, 0.125)
    poller._follow_chase(200)  # there before anybody looked
    assert poller._catch_up == 0.125


def test_chase_ends_with_the_history_that_it_was_of(cluster: Cluster) -> None:
    """A position that the new timeline may never have is not waited for, nor does it count as slow."""
    poller = cluster.monitor._pollers["r1"]
    cluster.sample(100)
    cluster.read(90)
    cluster.monitor.waiting.want(10**9, 0.0)
    poller.next_delay()
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    cluster.now += 60.0
    cluster.sample(200, timeline=2)
    cluster.read(190)
    poller._follow_chase(190)
    cluster.monitor.waiting.want(200, 0.0)
    assert poller.next_delay() == 0.0005
    cluster.now += 0.5
    poller._follow_chase(200)
    assert poller._catch_up == 0.5


# The threads' loop, run by hand


MOST_LOOKS = 10_000


class ScriptedPoller(Poller):
    """A poller that does not look at any server, and whose waits end at once."""

    def __init__(self, monitor: Monitor, script: list[Exception | None]) -> None:
        super().__init__(monitor.answers, monitor.known.looks["r1"])
        self.script = script
        self.delays: list[float] = []
        self.errors: list[Exception] = []
        wake: Any = SimpleNamespace(clear=lambda: None, wait=self._wait, set=lambda: None)
        self.looks.wake = wake

    def _wait(self, delay: float) -> None:
        assert self.looks.busy_since is None
        self.delays.append(delay)
        if not self.script or len(self.delays) > MOST_LOOKS:  # one that goes on for ever is to fail
            self.known.stopped = True

    def _connect(self) -> Any:
        self._connection = self._connection or self.open()
        return self._connection

    def identify(self, connection: Any) -> None:
        pass

    def open(self) -> Any:
        """Return what stands for a connection."""
        return SimpleNamespace(close=lambda: None)

    def look(self, connection: Any) -> None:
        assert self.looks.busy_since == self.known.clock()
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
    assert not poller.looks.failures
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
def made(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[list[IdleMonitor]]:
    """Return the monitors that were made, in a registry of the test's own."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": ["r1"], "other": ["a1"]}}
    IdleMonitor.made = []
    for primary in list(registry._monitors):
        monkeypatch.delitem(registry._monitors, primary)
    monkeypatch.setattr(registry, "_registry", registry._Registry(IdleMonitor))
    monkeypatch.setattr(registry, "_inherited", None)
    yield IdleMonitor.made
    registry._monitors.clear()


def test_monitor_is_made_when_it_is_needed(made: list[IdleMonitor]) -> None:
    """A monitor is started by the first who asks, and found by the others."""
    assert registry.find_monitor("default") is None
    monitor = registry.get_monitor("default")
    assert registry.get_monitor("default") is monitor
    assert registry.find_monitor("default") is monitor
    other = registry.get_monitor("other")
    assert made == [monitor, other]
    assert [monitor.events for monitor in made] == [["start"], ["start"]]


def test_threads_that_ask_at_once_get_one_monitor(made: list[IdleMonitor]) -> None:
    """Eight threads that ask at the same time do not make two monitors."""
    barrier = threading.Barrier(8)
    found: list[Monitor] = []

    def ask() -> None:
        barrier.wait()
        found.append(registry.get_monitor("default"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == made * 8


@pytest.mark.parametrize(
    "changed", [{"CLUSTERS": {"default": ["r1", "r2"]}}, {"INTERVAL": 0.5}, {"MAX_LAG": 2.0}]
)
def test_monitor_follows_the_settings(
    made: list[IdleMonitor], settings: Any, changed: dict[str, Any]
) -> None:
    """When the settings change, the old monitor is stopped and a new one started."""
    registry.get_monitor("default")
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **changed}
    new = registry.get_monitor("default")
    assert [monitor.events for monitor in made] == [["start", "stop"], ["start"]]
    assert registry.find_monitor("default") is new


def test_all_monitors_are_stopped_together(made: list[IdleMonitor]) -> None:
    """After stop_monitors() none is left, and the next who asks gets a new one."""
    first = registry.get_monitor("default")
    registry.get_monitor("other")
    registry.stop_monitors()
    assert [monitor.events for monitor in made] == [["start", "stop"]] * 2
    assert registry.find_monitor("default") is None
    assert registry.get_monitor("default") is not first


def test_child_process_begins_anew(made: list[IdleMonitor]) -> None:
    """After a fork the parent's monitors are left alone, also where a lock was held at the fork."""
    monitor = registry.get_monitor("default")
    with registry._registry.lock:
        registry._after_fork()
        assert registry.find_monitor("default") is None
        assert registry.get_monitor("default") is not monitor
    assert made[0].events == ["start"]


def test_maker_of_monitors_can_be_replaced(made: list[IdleMonitor]) -> None:
    """Tests of a site may have monitors of another kind, and put back what was before."""
    registry.get_monitor("default")

    class Other(IdleMonitor):
        pass

    before: Callable[..., Monitor] = registry.replace_factory(Other)
    assert before is IdleMonitor
    assert made[0].events == ["start", "stop"]
    assert type(registry.get_monitor("default")) is Other
    assert registry.replace_factory(before) is Other
    assert type(registry.get_monitor("default")) is IdleMonitor


def test_reading_is_nothing_by_default() -> None:
    """A reading that nobody has filled in is of no health, no position and no time."""
    nothing = (ReplicaState.UNKNOWN, -1, -math.inf, -math.inf, 0.0, "", -math.inf)
    assert astuple(Reading()) == nothing
