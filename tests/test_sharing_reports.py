"""Reports of shared readings: who rests by them, garbage, and the caches that they go through."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.cache.backends.locmem import LocMemCache
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.replicas import registry
from django_replica_router.replicas.entries import Entries
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample, Told, ToldReading
from django_replica_router.replicas.sharing import Beat, Report, Sharer, shift
from django_replica_router.values.tokens import Position
from tests.sharing_world import (  # noqa: F401 - fixtures
    BEAT_KEY,
    ENDURANCE,
    INTERVAL,
    REPORT_KEY,
    STREAMING,
    Process,
    World,
    pair,
    world,
)

# ruff: noqa: F811 - fixtures are arguments of the same name


# Rest


class Wake:
    """What a poller sleeps on: the time passes at once, and nobody wakes it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.sleeps = 0

    def wait(self, timeout: float) -> bool:
        self.world.now += timeout
        self.sleeps += 1
        return False

    def set(self) -> None:
        """Wake nobody."""


class Connection:
    """A connection that can be closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def rest(process: Process, delay: float = INTERVAL) -> tuple[int, bool]:
    """Let the replica's poller rest; return how often it slept, and whether it has disconnected."""
    poller = process.monitor._pollers["r1"]
    connection = Connection()
    wake = Wake(process.world)
    poller.looks.wake, poller._connection = wake, connection  # type: ignore[assignment]
    poller._rest(delay)
    return wake.sleeps, connection.closed


def test_poller_rests_while_another_process_looks(world: World) -> None:
    """Without a connection after a while; but once a minute it looks, as the name may have moved."""
    process = world.process()
    process.monitor.known.told = {"r1": math.inf}
    began = world.now
    sleeps, is_closed = rest(process)
    assert 60.0 < world.now - began <= 61.0
    assert sleeps > 50
    assert is_closed


def test_poller_that_is_told_nothing_looks_every_interval(world: World) -> None:
    """As without the setting."""
    process = world.process()
    assert rest(process) == (1, False)
    process.monitor.known.told = {"default": math.inf}
    assert rest(process) == (1, False)


def test_poller_rests_no_longer_than_it_is_told(world: World) -> None:
    """What was told runs out."""
    process = world.process()
    process.monitor.known.told = {"r1": process.monitor.clock() + 3.0}
    sleeps, is_closed = rest(process)
    assert 3 <= sleeps <= 4
    assert not is_closed


def test_poller_that_has_failed_or_is_waited_for_does_not_rest(world: World) -> None:
    """Its next look is due when it says."""
    process = world.process()
    process.monitor.known.told = {"r1": math.inf}
    assert rest(process, 0.02) == (1, False)
    process.monitor.known.looks["r1"].failures = 1
    assert rest(process) == (1, False)
    process.monitor.known.looks["r1"].failures = 0
    process.monitor.report("r1", "refused")
    assert rest(process) == (1, False)


def test_chase_ends_when_another_process_has_seen_its_end(
    world: World, pair: tuple[Process, Process]
) -> None:
    """And the time that it took is remembered as it was, not as it is when one looks next."""
    leader, follower = pair
    poller = follower.monitor._pollers["r1"]
    world.write()
    follower.monitor.waiting.want(world.written, 0.0)
    assert poller.next_delay() < INTERVAL
    world.replay()
    world.rounds(1, leader, follower)
    assert poller.next_delay() == INTERVAL
    assert poller._catch_up == INTERVAL / 2
    world.now += 30.0
    follower.read()
    assert poller.next_delay() == INTERVAL
    assert poller._catch_up == INTERVAL / 2


# Garbage


REPORT = Report(
    Beat("0123456789abcdef", 12),
    Told(
        ("7000", ("1700000000.5", None, 5432)),
        Sample(-0.25, Position(3, 77)),
        is_down=False,
        replicas={
            "r1": ToldReading(
                ("1700000001.25", "10.0.0.2", 5432),
                Reading(STREAMING, 76, -1.5, -0.5, remark="its replay is paused"),
            ),
            "r2": ToldReading(None, Reading()),
        },
    ),
)


def test_report_comes_back_as_it_was() -> None:
    """Beat and report are text, and the text says all."""
    assert Beat.decode(REPORT.beat.encode()) == REPORT.beat
    assert Report.decode(REPORT.encode()) == REPORT
    assert REPORT.encode().isascii()


def test_moments_after_the_beat_count_as_the_beats_own() -> None:
    """Nobody is told that something is younger than the beat."""
    told = Report.decode(REPORT._replace(told=shift(REPORT.told, 1.0)).encode())
    assert told is not None
    assert told.told.sample.at == 0.0
    assert told.told.replicas["r1"].reading.fresh_at == -0.5


def changed(**fields: Any) -> str:
    """Return the report with fields of it changed."""
    return json.dumps({**json.loads(REPORT.encode()), **fields})


ROW = json.loads(REPORT.encode())["replicas"]["r1"]


