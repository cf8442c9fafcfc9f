"""How servers were in the last minutes: what is kept, told, and drawn of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from django_replica_router.contrib.status import charts
from django_replica_router.contrib.status.charts import (
    draw_lags,
    draw_positions,
    draw_strips,
    round_up,
    round_up_bytes,
)
from django_replica_router.replicas import trail as trail_module
from django_replica_router.replicas.census import LIFE, ProcessCounts
from django_replica_router.replicas.telling import _Turn
from django_replica_router.replicas.trail import MOST_POINTS, WINDOW, Mark, Point, ToldTrail, Trail
from tests.controls import fail_without

STREAMING = Mark("STREAMING", 0.5, 100)
OUT = Mark("UNREACHABLE", None, None)


def point(at: float, replica: Mark = STREAMING, lsn: int = 200, timeline: int = 1) -> Point:
    """Return how a primary and a replica were at a moment."""
    return Point(at, timeline, {"default": Mark("PRIMARY", None, lsn), "r1": replica})


def pieces(path: str) -> list[list[tuple[float, float]]]:
    """Return the pieces of a line, each with its places."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", piece)]
        for piece in path.split("M")[1:]
    ]


class Entries:
    """A cache in memory, whose entries run out when told so."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def read(self, keys: list[str]) -> list[object]:
        """Return what stands under each key."""
        return [self.texts.get(key) for key in keys]

    def write(self, key: str, text: str, life: int) -> None:
        """Write a text."""
        self.texts[key] = text

    def add(self, key: str, text: str, life: int) -> bool:
        """Write it where nothing stands."""
        return self.texts.setdefault(key, text) == text

    def told(self) -> ToldTrail:
        """Return what was told of the cluster."""
        found = ToldTrail.decode(self.texts["rr-trail:default"])
        assert found is not None
        return found


# Keeping.


def test_a_trail_is_bounded() -> None:
    """In time, in points and in servers."""
    trail = Trail()
    for at in range(2 * MOST_POINTS):
        trail.add(point(float(at)))
    assert len(trail.points(2.0 * MOST_POINTS)) == MOST_POINTS
    assert trail.points(2.0 * MOST_POINTS + WINDOW) == []
    many = {f"r{number}": STREAMING for number in range(100)}
    trail.add(Point(1000.0, 1, many))
    assert len(trail.points(1000.0)[-1].marks) == trail_module.MOST_SERVERS


def test_the_primary_is_kept_of_many_servers() -> None:
    """Its name may come last, and what others are measured by must not be dropped."""
    trail = Trail()
    many = {"z": Mark("PRIMARY", None, 1)} | {f"r{number}": STREAMING for number in range(100)}
    trail.add(Point(0.0, 1, many))
    assert next(iter(trail.points(0.0)[0].marks)) == "z"


# Telling.


def test_a_trail_is_read_as_it_was_told() -> None:
    """Each number, and who was not there yet."""
    told = ToldTrail("host:1", 5.0, [Point(-9.0, None, {"default": OUT}), point(-1.0)])
    assert ToldTrail.decode(told.encode()) == told


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "[" * 100_000,
        '[2,"a",1,[],[],[]]',
        "[1,2,1,[],[],[]]",
        '[1,"a",NaN,[],[],[]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[]]]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[[7,1,1]]]]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[[-1,1,1]]]]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[[0,"1",1]]]]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[[0,1,1.5]]]]]',
        '[1,"a",1,["r1"],["A"],[[-1,1,[null]],[-2,1,[null]]]]',
        f'[1,"a",1,[],[],{[[0, 1, []]] * (MOST_POINTS + 1)}]',
    ],
)
def test_what_is_no_trail_is_ignored(text: Any) -> None:
    """Whatever stands in the cache."""
    assert ToldTrail.decode(text) is None


def test_a_trail_is_small() -> None:
    """Full, of a primary and two replicas: what a cache takes without noticing."""
    marks = {
        "default": Mark("PRIMARY", None, 1 << 60),
        "replica1": Mark("LAGGING", 1234.56, 1 << 60),
    }
    marks["replica2"] = marks["replica1"]
    told = ToldTrail("h:1", 1.0, [Point(-599.9, 12, marks)] * MOST_POINTS)
    assert len(told.encode()) < 20_000


def test_one_process_tells_and_another_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first has seen is not lost with it, and is no younger than it is."""
    wall = [1_000_000.0]
    monkeypatch.setattr("django_replica_router.replicas.telling.time.time", lambda: wall[0])
    entries: Any = Entries()
    first, second = Trail(), Trail()
    one, two = _Turn("default"), _Turn("default")
    first.add(point(10.0, lsn=1))
    one.tell(entries, first, lambda: 20.0)
    second.add(point(5005.0, lsn=2))
    two.tell(entries, second, lambda: 5006.0)
    assert [p.marks["default"].lsn for p in entries.told().points] == [1]
    del entries.texts["rr-trail-turn:default"]  # it has run out: the first is gone
    wall[0] += 30.0
    two.tell(entries, second, lambda: 5030.0)
    told = entries.told().points
    assert [(p.at, p.marks["default"].lsn) for p in told] == [(-40.0, 1), (-25.0, 2)]


