"""The threads that look at servers, one each, so that one that hangs delays no other."""

from __future__ import annotations

import math
import threading
from typing import Any

import psycopg

from django_replica_router.logs import fields, logger
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas import looks
from django_replica_router.replicas.answers import Answers
from django_replica_router.replicas.ending import jittered
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.looks import CONNECT_TIMEOUT, MAX_CONNECTION_AGE, Looks
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.sql import answering, opening, standby, wal
from django_replica_router.stats import count
from django_replica_router.values.servers import Life

# Seconds before the primary is told to flush again: at most once a second, and later where it refused.
_FLUSH_PAUSE = 1.0
_REFUSED_FLUSH_PAUSE = 60.0

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
_MAX_IDLE = 5.0
_LIVES_KEPT = 16


class Poller(threading.Thread):
    """A thread that looks at one server again and again, on a connection of its own.

    Args:
        answers: is told what it sees.
        looks: tells others how that goes.
    """

    is_over = False
    """There is nothing to look at any more."""

    def __init__(self, answers: Answers, looks: Looks) -> None:
        super().__init__(name=f"replica-router-monitor-{looks.key}", daemon=True)
        self.answers = answers
        self.known = answers.known
        self.looks = looks
        self.alias = looks.alias
        self._connection: psycopg.Connection[Any] | None = None
        self._is_known = False

    def end(self) -> None:
        """Have the thread end. It is not waited for."""
        self.is_over = True
        self.looks.wake.set()

    def run(self) -> None:
        while not (self.known.stopped or self.is_over):
            self.looks.wake.clear()  # before the look: a poke during it asks for another
            try:
                self.looks.busy_since = self.known.clock()
                self._look_through_conflict()
                self.looks.failures = 0
                delay = self.next_delay()
            except Exception as error:  # a server may fail in any way, and the thread goes on
                self.looks.failures += 1
                self._close()
                self.failed(error)
                # A power of what never ends to grow is at last too large for a number.
                doublings = min(self.looks.failures - 1, _MAX_DOUBLINGS)
                delay = min(self.known.interval * 2**doublings, _MAX_BACKOFF)
            finally:
                self.looks.busy_since = None
            self._rest(delay)
        self._close()

    def _rest(self, delay: float) -> None:
        """Wait until the next look is due, which is later where somebody else looks as well."""
        began = self.known.clock()
        while not self.looks.wake.wait(jittered(delay)):
            rested = self.known.clock() - began
            is_chasing = delay < self.known.interval
            if self.looks.failures or is_chasing or rested > MAX_CONNECTION_AGE:
                return
            if not self.known.is_told(self.looks.key):
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
        with in_flight.waiting(self.looks.key, connection):
            if not self._is_known:
                self.identify(connection)
                self._is_known = True
            self.look(connection)

    def identify(self, connection: psycopg.Connection[Any]) -> None:
        """Find out which server the connection reaches."""
        self.looks.identity = answering.identify(connection)

    def _connect(self) -> psycopg.Connection[Any]:
        """Return the connection, opened anew where it is gone, or old.

        The name of a server may have come to mean another one, as after a failover.
        """
        now = self.known.clock()
        if self._connection is not None and now - self.looks.connected_at > MAX_CONNECTION_AGE:
            self._close()
        if self._connection is None or self._connection.closed:
            self._connection = opening.connect(self.alias, CONNECT_TIMEOUT)
            self.looks.version = self._connection.info.server_version
            self.looks.connected_at = now
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
        return self.known.interval


