"""How each server of a cluster was in the last minutes, and the text that tells others of it."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any, NamedTuple

WINDOW = 600.0
"""Seconds of which is told."""

MOST_POINTS = 150
"""More than fit into the window."""

MOST_SERVERS = 16
"""Of a cluster that has more, the trail tells of these only."""

_VERSION = 1
_MOST_NAMES = 4 * MOST_SERVERS


class Mark(NamedTuple):
    """How one server was at one moment.

    Args:
        condition: "PRIMARY" or "DOWN", or of a replica the name of its state, or "LAGGING".
        seconds: how old its data might be at most, or None where that was not known, and of a primary.
        lsn: up to which its data went, or None where that was not known.
    """

    condition: str
    seconds: float | None
    lsn: int | None


class Point(NamedTuple):
    """How all servers of a cluster were at one moment.

    Args:
        at: the moment, by a monotonic clock.
        timeline: of the primary, or None where it was not known.
        marks: of each server, by its key: the alias, or the alias and a number.
    """

    at: float
    timeline: int | None
    marks: Mapping[str, Mark]


class Trail:
    """The points of the last minutes, the oldest first. Whoever changes it is one thread."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=MOST_POINTS)

    def points(self, now: float) -> list[Point]:
        """Return the points that are not too old.

        Args:
            now: by the clock that has timed them.
        """
        return [point for point in list(self._points) if 0 <= now - point.at <= WINDOW]

    def add(self, point: Point) -> None:
        """Add a point that is newer than all others; of many servers, those that it names first."""
        kept = dict(islice(point.marks.items(), MOST_SERVERS))
        self._points.append(point._replace(marks=kept))

    def follow_on(self, earlier: Iterable[Point]) -> None:
        """Take in what another process has told, as far as it is of a time before the first point here."""
        began = self._points[0].at if self._points else math.inf
        older = [point for point in earlier if point.at < began]
        self._points = deque([*older, *self._points], maxlen=MOST_POINTS)


class ToldTrail(NamedTuple):
    """What one process has told of the last minutes.

    Args:
        name: of its host, and its process id.
        told_at: when it told, by the clock of its host (``time.time()``).
        points: the oldest first; their moments are seconds before it told, negative or zero.
    """

    name: str
    told_at: float
    points: Sequence[Point]

    def age(self, now: float) -> float:
        """Return how many seconds ago it told; where its host's clock is ahead, none.

        Args:
            now: by this host's clock.
        """
        return min(max(0.0, now - self.told_at), WINDOW)

    def timed(self, told_for: float, now: float) -> list[Point]:
        """Return its points by this process's clock.

        Args:
            told_for: seconds since it was told.
            now: by that clock.
        """
        return [point._replace(at=now - told_for + point.at) for point in self.points]

    def encode(self) -> str:
        """Return it as text: each name once, numbers rounded."""
        newest_first = (key for point in reversed(self.points) for key in point.marks)
        keys = list(dict.fromkeys(newest_first))[:_MOST_NAMES]  # servers may come and go
        names = list(
            dict.fromkeys(mark.condition for point in self.points for mark in point.marks.values())
        )
        rows = [
            [
                round(point.at, 1),
                point.timeline,
                [_row(point.marks.get(key), names) for key in keys],
            ]
            for point in self.points
        ]
        told = [_VERSION, self.name, round(self.told_at, 1), keys, names, rows]
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def decode(cls, value: object) -> ToldTrail | None:
        """Return what the text stands for, or None where it is none."""
        if not isinstance(value, str):
            return None
        try:
            return cls._parse(*json.loads(value))
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            return None

    @classmethod
    def _parse(
        cls, version: Any, name: Any, told_at: Any, keys: Any, names: Any, rows: Any
    ) -> ToldTrail:
        is_bounded = len(keys) <= _MOST_NAMES and len(rows) <= MOST_POINTS
        if version != _VERSION or not is_bounded:
            raise ValueError
        keys, names = [_a(str, key) for key in keys], [_a(str, one) for one in names]
        points = [
            Point(min(0.0, _number(at)), _optional(int, timeline), dict(_marks(keys, names, marks)))
            for at, timeline, marks in rows
        ]
        if any(later.at < earlier.at for earlier, later in pairwise(points)):
            raise ValueError
        return cls(_a(str, name), _number(told_at), points)


def _row(mark: Mark | None, names: Sequence[str]) -> list[Any] | None:
    if mark is None:
        return None
    seconds = None if mark.seconds is None else round(mark.seconds, 2)
    return [names.index(mark.condition), seconds, mark.lsn]


def _marks(
    keys: Sequence[str], names: Sequence[str], rows: Sequence[Any]
) -> Iterator[tuple[str, Mark]]:
    for key, row in zip(keys, rows, strict=True):
        if row is not None:
            name, seconds, lsn = row
            seconds = None if seconds is None else max(0.0, _number(seconds))
            yield key, Mark(names[_natural(name)], seconds, _optional(int, lsn))


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _optional(kind: type, value: Any) -> Any:
    return None if value is None else _natural(value) if kind is int else _a(kind, value)


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError
    return float(value)
