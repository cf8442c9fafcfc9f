"""What is told of a replica's age is never less than the truth."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.policy import may_serve
from django_replica_router.replicas.entries import Entries
from django_replica_router.replicas.readings import Reading, Told
from django_replica_router.replicas.sharing import Beat, Beats, Report, Sharer, shift
from django_replica_router.values.tokens import Position
from tests.sharing_world import (  # noqa: F401 - fixtures
    ACTIONS,
    BEAT_KEY,
    INTERVAL,
    LIFE,
    REPORT_KEY,
    Process,
    World,
    check,
    pair,
    run,
    run_at_random,
    world,
)

# ruff: noqa: F811 - fixtures are arguments of the same name


# Age
steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 8)), max_size=60)
interruptions = st.lists(st.integers(0, 3), max_size=60)


@given(steps, interruptions)
def test_age_is_never_less_than_the_truth(script: list[tuple[str, int]], breaks: list[int]) -> None:
    """However rounds, looks, writes, restarts and pauses of three processes fall between each other."""
    run(script, breaks)


def test_age_is_never_less_than_the_truth_in_the_long_run() -> None:
    """The same in scripts that are long enough for the rarest of meetings."""
    run_at_random(*range(150))


def test_control_age_as_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with the moment of reading for that of the beat, ages come out too low."""

    def note(beats: Beats, beat: Beat, asked_at: float) -> None:
        beats._given_after.setdefault(beat, asked_at)

    monkeypatch.setattr(Beats, "note", note)
    with pytest.raises(AssertionError):
        run_at_random(*range(150))


def hold_up_report(world: World, leader: Process, follower: Process) -> None:
    """Let a write, and a round of the follower, fall between the leader's look and its report."""
    describe = leader.monitor.hearsay.describe

    def describe_and_pause() -> Told | None:
        told = describe()
        world.write()
        world.now += INTERVAL / 2
        follower.round()
        world.now += INTERVAL / 2
        return told

    leader.monitor.hearsay.describe = describe_and_pause  # type: ignore[method-assign]
    leader.round()
    world.now += INTERVAL / 10
    follower.round()
    check(world, follower)


def test_leader_that_was_held_up_makes_nothing_young(
    world: World, pair: tuple[Process, Process]
) -> None:
    """What was read before a pause is as old as the pause is long, though it is written after it."""
    hold_up_report(world, *pair)


def test_control_beat_that_comes_with_the_report(
    world: World, pair: tuple[Process, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: with a beat that is given only after the look, it comes out too young."""

    def lead(sharer: Sharer, entries: Entries) -> None:
        monitor = sharer._monitor
        monitor.waiting.wait_for(lambda: True, 0.0)
        described_at = monitor.clock()
        told = monitor.hearsay.describe()
        assert told is not None
        entries.write(BEAT_KEY, sharer._next_beat(), LIFE)
        report = Report(sharer._beat, shift(told, -described_at))
        entries.write(REPORT_KEY, report.encode(), LIFE)

    monkeypatch.setattr(Sharer, "_lead", lead)
    with pytest.raises(AssertionError):
        hold_up_report(world, *pair)


def test_follower_knows_what_the_leader_has_found(
    world: World, pair: tuple[Process, Process]
) -> None:
    """What the leader reads the follower knows a round later, and no younger than it is."""
    leader, follower = pair
    world.write(50)
    world.replay()
    looks = follower.looks
    world.rounds(1, leader, follower)
    assert follower.replica.watermark == 150
    assert follower.looks == looks
    assert follower.replica.age == INTERVAL / 2
    assert leader.replica.age == 0.0


def test_age_is_at_most_two_intervals(world: World, pair: tuple[Process, Process]) -> None:
    """On a cluster where nothing lags, what is told is no older than what one looks at oneself."""
    leader, follower = pair
    oldest = 0.0
    for eighth in range(200):
        world.now += INTERVAL / 8
        if eighth % 4 == 0:
            leader.round()
        if eighth % 4 == 3:
            follower.round()
        oldest = max(oldest, follower.replica.age)
    assert 0.5 * INTERVAL < oldest <= 2 * INTERVAL


def test_lag_is_told(world: World, pair: tuple[Process, Process]) -> None:
    """A replica that does not replay grows old for a follower as it does for the leader."""
    leader, follower = pair
    world.write()
    world.rounds(20, leader, follower)
    assert follower.replica.watermark == 100
    assert leader.replica.age == 10.0
    assert leader.replica.age <= follower.replica.age <= leader.replica.age + INTERVAL
    assert not may_serve(follower.replica, Position(1, 0), 10.0)


def test_first_report_counts_for_nothing(world: World) -> None:
    """What is there already when a process starts may be of any age."""
    leader = world.process()
    world.rounds(2, leader)
    late = world.process()
    late.monitor.known.readings["r1"] = Reading()
    late.round()
    assert late.replica.age == math.inf
    assert late.rests() == set()
    world.rounds(1, leader, late)
    assert late.replica.age == INTERVAL / 2
    assert late.rests() == {"default", "r1"}


def test_reader_that_was_held_up_takes_nothing_for_young(
    world: World, pair: tuple[Process, Process]
) -> None:
    """A process that did not run for a minute cannot tell when the last beat was given."""
    leader, follower = pair
    world.rounds(120, leader)
    follower.round()
    assert follower.replica.age >= 60.0
    assert follower.rests() == set()
