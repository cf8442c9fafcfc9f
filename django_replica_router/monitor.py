"""What this process knows of the servers: threads that look, and the readings they leave."""

from __future__ import annotations

import atexit
import logging
import math
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg

from django_replica_router import postgres, signals
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.tokens import Position

logger = logging.getLogger("django_replica_router")

T = TypeVar("T")

_CONNECT_TIMEOUT = 2.0
_FIRST_CHASE_DELAY = 0.0005
_LAST_CHASE_DELAY = 0.02
_MAX_BACKOFF = 15.0
_SAMPLES = 1024


class Sample(NamedTuple):
    """The primary's position, and a moment at which it was not yet passed.

    Args:
        at: ``time.monotonic()`` just before the primary was asked: whatever was committed before
            lies at or before the position.
        position: the position.
    """

    at: float
    position: Position


class Wanted(NamedTuple):
    """The highest position that somebody waits for.

    Args:
        lsn: the position.
        written_at: about when it was written.
    """

    lsn: int = -1
    written_at: float = -math.inf


class Reading(NamedTuple):
    """What one look at a replica has told.

    Args:
        state: its health.
        watermark: the highest LSN it was seen to have replayed, or -1.
        fresh_at: moment of the newest sample of the primary that it has replayed.
        read_at: moment of the look.
        catch_up: seconds from a write to its replay, the last time that a token told.
    """

    state: ReplicaState = ReplicaState.UNKNOWN
    watermark: int = -1
    fresh_at: float = -math.inf
    read_at: float = -math.inf
    catch_up: float = 0.0


class _Poller(threading.Thread):
    """A thread that looks at one server again and again, on a connection of its own."""

    def __init__(self, monitor: Monitor, alias: str) -> None:
        super().__init__(name=f"replica-router-monitor-{alias}", daemon=True)
        self.monitor = monitor
        self.alias = alias
        self.identity: postgres.ServerIdentity | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._wake = threading.Event()
        self._failures = 0

    def poke(self) -> None:
        """Have the next look taken now, unless the server is given time to recover."""
        if not self._failures:
            self._wake.set()

    def end(self) -> None:
        """Have the thread look whether it should stop."""
        self._wake.set()

    def run(self) -> None:
        while not self.monitor.stopped:
            self._wake.clear()  # before the look: a poke during it asks for another
            try:
                self.look()
                self._failures = 0
                delay = self.next_delay()
            except Exception as error:  # a server may fail in any way, and the thread goes on
                self._failures += 1
                self._close()
                self.failed(error)
                delay = min(self.monitor.interval * 2 ** (self._failures - 1), _MAX_BACKOFF)
            # Jitter, so that many processes do not look at the same moment.
            self._wake.wait(delay * random.uniform(0.8, 1.0))  # noqa: S311 - no secret
        self._close()

    def connection(self) -> psycopg.Connection[Any]:
        """Return the connection, opened anew where it is gone."""
        if self._connection is None or self._connection.closed:
            self._connection = postgres.connect(self.alias, _CONNECT_TIMEOUT)
            self.identity = postgres.identify(self._connection)
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def look(self) -> None:
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        raise NotImplementedError

    def next_delay(self) -> float:
        return self.monitor.interval


class _PrimaryPoller(_Poller):
    def look(self) -> None:
        connection = self.connection()
        at = self.monitor.clock()
        self.monitor.publish_sample(Sample(at, postgres.sample_primary(connection)))

    def failed(self, error: Exception) -> None:
        if self._failures == 1:
            logger.warning("The primary %r cannot be sampled: %s", self.alias, error)