@pytest.mark.parametrize(("written", "age"), [(90.0, 10.0), (160.0, 0.0), (-9000.0, WINDOW)])
def test_clocks_that_differ_draw_nothing_of_the_future(written: float, age: float) -> None:
    """However far ahead, or behind, the host's clock is that has told."""
    told = ToldTrail("host:1", written, [point(-5.0), point(0.0)])
    assert told.age(100.0) == age
    assert [p.at for p in told.timed(age, 0.0)] == [-5.0 - age, -age]


@pytest.mark.parametrize(
    ("told_at", "age", "differs"),
    [(97.0, 3.0, False), (100.4, 0.0, False), (130.0, 0.0, True), (10.0, LIFE, True)],
)
def test_an_age_that_cannot_be_is_told(told_at: float, age: float, differs: bool) -> None:
    """An entry of the future, or one that would have run out, is of a host whose clock differs."""
    told = ProcessCounts("host:1", 1.0, {}, {}, told_at)
    assert told.age(100.0) == age
    assert told.has_another_clock(100.0) is differs


def test_servers_that_come_and_go_keep_nobody_from_reading() -> None:
    """What was told names the newest ones."""
    points = [Point(float(at), 1, {f"r{at}": STREAMING}) for at in range(-MOST_POINTS, 0)]
    told = ToldTrail.decode(ToldTrail("host:1", 1.0, points).encode())
    assert told is not None
    assert list(told.points[-1].marks) == ["r-1"]
    assert told.points[0].marks == {}


# Drawing.


def test_a_line_has_a_gap_where_a_server_was_out() -> None:
    """Never a line through what is not known; in service all the time it is one."""
    whole = [point(float(at)) for at in range(-50, 0, 5)]
    (line,) = draw_lags(whole, 10.0).lines
    assert (line.name, len(pieces(line.path))) == ("r1", 1)
    broken = [
        one._replace(marks={**one.marks, "r1": OUT}) if one.at == -25 else one for one in whole
    ]
    (line,) = draw_lags(broken, 10.0).lines
    assert [len(piece) for piece in pieces(line.path)] == [5, 4]
    _, replica = draw_positions(broken).lines
    assert [len(piece) for piece in pieces(replica.path)] == [5, 4]


@pytest.mark.parametrize(
    "later", [point(-5.0, timeline=2), point(16.0)], ids=["promotion", "nobody looked"]
)
def test_a_line_ends_where_what_comes_is_something_else(later: Point) -> None:
    """Another timeline, or too long without a look."""
    assert len(pieces(draw_lags([point(-10.0), later], 10.0).lines[0].path)) == 2


def test_that_test_fails_where_lines_go_through_the_unknown(request: pytest.FixtureRequest) -> None:
    """Its control: the rule taken out."""

    def take_out(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(charts, "_follows", lambda before, point: True)

    later = {"later": point(16.0)}
    fail_without(take_out, test_a_line_ends_where_what_comes_is_something_else, later, request)


def test_places_are_those_of_the_values() -> None:
    """The right edge is now, the upper one the largest value."""
    lags = draw_lags(
        [point(-600.0, Mark("STREAMING", 0.0, 0)), point(0.0, Mark("LAGGING", 20.0, 0))], 10
    )
    assert (lags.top, lags.limit) == (20, 50.0)
    assert [place for piece in pieces(lags.lines[0].path) for place in piece] == [
        (0, 100),
        (600, 0),
    ]
    primary, replica = draw_positions([point(0.0, lsn=100 + 1024)]).lines
    assert pieces(primary.path) == [[(600, 0)]]
    assert pieces(replica.path) == [[(600, 100)]]


def test_a_limit_far_above_is_not_drawn() -> None:
    """It would press the lines to the ground."""
    assert draw_lags([point(0.0)], 10.0).limit is None


def test_a_strip_tells_states_by_height() -> None:
    """Not by colour alone; nothing where nothing is known."""
    marks = [STREAMING, STREAMING, Mark("LAGGING", 20.0, 1), OUT, Mark("UNKNOWN", None, None)]
    points = [point(-25.0 + 5 * place, mark) for place, mark in enumerate(marks)]
    _, strip = draw_strips(points)
    assert [(span.kind, span.x, span.width) for span in strip.spans] == [
        ("serves", 575.0, 10.0),
        ("lags", 585.0, 5.0),
        ("out", 590.0, 5.0),
    ]
    assert len({span.y for span in strip.spans}) == 3


def test_a_strip_ends_where_nobody_looked() -> None:
    """What was seen last does not last for ever."""
    _, strip = draw_strips([point(-300.0), point(-10.0)])
    assert [(span.x, span.width) for span in strip.spans] == [(300.0, 20.0), (590.0, 10.0)]


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, 1), (1.1, 2), (4.9, 5), (5.1, 10), (11.0, 20), (0.3, 0.5)]
)
def test_the_upper_edge_is_a_round_number(value: float, expected: float) -> None:
    """1, 2 or 5 times a power of ten."""
    assert round_up(value) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 1024), (1025, 1536), (1537, 2048), (5000, 6144), (3 << 20, 3 << 20)]
)
def test_the_upper_edge_is_a_round_number_of_bytes(value: int, expected: int) -> None:
    """A power of two, or half-way to the next."""
    assert round_up_bytes(value) == expected
