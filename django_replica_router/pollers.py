"""The threads that look at servers, one each, so that one that hangs delays no other."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol

import psycopg

from django_replica_router import postgres
from django_replica_router.inflight import in_flight
from django_replica_router.policy import ReplicaState
from django_replica_router.readings import Reading, Sample, Wanted

logger = logging.getLogger("django_replica_router")

# Not the state that the process shares: tests seed that, and Hypothesis watches over it.
_draw = random.SystemRandom()

PATIENCE = 1.0
"""Seconds that a replica may take to answer before it is taken out."""

CONNECT_TIMEOUT = 2.0
"""Seconds after which a poller gives up connecting."""

_FIRST_CHASE_DELAY = 0.0005
_LAST_CHASE_DELAY = 0.02
# Every look too late is paid by whoever waits, so a position is looked for the more closely the
# nearer the moment is at which it is due: when it has taken as long as the one before. The delay is
# this part of the seconds until then, or since then, and at least this part of what it takes in all.
# That adds up to 30 looks before the moment and, where it is late, as many after it, however long a
# position takes. A look costs the replica 0.1 ms: with a lag of 500 ms that is under 1 % of the time,
# for each process in which somebody waits all the time.
_NEARING = 0.2
_NEAREST = 0.001
_MAX_BACKOFF = 15.0
_MAX_DOUBLINGS = 30
_MAX_CONNECTION_AGE = 60.0
_MAX_IDLE = 5.0
_LIVES_KEPT = 16


class Knowledge(Protocol):
    """What is known of a cluster, as far as pollers ask for it and add to it."""

    clock: Callable[[], float]
    interval: float
    stopped: bool
    readings: dict[str, Reading]
    wanted: Wanted

    @property
    def primary_identity(self) -> postgres.ServerIdentity | None:
        """Which server the primary's alias reaches."""

    @property
    def timeline(self) -> int | None:
        """The primary's timeline."""

    def is_told(self, alias: str) -> bool:
        """Tell whether a look at a server can wait."""

    def publish_sample(self, sample: Sample) -> None:
        """Take a new position of the primary into account."""

    def publish_reading(self, alias: str, reading: Reading) -> None:
        """Take a look at a replica into account."""

    def forget(self, alias: str) -> None:
        """Forget what a replica had replayed."""

    def lose(self, alias: str, state: ReplicaState, error: Exception | str) -> None:
        """Take a replica out."""


