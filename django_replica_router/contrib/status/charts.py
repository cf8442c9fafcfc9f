"""Lines and strips of the last minutes, as coordinates. No HTML: the templates draw them.

A drawing is 600 wide, a unit a second, and 100 high; it is stretched to the place that it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.health import LAGGING, PRIMARY, UNKNOWN
from django_replica_router.replicas.trail import WINDOW, Mark, Point

HEIGHT = 100.0

LONGEST_STEP = 20.0
"""Seconds from one point to the next: where there are more, nobody knows what was in between."""

STYLES = 8
"""So many lines can be told from each other."""

_FIRST_DOT = "h0.1"


class Line(NamedTuple):
    """One server.

    Args:
        name: its key.
        style: a number below ``STYLES``, the same in all drawings.
        path: of SVG; empty where nothing is known of it. What is not known is a gap.
    """

    name: str
    style: int
    path: str


class Chart(NamedTuple):
    """Lines in one drawing.

    Args:
        lines: one for each server.
        top: the value at the upper edge; that at the lower one is 0.
        limit: the height of a limit, or None where it is far above all lines.
    """

    lines: Sequence[Line]
    top: float
    limit: float | None = None


class Span(NamedTuple):
    """A time for which a server was in one condition.

    Args:
        x: its begin.
        width: its length.
        y: its upper edge: the better a server, the higher.
        height: down to the lower edge.
        kind: "serves", "lags" or "out".
        condition: its name.
    """

    x: float
    width: float
    y: float
    height: float
    kind: str
    condition: str


class Strip(NamedTuple):
    """The conditions of one server.

    Args:
        name: its key.
        style: that of its line.
        spans: the earliest first; there is none where nothing is known.
    """

    name: str
    style: int
    spans: Sequence[Span]


def names_of(points: Sequence[Point]) -> list[str]:
    """Return the keys of all servers, in the order of the last point, which has the primary first."""
    newest_first = (key for point in reversed(points) for key in point.marks)
    return list(dict.fromkeys(newest_first))


def draw_lags(points: Sequence[Point], max_lag: float) -> Chart:
    """Return how old the data of each replica might be, in seconds.

    Args:
        points: of the last minutes.
        max_lag: the limit.
    """
    highest = max((lag for point in points for lag in map(_lag, point.marks.values())), default=0.0)
    top = round_up(max(highest, 1.0))
    limit = _y(max_lag, top) if max_lag <= top else None
    names = names_of(points)
    lines = [
        Line(name, number % STYLES, _path(points, name, top, lambda mark: mark.seconds))
        for number, name in enumerate(names)
        if number  # the primary's data is never old
    ]
    return Chart(lines, top, limit)


def draw_positions(points: Sequence[Point]) -> Chart:
    """Return up to where the data of each server went, in bytes of WAL since the lowest of all.

    Args:
        points: of the last minutes.
    """
    found = [mark.lsn for point in points for mark in point.marks.values() if mark.lsn is not None]
    lowest = min(found, default=0)
    top = round_up_bytes(max(found, default=0) - lowest)

    def value(mark: Mark) -> float | None:
        return None if mark.lsn is None else mark.lsn - lowest

    lines = [
        Line(name, number % STYLES, _path(points, name, top, value))
        for number, name in enumerate(names_of(points))
    ]
    return Chart(lines, top)


def draw_strips(points: Sequence[Point]) -> list[Strip]:
    """Return in which condition each server was, and when.

    Args:
        points: of the last minutes.
    """
    return [
        Strip(name, number % STYLES, list(_join(_spans(points, name))))
        for number, name in enumerate(names_of(points))
    ]


def kind_of(condition: str) -> str:
    """Return what a condition means for reads: "serves", "lags", "out" or "unknown".

    Args:
        condition: its name.
    """
    if condition in (PRIMARY, ReplicaState.STREAMING.name):
        return "serves"
    if condition == LAGGING:
        return "lags"
    return "unknown" if condition == UNKNOWN else "out"


def round_up(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten that is not below a value above 0."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def round_up_bytes(value: int) -> int:
    """Return a power of two, or the mean of two of them, that is not below a number of bytes, nor below 1 kB."""
    power = 1024
    while power * 3 // 2 < value:
        power *= 2
    return power if power >= value else power * 3 // 2


def _lag(mark: Mark) -> float:
    return mark.seconds or 0.0


def _x(at: float) -> float:
    return max(0.0, WINDOW + at)


def _y(value: float, top: float) -> float:
    return round(HEIGHT * (1 - min(value, top) / top), 1)


def _path(
    points: Sequence[Point], name: str, top: float, value: Callable[[Mark], float | None]
) -> str:
    """Return the line of one server: each piece of it for as long as its value was known."""
    parts: list[str] = []
    before: Point | None = None
    for point in points:
        mark = point.marks.get(name)
        height = None if mark is None else value(mark)
        if height is None:
            before = None
            continue
        place = f"{_x(point.at):.1f} {_y(height, top)}"
        is_next = before is not None and _follows(before, point)
        parts.append(f"L{place}" if is_next else f"M{place}{_FIRST_DOT}")
        before = point
    return "".join(parts)


def _follows(before: Point, point: Point) -> bool:
    """Tell whether what was between two points is known well enough."""
    timelines = {before.timeline, point.timeline} - {None}
    return point.at - before.at <= LONGEST_STEP and len(timelines) <= 1


_EDGES = {"serves": 0.0, "lags": 50.0, "out": 80.0}


def _spans(points: Sequence[Point], name: str) -> Iterator[Span]:
    for point, later in zip(points, [*points[1:], None], strict=True):
        mark = point.marks.get(name)
        kind = "unknown" if mark is None else kind_of(mark.condition)
        if mark is None or kind == "unknown":
            continue
        ends = 0.0 if later is None else later.at
        width = min(ends - point.at, LONGEST_STEP)
        y = _EDGES[kind]
        yield Span(_x(point.at), width, y, HEIGHT - y, kind, mark.condition)


def _join(spans: Iterator[Span]) -> Iterator[Span]:
    """Put spans together that follow each other in the same condition."""
    last: Span | None = None
    for span in spans:
        is_same = last is not None and last.condition == span.condition
        if last is not None and is_same and span.x - (last.x + last.width) < 0.1:
            last = last._replace(width=span.x + span.width - last.x)
            continue
        if last is not None:
            yield last
        last = span
    if last is not None:
        yield last
