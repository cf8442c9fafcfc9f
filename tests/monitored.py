"""Servers and a clock by hand, for what a monitor knows of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas import registry
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.signals import replica_lost, replica_restored
from django_replica_router.values.tokens import Position

STREAMING = ReplicaState.STREAMING
BAD = [state for state in ReplicaState if state is not STREAMING]
INTERVAL = 1.0


class Cluster:
    """A monitor of two replicas, on a clock that stands still until it is moved."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.now = 1000.0
        self.monitor = Monitor("default", ["r1", "r2"], interval, clock=lambda: self.now)

    def sample(self, lsn: int, timeline: int = 1, *, at: float | None = None) -> None:
        """Let the primary say where it is."""
        moment = self.now if at is None else at
        self.monitor.answers.publish_sample(Sample(moment, Position(timeline, lsn)))

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
        self.monitor.answers.publish_reading(alias, reading)

    def replica(self, alias: str = "r1") -> Replica:
        """Return what is known of a replica now."""
        return next(replica for replica in self.monitor.health.replicas() if replica.alias == alias)

    def watch(self, times: int) -> list[float]:
        """Let the watcher act so many times; return how long it has waited each time, and at last."""
        ticks = Ticks(times)
        self.monitor._watcher._ended = ticks  # type: ignore[assignment]
        self.monitor._watcher.run()
        return ticks.waited

    def woken(self) -> list[str]:
        """Return the aliases of servers that are to be looked at now, and let them sleep again."""
        known = self.monitor.known
        every = [known.primary_looks, *known.looks.values()]
        found = [looks.alias for looks in every if looks.wake.is_set()]
        for looks in every:
            looks.wake.clear()
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