class Poller(threading.Thread):
    """A thread that looks at one server again and again, on a connection of its own."""

    def __init__(self, monitor: Knowledge, alias: str) -> None:
        super().__init__(name=f"replica-router-monitor-{alias}", daemon=True)
        self.monitor = monitor
        self.alias = alias
        self.identity: postgres.ServerIdentity | None = None
        self.busy_since: float | None = None
        self._connection: psycopg.Connection[Any] | None = None
        self._connected_at = -math.inf
        self._is_known = False
        self._wake = threading.Event()
        self._failures = 0

    @property
    def busy_for(self) -> float:
        """Seconds since the present look began; 0 between two looks."""
        busy_since = self.busy_since
        return 0.0 if busy_since is None else self.monitor.clock() - busy_since

    @property
    def is_waiting(self) -> bool:
        """The present look waits for its answer for longer than a server may take."""
        return self.busy_for > PATIENCE

    @property
    def has_failed(self) -> bool:
        """The last look has failed."""
        return self._failures > 0

    def poke(self) -> None:
        """Have the next look taken now, unless the server is given time to recover."""
        if not self._failures:
            self._wake.set()

    def look_anew(self) -> None:
        """Have the server looked at now, on a new connection."""
        self._connected_at = -math.inf
        self._wake.set()

    def end(self) -> None:
        """Have the thread look whether it should stop."""
        self._wake.set()

    def run(self) -> None:
        while not self.monitor.stopped:
            self._wake.clear()  # before the look: a poke during it asks for another
            try:
                self.busy_since = self.monitor.clock()
                self._look_through_conflict()
                self._failures = 0
                delay = self.next_delay()
            except Exception as error:  # a server may fail in any way, and the thread goes on
                self._failures += 1
                self._close()
                self.failed(error)
                # A power of what never ends to grow is at last too large for a number.
                doublings = min(self._failures - 1, _MAX_DOUBLINGS)
                delay = min(self.monitor.interval * 2**doublings, _MAX_BACKOFF)
            finally:
                self.busy_since = None
            self._rest(delay)
        self._close()

    def _rest(self, delay: float) -> None:
        """Wait until the next look is due, which is later where somebody else looks as well."""
        began = self.monitor.clock()
        # Jitter, so that many processes do not look at the same moment.
        while not self._wake.wait(delay * _draw.uniform(0.8, 1.0)):
            rested = self.monitor.clock() - began
            is_chasing = delay < self.monitor.interval
            if self._failures or is_chasing or rested > _MAX_CONNECTION_AGE:
                return
            if not self.monitor.is_told(self.alias):
                return
            if rested > _MAX_IDLE:
                self._close()

    def _look_through_conflict(self) -> None:
        try:
            self._look_in_flight()
        except psycopg.errors.SerializationFailure:
            # What a standby replays ends whatever statement is in its way, also one that reads no
            # row. That says nothing of the server, and the statement after it finds the way clear.
            self._look_in_flight()

    def _look_in_flight(self) -> None:
        connection = self._connect()
        with in_flight.waiting(self.alias, connection):
            if not self._is_known:
                self.identify(connection)
                self._is_known = True
            self.look(connection)

    def identify(self, connection: psycopg.Connection[Any]) -> None:
        """Find out which server the connection reaches."""
        self.identity = postgres.identify(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        """Return the connection, opened anew where it is gone, or old.

        The name of a server may have come to mean another one, as after a failover.
        """
        now = self.monitor.clock()
        if self._connection is not None and now - self._connected_at > _MAX_CONNECTION_AGE:
            self._close()
        if self._connection is None or self._connection.closed:
            self._connection = postgres.connect(self.alias, CONNECT_TIMEOUT)
            self._connected_at = now
            self._is_known = False
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def look(self, connection: psycopg.Connection[Any]) -> None:
        raise NotImplementedError

    def failed(self, error: Exception) -> None:
        raise NotImplementedError

    def next_delay(self) -> float:
        return self.monitor.interval


class PrimaryPoller(Poller):
    """Samples the position of the primary."""

    def look(self, connection: psycopg.Connection[Any]) -> None:
        at = self.monitor.clock()
        self.monitor.publish_sample(Sample(at, postgres.sample_primary(connection)))

    def failed(self, error: Exception) -> None:
        if self._failures == 1:
            logger.warning("The primary %r cannot be sampled: %s", self.alias, error)


class ReplicaPoller(Poller):
    """Looks at a replica; more often while somebody waits for a position it has not replayed."""

    def __init__(self, monitor: Knowledge, alias: str) -> None:
        super().__init__(monitor, alias)
        self._chase_delay = _FIRST_CHASE_DELAY
        self._chase_from: float | None = None
        self._chased = -1
        self._chase_timeline: int | None = None
        self._catch_up = 0.0
        self._due_after = 0.0
        self._lives: list[tuple[Any, ...]] = []
        self._suspect: tuple[Any, ...] | None = None
        self._is_balanced = False
        self._examination: postgres.Examination | None = None
        self._examined_at = -math.inf

    @property
    def life(self) -> tuple[Any, ...] | None:
        """Which server, and which life of it, answered last."""
        return self._lives[-1] if self._lives else None

    def suspect(self, life: tuple[Any, ...]) -> None:
        """Take into account that a request met another server under this alias.

        One that is known to be over was met before its end, and proves nothing.
        """
        if life not in self._lives:
            self._suspect = life
        self.look_anew()

    def look(self, connection: psycopg.Connection[Any]) -> None:
        read_at = self.monitor.clock()
        answer = postgres.ask_replica(connection)
        if self.identity is not None and self.identity.life != answer.life:
            self.identify(connection)  # behind a pooler, it may be another server by now
        self._note_life(answer.life)
        if read_at - self._examined_at >= self.monitor.interval / 2:
            self._examination, self._examined_at = postgres.examine_replica(connection), read_at
        state = self._state(answer)
        if state is ReplicaState.STREAMING and self.monitor.clock() - read_at > PATIENCE:
            state = ReplicaState.SLOW
        replayed = -1 if answer.replayed is None else answer.replayed
        self._follow_chase(replayed)
        reading = Reading(
            state, replayed, -math.inf, read_at, self._catch_up, remark=self._remark()
        )
        self.monitor.publish_reading(self.alias, reading)

    def _note_life(self, life: tuple[Any, ...]) -> None:
        if life in self._lives[:-1] or (self._suspect is not None and self._suspect != life):
            # A life that is over does not come back: two servers answer in turn.
            self._is_balanced = True
        self._suspect = None
        if self.life != life:
            # Another server, or the same one started anew, perhaps from an older backup: what the
            # one before had replayed says nothing.
            # Forgotten first: who sees the new life sees nothing of the one before.
            self._examined_at = -math.inf
            self.monitor.forget(self.alias)
            self._lives = [*self._lives[-_LIVES_KEPT:], life]

    def _state(self, answer: postgres.ReplicaAnswer) -> ReplicaState:
        primary = self.monitor.primary_identity
        timeline = self.monitor.timeline
        if primary is None or timeline is None or self._examination is None:
            return ReplicaState.UNKNOWN
        if self.identity is None or self.identity.system != primary.system:
            return ReplicaState.FOREIGN
        if self._is_balanced:
            return ReplicaState.BALANCED
        if not answer.in_recovery:
            is_primary = answer.life == primary.life
            return ReplicaState.PRIMARY if is_primary else ReplicaState.PROMOTED
        if self._examination.timeline != timeline:
            return ReplicaState.TIMELINE
        if answer.replayed is None:
            return ReplicaState.NO_POSITION
        return ReplicaState.STREAMING

    def _remark(self) -> str:
        if self._examination is None:
            return ""
        remarks = [
            (self._examination.is_paused, "its replay is paused"),
            (not self._examination.has_receiver, "it receives no WAL"),
            (self._examination.delay > 0, f"it delays replay by {self._examination.delay:g} s"),
        ]
        return ", ".join(text for holds, text in remarks if holds)

    def _forget_other_history(self) -> None:
        timeline = self.monitor.timeline
        if timeline != self._chase_timeline:
            # A position of the old one may never be reached on the new one.
            self._chase_timeline = timeline
            self._chase_from, self._chased, self._catch_up = None, -1, 0.0

    def _follow_chase(self, replayed: int) -> None:
        self._forget_other_history()
        if self._chase_from is None:
            wanted = self.monitor.wanted
            if replayed >= wanted.lsn > self._chased:
                # There before anybody looked: it took no longer than this.
                elapsed = self.monitor.clock() - wanted.written_at
                self._chased, self._catch_up = wanted.lsn, min(self._catch_up, elapsed)
            return
        elapsed = self.monitor.clock() - self._chase_from
        if replayed >= self._chased:
            self._end_chase()
        elif elapsed > self._due_after:
            # When it comes is not known: the longer it is overdue, the less soon it is expected.
            self._catch_up = max(self._catch_up, 2 * elapsed - self._due_after)

    def _end_chase(self) -> None:
        if self._chase_from is not None:
            self._catch_up = self.monitor.clock() - self._chase_from
            self._chase_from = None

    def next_delay(self) -> float:
        self._forget_other_history()
        wanted = self.monitor.wanted
        reading = self.monitor.readings[self.alias]
        if reading.watermark >= wanted.lsn:
            self._end_chase()  # where somebody else has seen the end of it
        if reading.state is not ReplicaState.STREAMING or reading.watermark >= wanted.lsn:
            return self.monitor.interval
        if self._chase_from is None:
            self._chase_from, self._chased = wanted.written_at, wanted.lsn
            self._chase_delay = _FIRST_CHASE_DELAY
            self._due_after = self._catch_up
        return self._chase_pause(self.monitor.clock() - self._chase_from)

    def _chase_pause(self, elapsed: float) -> float:
        """Return the seconds until the next look for a position, by how long ago it was written."""
        # The longer it lasts, the less it matters to see the end of it at once.
        pause = min(self._chase_delay, max(_LAST_CHASE_DELAY, elapsed / 50), self.monitor.interval)
        self._chase_delay *= 2
        due = self._due_after
        if due <= 0:
            return pause  # nothing has been chased so far
        nearing = _NEARING * abs(due - elapsed)
        return min(pause, max(nearing, _NEAREST * due, _FIRST_CHASE_DELAY))

    def failed(self, error: Exception) -> None:
        is_silent = isinstance(error, psycopg.errors.ConnectionTimeout)
        state = ReplicaState.SILENT if is_silent else ReplicaState.UNREACHABLE
        self.monitor.lose(self.alias, state, error)
