"""Readings that one process takes and the others learn of through the cache.

One process leads: it looks at the servers, and writes down what it finds. The others read that. Two
entries of the cache are enough for it: the beat, which the leader renews before each look and which
runs out when the leader is gone, and the report of what it found after a certain beat.

No two clocks are compared. The leader tells moments by how long before its beat they were. A beat
was written after the last time that a reader met another one in its place, so the reader takes that
time for the beat's. However long leader, cache or reader are held up in between: what it takes for
the age of a reading is never less than the true age.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from django.db import connections

from django_replica_router.logs import fields, logger
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.ending import EndingThread, jittered
from django_replica_router.replicas.entries import Entries, open_entries
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample, Told, ToldReading
from django_replica_router.values.tokens import Position

T = TypeVar("T")

_VERSION = 1
_BEAT = re.compile(rf"{_VERSION}:([0-9a-f]{{16}}):([0-9]{{1,18}})", re.ASCII)

# Rounds in an interval. With two, a reading is told to be no older, at the worst, than the two
# intervals that it may be old where each process looks for itself.
_ROUNDS = 2

# Intervals after which what was told has run out, and a beat as well.
_ENDURANCE = 3

# Some caches know whole seconds only.
_LEAST_LIFE = 2

_BEATS_KEPT = 8


class Beat(NamedTuple):
    """A sign of life of whoever leads, never given twice.

    Args:
        owner: who gave it.
        number: higher than in the one before.
    """

    owner: str
    number: int

    def encode(self) -> str:
        """Return the beat as text."""
        return f"{_VERSION}:{self.owner}:{self.number}"

    @classmethod
    def decode(cls, value: object) -> Beat | None:
        """Return the beat that the text stands for, or None when it is none."""
        match = _BEAT.fullmatch(value) if isinstance(value, str) else None
        return None if match is None else cls(match[1], int(match[2]))


class Report(NamedTuple):
    """What a leader has found.

    Args:
        beat: the beat that it had given before.
        told: what it found. Its moments are seconds after the beat: of what was before it, or just
            after it, negative or zero.
    """

    beat: Beat
    told: Told

    def encode(self) -> str:
        """Return the report as text."""
        told = self.told
        return json.dumps(
            {
                "beat": self.beat.encode(),
                "primary": told.primary,
                "is_down": told.is_down,
                "sample": [_age(told.sample.at), *told.sample.position],
                "replicas": {
                    alias: [
                        life,
                        reading.state.name,
                        reading.watermark,
                        _age(reading.fresh_at),
                        _age(reading.read_at),
                        reading.remark,
                    ]
                    for alias, (life, reading) in told.replicas.items()
                },
            },
            separators=(",", ":"),
        )

    @classmethod
    def decode(cls, value: object) -> Report | None:
        """Return the report that the text stands for, or None when it is none."""
        if not isinstance(value, str):
            return None
        try:
            return cls._parse(json.loads(value))
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ):
            return None

    @classmethod
    def _parse(cls, fields: Any) -> Report:
        beat = Beat.decode(fields["beat"])
        if beat is None:
            raise ValueError
        system, life = fields["primary"]
        age, timeline, lsn = fields["sample"]
        position = Position(_a(int, timeline), _lsn(lsn))
        replicas = {alias: _parse_replica(*row) for alias, row in fields["replicas"].items()}
        sample = Sample(_moment(age), position)
        primary = (_a(str, system), _life(life))
        return cls(beat, Told(primary, sample, _a(bool, fields["is_down"]), replicas))


def shift(told: Told, by: float) -> Told:
    """Return the same with all moments later by so many seconds."""
    return told._replace(
        sample=told.sample._replace(at=told.sample.at + by),
        replicas={
            alias: ToldReading(
                life,
                replace(reading, fresh_at=reading.fresh_at + by, read_at=reading.read_at + by),
            )
            for alias, (life, reading) in told.replicas.items()
        },
    )


def _age(moment: float) -> float | None:
    return max(0.0, -moment) if math.isfinite(moment) else None


def _moment(age: object) -> float:
    if age is None:
        return -math.inf
    seconds = _a(float, age)
    if not 0 <= seconds < math.inf:
        raise ValueError
    return -seconds


def _a(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError
    return value


def _lsn(value: object) -> int:
    lsn = _a(int, value)
    if not -1 <= lsn < 1 << 64:
        raise ValueError
    return lsn


def _life(value: object) -> tuple[Any, ...]:
    if not isinstance(value, list) or not all(
        part is None or type(part) in (str, int) for part in value
    ):
        raise TypeError
    return tuple(value)


def _parse_replica(
    life: object, state: str, watermark: object, fresh: object, read: object, remark: object
) -> ToldReading:
    return ToldReading(
        None if life is None else _life(life),
        Reading(
            ReplicaState[state],
            _lsn(watermark),
            _moment(fresh),
            _moment(read),
            remark=_a(str, remark),
        ),
    )


class Beats:
    """The beats that a reader has met, and the moments after which they were given."""

    def __init__(self, endurance: float) -> None:
        self._endurance = endurance
        self._last: Beat | None = None
        self._first_met_at = -math.inf
        self._last_met_at = -math.inf
        self._given_after: dict[Beat, float] = {}

    def note(self, beat: Beat, asked_at: float) -> None:
        """Note which beat was there when it was asked for.

        That none was there proves nothing: a cache may forget, or hide that it cannot be reached.

        Args:
            beat: the one that was there.
            asked_at: moment just before the cache was asked.
        """
        last = self._last
        if last is not None and last.owner == beat.owner and beat.number < last.number:
            return
        if beat != last:
            # One that comes after a long silence, like the first of all, may have been given at any
            # time: perhaps the one before was met in a copy of the cache that was cut off.
            is_first = last is None or asked_at - self._first_met_at > self._endurance
            self._given_after[beat] = -math.inf if is_first else self._last_met_at
            self._last, self._first_met_at = beat, asked_at
            while len(self._given_after) > _BEATS_KEPT:
                del self._given_after[next(iter(self._given_after))]
        self._last_met_at = asked_at

    def given_after(self, beat: Beat) -> float:
        """Return a moment after which the beat was given for sure: minus infinity when unknown."""
        return self._given_after.get(beat, -math.inf)


class Sharer(EndingThread):
    """Leads, or follows who leads, again and again.

    Args:
        monitor: what this process knows; its threads rest as long as somebody else looks.
        cache: alias of the cache.
        open_entries: opens the entries of the cache, in this thread.
    """

    def __init__(
        self,
        monitor: Monitor,
        cache: str,
        open_entries: Callable[[str], Entries] = open_entries,
    ) -> None:
        super().__init__(f"replica-router-monitor-share-{monitor.primary}")
        self.cache = cache
        self.is_leading = False
        self._monitor = monitor
        self._open_entries = open_entries
        self._beat_key = f"rr-beat:{monitor.primary}"
        self._report_key = f"rr-report:{monitor.primary}"
        self._endurance = _ENDURANCE * monitor.interval
        self._life = max(_LEAST_LIFE, math.ceil(self._endurance))
        self._beat = Beat(secrets.token_hex(8), 0)
        self._beats = Beats(self._endurance)
        self._counted_from = -math.inf
        self._abstains_until = -math.inf
        self._has_failed = False
        self._entries: Entries | None = None

    def run(self) -> None:
        while not self._ended.is_set():
            self.try_round()
            self._ended.wait(jittered(self._monitor.interval / _ROUNDS))
        if self.is_leading:
            self._try(self._leave)
        connections.close_all()  # those of this thread, where the cache is in a database

    def try_round(self) -> None:
        """Lead or follow once. Where the cache fails, what was told runs out, and no harm is done."""
        self._try(self._round)

    def _try(self, act: Callable[[Entries], None]) -> None:
        try:
            if self._entries is None:
                self._entries = self._open_entries(self.cache)
            act(self._entries)
            self._has_failed = False
        except Exception as error:  # whatever a cache backend raises, the site goes on
            self._entries = None
            self.is_leading = False
            connections.close_all()
            if not self._has_failed:
                logger.warning(
                    "Readings cannot be shared through %r: %s",
                    self.cache,
                    error,
                    extra=fields("readings_unshared", error, cache=self.cache),
                )
            self._has_failed = True

    def _round(self, entries: Entries) -> None:
        asked_at = self._monitor.clock()
        value, report = entries.read([self._beat_key, self._report_key])
        beat = Beat.decode(value)
        if beat is not None and beat.owner == self._beat.owner:
            entries.write(self._beat_key, self._next_beat(), self._life)
            self._lead(entries)
        elif value is not None:
            self.is_leading = False
            if beat is not None:
                self._beats.note(beat, asked_at)
                self._follow(Report.decode(report))
        elif asked_at >= self._abstains_until and entries.add(
            self._beat_key, self._next_beat(), self._life
        ):
            if not self.is_leading:
                logger.info(
                    "This process looks at %r for all.",
                    self._monitor.primary,
                    extra=fields("leader_begun", primary=self._monitor.primary),
                )
            self._lead(entries)

    def _next_beat(self) -> str:
        self._beat = self._beat._replace(number=self._beat.number + 1)
        return self._beat.encode()

    # Leading.

    def _lead(self, entries: Entries) -> None:
        monitor = self._monitor
        given_at = monitor.clock()  # the beat is in the cache now
        self.is_leading = True
        monitor.hearsay.drive(given_at + self._endurance)
        monitor.waiting.wait_for(lambda: self._has_looked_since(given_at), monitor.interval / 4)
        told = monitor.hearsay.describe()
        if told is not None:
            report = Report(self._beat, shift(told, -given_at))
            entries.write(self._report_key, report.encode(), self._life)
        if monitor.known.primary_is_down:
            # Perhaps it can be reached from elsewhere.
            self._leave(entries)
            self._abstains_until = given_at + 2 * self._life

    def _has_looked_since(self, moment: float) -> bool | None:
        sampled_at = self._monitor.history.sampled_at
        replicas = self._monitor.health.replicas()
        has_looked = sampled_at >= moment and self._monitor.waiting.has_looked_since(
            moment, replicas
        )
        return has_looked or None

    def _leave(self, entries: Entries) -> None:
        self.is_leading = False
        self._monitor.hearsay.look_alone()
        beat = Beat.decode(entries.read([self._beat_key])[0])
        if beat is not None and beat.owner == self._beat.owner:
            entries.delete(self._beat_key)

    # Following.

    def _follow(self, report: Report | None) -> None:
        if report is None:
            return
        given_after = self._beats.given_after(report.beat)
        if given_after > self._counted_from:
            self._counted_from = given_after
            self._monitor.hearsay.take(
                shift(report.told, given_after), given_after + self._endurance
            )