class _ReplicaPoller(_Poller):
    """Looks at a replica; more often while somebody waits for a position it has not replayed."""

    def __init__(self, monitor: Monitor, alias: str) -> None:
        super().__init__(monitor, alias)
        self._chase_delay = _FIRST_CHASE_DELAY
        self._chase_from: float | None = None
        self._chased = -1
        self._catch_up = 0.0
        self._life: postgres.ServerIdentity | None = None

    def look(self) -> None:
        connection = self.connection()
        if self.identity != self._life:
            # Another server, or the same one started anew, perhaps from an older backup: what the
            # one before had replayed says nothing.
            self._life = self.identity
            self.monitor.forget(self.alias)
        read_at = self.monitor.clock()
        answer = postgres.ask_replica(connection)
        state = self._state(answer)
        replayed = -1 if answer.replayed is None else answer.replayed
        self._follow_chase(replayed)
        self.monitor.publish_reading(self.alias, state, replayed, read_at, self._catch_up)

    def _state(self, answer: postgres.ReplicaAnswer) -> ReplicaState:
        primary = self.monitor.primary_identity
        if primary is None:
            return ReplicaState.UNKNOWN
        if not answer.in_recovery:
            return ReplicaState.NOT_IN_RECOVERY
        if self.identity is None or self.identity.system != primary.system:
            return ReplicaState.FOREIGN
        if answer.replayed is None:
            return ReplicaState.NO_POSITION
        return ReplicaState.STREAMING

    def _follow_chase(self, replayed: int) -> None:
        if self._chase_from is None:
            wanted = self.monitor.wanted
            if replayed >= wanted.lsn > self._chased:
                # There before anybody looked: it took no longer than this.
                elapsed = self.monitor.clock() - wanted.written_at
                self._chased, self._catch_up = wanted.lsn, min(self._catch_up, elapsed)
            return
        elapsed = self.monitor.clock() - self._chase_from
        if replayed >= self._chased:
            self._catch_up = elapsed
            self._chase_from = None
        else:
            self._catch_up = max(self._catch_up, elapsed)

    def next_delay(self) -> float:
        wanted = self.monitor.wanted
        reading = self.monitor.readings[self.alias]
        if reading.state is not ReplicaState.STREAMING or reading.watermark >= wanted.lsn:
            return self.monitor.interval
        if self._chase_from is None:
            self._chase_from, self._chased = wanted.written_at, wanted.lsn
            self._chase_delay = _FIRST_CHASE_DELAY
        # The longer it lasts, the less it matters to see the end of it at once.
        elapsed = self.monitor.clock() - self._chase_from
        delay = min(self._chase_delay, max(_LAST_CHASE_DELAY, elapsed / 50), self.monitor.interval)
        self._chase_delay *= 2
        return delay

    def failed(self, error: Exception) -> None:
        self.monitor.lose(self.alias, ReplicaState.UNREACHABLE, error)