def with_row(place: int, value: Any) -> str:
    """Return the report with one part of a replica's row changed."""
    row = [*ROW]
    row[place] = value
    return changed(replicas={"r1": row})


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"\xff",
        12,
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "{}",
        "[" * 100_000,
        changed(beat="1:0123456789abcdef:"),
        changed(beat="2:0123456789abcdef:1"),
        changed(beat=None),
        changed(primary=None),
        changed(primary=["7000"]),
        changed(primary=[7000, []]),
        changed(primary=["7000", [1.5]]),
        changed(primary=["7000", "x"]),
        changed(sample=[None]),
        changed(sample=[0.0, "1", 5]),
        changed(sample=[0.0, True, 5]),
        changed(sample=[0.0, 1, -2]),
        changed(sample=[0.0, 1, 1 << 64]),
        changed(sample=[-0.1, 1, 5]),
        changed(sample=["0", 1, 5]),
        changed(sample=[math.nan, 1, 5]),
        changed(sample=[math.inf, 1, 5]),
        changed(sample=[10**400, 1, 5]),
        changed(is_down=0),
        changed(is_down=None),
        changed(replicas=[]),
        changed(replicas={"r1": ROW[:5]}),
        changed(replicas={"r1": "STREAM"}),
        with_row(0, [[]]),
        with_row(1, "streaming"),
        with_row(1, []),
        with_row(2, "76"),
        with_row(2, 76.0),
        with_row(2, 1 << 64),
        with_row(3, -1.0),
        with_row(4, True),
        with_row(5, None),
    ],
)
def test_garbage_is_no_report(text: object) -> None:
    """What is not just as a report should be counts for nothing, and is no error."""
    assert Report.decode(text) is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"1:0123456789abcdef:1",
        "",
        "1::1",
        "1:0123456789ABCDEF:1",
        "1:0123456789abcdef:-1",
        "1:0123456789abcdef:٣",
    ],
)
def test_garbage_is_no_beat(text: object) -> None:
    """Nor is it a beat."""
    assert Beat.decode(text) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    st.sampled_from(["beat", "primary", "is_down", "sample", "replicas"]),
)
def test_any_garbage_is_no_error(value: Any, field: str) -> None:
    """Whatever stands in place of a field."""
    Report.decode(changed(**{field: value}))


@pytest.mark.parametrize("beat", ["garbage", "2:0123456789abcdef:7"])
def test_who_meets_garbage_looks_itself(
    world: World, pair: tuple[Process, Process], beat: str
) -> None:
    """A beat of another version is somebody's: none is put in its place before it runs out."""
    leader, follower = pair
    world.entries[BEAT_KEY] = beat, math.inf
    world.rounds(8, leader, follower)
    assert world.entries[BEAT_KEY][0] == beat
    assert (leader.rests(), follower.rests()) == (set(), set())


def test_report_that_is_garbage_leaves_readings_as_they_were(
    world: World, pair: tuple[Process, Process]
) -> None:
    """They age, and the process looks itself in the end."""
    leader, follower = pair
    for _ in range(8):
        world.rounds(1, leader)
        world.entries[REPORT_KEY] = "garbage", math.inf
        world.rounds(1, follower)
    assert follower.replica.watermark == 100
    assert follower.replica.age > ENDURANCE
    assert follower.rests() == set()


# Threads, caches, registry


def test_entries_in_any_cache() -> None:
    """Django's own interface suffices: add, get_many, set, delete."""
    entries = Entries(LocMemCache("sharing", {}))
    assert entries.read(["beat", "report"]) == [None, None]
    assert entries.add("beat", "b1", 60)
    assert not entries.add("beat", "b2", 60)
    entries.write("report", "r1", 60)
    assert entries.read(["beat", "report"]) == ["b1", "r1"]
    entries.write("beat", "b3", 60)
    assert entries.read(["beat", "report"]) == ["b3", "r1"]
    entries.delete("beat")
    assert entries.read(["beat", "report"]) == [None, "r1"]


class StillMonitor(Monitor):
    """A monitor that starts no thread."""

    def start(self) -> None:
        """Start nothing."""


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test a registry of its own, in which monitors do not run."""
    for primary in list(registry._monitors):
        monkeypatch.delitem(registry._monitors, primary)
    monkeypatch.setattr(registry, "_registry", registry._Registry(StillMonitor))
    yield
    registry.stop_monitors()


@pytest.mark.usefixtures("own_registry")
def test_setting_starts_and_stops_the_sharing(settings: Any) -> None:
    """It is off by default, and follows the setting as soon as a monitor is asked for."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    first = registry.get_monitor("default")
    assert registry._registry.sharers == {}
    settings.REPLICA_ROUTER = {"SHARE_READINGS": True}
    second = registry.get_monitor("default")
    assert first.known.stopped
    assert registry.get_monitor("default") is second
    sharer = registry._registry.sharers["default"]
    assert sharer.is_alive()
    settings.REPLICA_ROUTER = {}
    assert registry.get_monitor("default") is not second
    sharer.join(60.0)  # on a busy machine it may need more than the second that was waited for it
    assert not sharer.is_alive()


def test_each_process_has_a_name_of_its_own() -> None:
    """Also those that were forked from one."""
    monitor = StillMonitor("default", ("r1",), 1.0)
    assert len({Sharer(monitor, "default")._beat.owner for _ in range(50)}) == 50