class PrimaryPoller(Poller):
    """Samples the position of the primary, and has it flush one that somebody waits for."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(answers, answers.known.primary_looks)

    def look(self, connection: psycopg.Connection[Any]) -> None:
        at = self.known.clock()
        self.answers.publish_sample(Sample(at, wal.sample_primary(connection)))
        if self.looks.failures:
            logger.info(
                "The primary %r answers again.",
                self.alias,
                extra=fields("primary_restored", primary=self.alias),
            )
        history = self.known.history
        if history.must_flush(self.known.clock()):
            self._flush(connection, history.wanted.lsn)

    def _flush(self, connection: psycopg.Connection[Any], lsn: int) -> None:
        now = self.known.clock()
        # Before it is tried: where the disk hangs the look is ended, and the next one must not hang.
        self.known.history.may_flush_at = now + _REFUSED_FLUSH_PAUSE
        try:
            if wal.flush(connection, lsn):
                count("wal_flushes")
        except psycopg.Error as error:
            if connection.closed:
                raise
            logger.warning(
                "The primary %r refuses to flush its WAL: %s",
                self.alias,
                error,
                extra=fields("flush_refused", error, primary=self.alias),
            )
        else:
            self.known.history.may_flush_at = now + _FLUSH_PAUSE

    def failed(self, error: Exception) -> None:
        if self.looks.failures == 1:
            logger.warning(
                "The primary %r cannot be sampled: %s",
                self.alias,
                error,
                extra=fields("primary_lost", error, primary=self.alias),
            )


class ReplicaPoller(Poller):
    """Looks at a replica; more often while somebody waits for a position it has not replayed."""

    def __init__(self, answers: Answers, looks: Looks) -> None:
        super().__init__(answers, looks)
        self._chase_delay = _FIRST_CHASE_DELAY
        self._chase_from: float | None = None
        self._chased = -1
        self._chase_timeline: int | None = None
        self._catch_up = 0.0
        self._due_after = 0.0
        self._lives: list[Life] = []
        self._examination: standby.Examination | None = None
        self._examined_at = -math.inf

    @property
    def life(self) -> Life | None:
        """Which server, and which life of it, answered last."""
        return self._lives[-1] if self._lives else None

    def look(self, connection: psycopg.Connection[Any]) -> None:
        read_at = self.known.clock()
        answer = standby.ask_replica(connection)
        if self.looks.identity is not None and self.looks.identity.life != answer.life:
            self.identify(connection)  # behind a pooler, it may be another server by now
        self._note_life(answer.life)
        if read_at - self._examined_at >= self.known.interval / 2:
            self._examination, self._examined_at = standby.examine_replica(connection), read_at
        state = self._state(answer)
        if state is ReplicaState.STREAMING and self.known.clock() - read_at > looks.PATIENCE:
            state = ReplicaState.SLOW
        replayed = -1 if answer.replayed is None else answer.replayed
        self._follow_chase(replayed)
        reading = Reading(
            state, replayed, -math.inf, read_at, self._catch_up, remark=self._remark()
        )
        self.answers.publish_reading(self.looks.key, reading)

    def _note_life(self, life: Life) -> None:
        if self.life != life:
            # Another server, or the same one started anew, perhaps from an older backup: what the
            # one before had replayed says nothing.
            self._examined_at = -math.inf
            self.known.forget(self.alias, life)
            self._lives = [*self._lives[-_LIVES_KEPT:], life]

    def _state(self, answer: standby.ReplicaAnswer) -> ReplicaState:
        if self._examination is None:
            return ReplicaState.UNKNOWN
        answerer = answering.Answerer(
            answer.life,
            answer.in_recovery,
            0,
            answer.replayed,
            None if self.looks.identity is None else self.looks.identity.system,
            self._examination.timeline,
        )
        return self.answers.state_of(answerer)

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
        timeline = self.known.history.timeline
        if timeline != self._chase_timeline:
            # A position of the old one may never be reached on the new one.
            self._chase_timeline = timeline
            self._chase_from, self._chased, self._catch_up = None, -1, 0.0

    def _follow_chase(self, replayed: int) -> None:
        self._forget_other_history()
        if self._chase_from is None:
            wanted = self.known.history.wanted
            if replayed >= wanted.lsn > self._chased:
                # There before anybody looked: it took no longer than this.
                elapsed = self.known.clock() - wanted.written_at
                self._chased, self._catch_up = wanted.lsn, min(self._catch_up, elapsed)
            return
        elapsed = self.known.clock() - self._chase_from
        if replayed >= self._chased:
            self._end_chase()
        elif elapsed > self._due_after:
            # When it comes is not known: the longer it is overdue, the less soon it is expected.
            self._catch_up = max(self._catch_up, 2 * elapsed - self._due_after)

    def _end_chase(self) -> None:
        if self._chase_from is not None:
            self._catch_up = self.known.clock() - self._chase_from
            self._chase_from = None

    def next_delay(self) -> float:
        self._forget_other_history()
        wanted = self.known.history.wanted
        reading = self.latest()
        if reading.watermark >= wanted.lsn:
            self._end_chase()  # where somebody else has seen the end of it
        if reading.state is not ReplicaState.STREAMING or reading.watermark >= wanted.lsn:
            return self.known.interval
        if self._chase_from is None:
            self._chase_from, self._chased = wanted.written_at, wanted.lsn
            self._chase_delay = _FIRST_CHASE_DELAY
            self._due_after = self._catch_up
        return self._chase_pause(self.known.clock() - self._chase_from)

    def latest(self) -> Reading | Replica:
        """Return what is known of the server."""
        return self.known.reading(self.looks.key)

    def _chase_pause(self, elapsed: float) -> float:
        """Return the seconds until the next look for a position, by how long ago it was written."""
        # The longer it lasts, the less it matters to see the end of it at once.
        pause = min(self._chase_delay, max(_LAST_CHASE_DELAY, elapsed / 50), self.known.interval)
        self._chase_delay *= 2
        due = self._due_after
        if due <= 0:
            return pause  # nothing has been chased so far
        nearing = _NEARING * abs(due - elapsed)
        return min(pause, max(nearing, _NEAREST * due, _FIRST_CHASE_DELAY))

    def failed(self, error: Exception) -> None:
        is_silent = isinstance(error, psycopg.errors.ConnectionTimeout)
        state = ReplicaState.SILENT if is_silent else ReplicaState.UNREACHABLE
        self.known.lose(self.looks.key, state, error)