class Monitor:
    """Looks at one cluster: a thread for each server, so that one that hangs delays no other.

    Readings are frozen values in a dict and may be read without a lock.

    Args:
        primary: alias of the primary.
        replicas: aliases of its replicas.
        interval: seconds between two looks.
        clock: a monotonic clock.
    """

    def __init__(
        self,
        primary: str,
        replicas: Sequence[str],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.primary = primary
        self.interval = interval
        self.clock = clock
        self.stopped = False
        self.wanted = Wanted()
        self.readings: dict[str, Reading] = dict.fromkeys(replicas, Reading())
        self._samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self._changed = threading.Condition()
        # Where the present timeline was first seen: what a replica replayed before that may be
        # of another history, and does not count.
        self._baseline = -1
        self._ahead: set[str] = set()
        self._news: list[tuple[str, ReplicaState, str]] = []
        self._primary_poller = _PrimaryPoller(self, primary)
        self._pollers = {alias: _ReplicaPoller(self, alias) for alias in replicas}
        # A reading that is older than this is no knowledge: the poller hangs on its server.
        self._silence = 3 * interval + _CONNECT_TIMEOUT

    def start(self) -> None:
        """Start the threads."""
        for poller in (self._primary_poller, *self._pollers.values()):
            poller.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the threads, and wait at most ``timeout`` seconds for them.

        One that hangs on its server is left behind: it is a daemon, and keeps no process alive.
        """
        self.stopped = True
        pollers = (self._primary_poller, *self._pollers.values())
        for poller in pollers:
            poller.end()
        deadline = time.monotonic() + timeout
        for poller in pollers:
            if poller.is_alive():
                poller.join(max(0.0, deadline - time.monotonic()))

    def serves(self, replicas: Sequence[str], interval: float) -> bool:
        """Tell whether it looks at those replicas, that often."""
        return self.interval == interval and tuple(self.readings) == tuple(replicas)

    @property
    def primary_identity(self) -> postgres.ServerIdentity | None:
        """Which server the primary's alias reaches, or None before the first sample."""
        return self._primary_poller.identity if self._samples else None

    @property
    def timeline(self) -> int | None:
        """The primary's timeline as last seen, or None before the first sample."""
        return self._samples[-1].position.timeline if self._samples else None

    def replicas(self) -> list[Replica]:
        """Return what is known of each replica now."""
        now = self.clock()
        return [self._replica(alias, reading, now) for alias, reading in self.readings.items()]

    def _replica(self, alias: str, reading: Reading, now: float) -> Replica:
        state = reading.state
        if state is ReplicaState.STREAMING and now - reading.read_at > self._silence:
            state = ReplicaState.UNREACHABLE
        return Replica(alias, state, reading.watermark, now - reading.fresh_at)

    # What the threads report.

    def publish_sample(self, sample: Sample) -> None:
        """Take a new position of the primary into account."""
        with self._changed:
            if self.timeline != sample.position.timeline:
                self._begin_history(sample)
            self._samples.append(sample)
            for alias, reading in self.readings.items():
                # A standby only ever has WAL that its primary has on disk.
                if reading.watermark > sample.position.lsn and reading.read_at < sample.at:
                    self._ahead.add(alias)
                    self._set(alias, Reading(ReplicaState.AHEAD, read_at=sample.at))
            self._changed.notify_all()
        self._announce()
        for poller in self._pollers.values():
            poller.poke()

    def _begin_history(self, sample: Sample) -> None:
        if self._samples:
            logger.warning(
                "The primary %r is on timeline %d now: its replicas count again once they have "
                "replayed it.",
                self.primary,
                sample.position.timeline,
            )
            self._baseline = sample.position.lsn
        self._samples.clear()
        self._ahead.clear()
        self.wanted = Wanted()
        for alias in self.readings:
            self.readings[alias] = Reading()

    def publish_reading(
        self, alias: str, state: ReplicaState, replayed: int, read_at: float, catch_up: float
    ) -> None:
        """Take a look at a replica into account."""
        with self._changed:
            old = self.readings[alias]
            if alias in self._ahead:
                state = ReplicaState.AHEAD
            elif state is ReplicaState.STREAMING and replayed < self._baseline:
                state, replayed = ReplicaState.UNKNOWN, -1
            if state is not ReplicaState.STREAMING:
                self._set(alias, Reading(state, read_at=read_at))
            else:
                watermark = max(old.watermark, replayed)
                fresh_at = self._fresh_at(watermark, old.fresh_at)
                self._set(alias, Reading(state, watermark, fresh_at, read_at, catch_up))
            self._changed.notify_all()
        self._announce()

    def _fresh_at(self, watermark: int, fresh_at: float) -> float:
        for sample in reversed(self._samples):
            if sample.at <= fresh_at:
                break
            if sample.position.lsn <= watermark:
                return sample.at
        return fresh_at

    def forget(self, alias: str) -> None:
        """Forget what a replica had replayed: it is not the server that it was."""
        with self._changed:
            self._ahead.discard(alias)
            self.readings[alias] = Reading(self.readings[alias].state)

    def lose(self, alias: str, state: ReplicaState, error: Exception | str) -> None:
        """Take a replica out, until a look at it succeeds."""
        with self._changed:
            self._set(alias, Reading(state, read_at=self.clock()), str(error))
        self._announce()

    def _set(self, alias: str, reading: Reading, detail: str = "") -> None:
        if reading.state is not self.readings[alias].state:
            self._news.append((alias, reading.state, detail))
        self.readings[alias] = reading

    def _announce(self) -> None:
        # Outside the lock: who listens may take his time.
        while self._news:
            alias, state, detail = self._news.pop(0)
            if state is ReplicaState.STREAMING:
                logger.info("Replica %r serves.", alias)
                signals.replica_restored.send_robust(sender=alias)
            else:
                logger.warning("Replica %r does not serve: %s. %s", alias, state.value, detail)
                signals.replica_lost.send_robust(sender=alias, state=state)

    # What requests ask.

    def want(self, lsn: int, age: float) -> None:
        """Have replicas looked at closely until they have replayed a position.

        Args:
            lsn: the position.
            age: seconds since it was written, as far as that is known.
        """
        if lsn > self.wanted.lsn:
            self.wanted = Wanted(lsn, self.clock() - age)
        for alias, poller in self._pollers.items():
            if self.readings[alias].watermark < lsn:
                poller.poke()

    def expects(self, age: float, within: float) -> bool:
        """Tell whether a position of that age should be replayed somewhere so soon.

        Args:
            age: seconds since it was written.
            within: seconds from now.
        """
        return any(
            reading.state is ReplicaState.STREAMING and reading.catch_up - age <= within
            for reading in self.readings.values()
        )

    def has_looked_since(self, moment: float, replicas: Iterable[Replica]) -> bool:
        """Tell whether those of the replicas that are in service were looked at since then."""
        return all(
            self.readings[replica.alias].read_at >= moment
            for replica in replicas
            if replica.state is ReplicaState.STREAMING
        )

    def refresh(self, max_lag: float) -> None:
        """Have the primary sampled now, if the last sample is too old to prove so small a lag."""
        if not self._samples or self.clock() - self._samples[-1].at > max_lag / 4:
            self._primary_poller.poke()

    def report(self, alias: str, error: Exception) -> None:
        """Take out a replica that failed a request, and look at it at once."""
        self.lose(alias, ReplicaState.UNREACHABLE, error)
        self._pollers[alias].poke()

    def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """Return what ``look`` finds, called after each new reading, or None after the time-out.

        The test comes before the first wait, and there is no wait after the last test.
        """
        found: list[T] = []

        def has_found() -> bool:
            result = look()
            if result is not None:
                found.append(result)
            return bool(found)

        with self._changed:
            self._changed.wait_for(has_found, timeout)
        return found[0] if found else None


class _Registry:
    """The monitors of this process."""

    def __init__(self, factory: Callable[[str, Sequence[str], float], Monitor] = Monitor) -> None:
        self.lock = threading.Lock()
        self.monitors: dict[str, Monitor] = {}
        self.factory = factory


_registry = _Registry()


def get_monitor(primary: str, replicas: Sequence[str], interval: float) -> Monitor:
    """Return the monitor of a cluster, started on first use and again after a fork."""
    monitor = _registry.monitors.get(primary)
    if monitor is not None and monitor.serves(replicas, interval):
        return monitor
    with _registry.lock:
        monitor = _registry.monitors.get(primary)
        if monitor is not None and not monitor.serves(replicas, interval):
            monitor.stop()
            monitor = None
        if monitor is None:
            monitor = _registry.factory(primary, replicas, interval)
            monitor.start()
            _registry.monitors[primary] = monitor
        return monitor


def find_monitor(primary: str) -> Monitor | None:
    """Return the monitor of a cluster if this process has started it."""
    return _registry.monitors.get(primary)


def replace_factory(
    factory: Callable[[str, Sequence[str], float], Monitor],
) -> Callable[[str, Sequence[str], float], Monitor]:
    """Have monitors made by something else from now on, and return what made them before."""
    stop_monitors()
    old, _registry.factory = _registry.factory, factory
    return old


def stop_monitors() -> None:
    """Stop every monitor of this process. The next read that needs one starts it again."""
    with _registry.lock:
        monitors = list(_registry.monitors.values())
        _registry.monitors.clear()
    for monitor in monitors:
        monitor.stop()


def _after_fork() -> None:
    # The threads do not exist in the child, and locks may be held for ever. The parent's sockets
    # must not be closed with a farewell to the server: the objects are kept, and left alone.
    global _registry, _inherited
    _inherited = _registry
    _registry = _Registry(_inherited.factory)


_inherited: _Registry | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(stop_monitors)
