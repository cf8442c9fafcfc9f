"""Readings shared by processes: beats, servers that change, and who leads."""

from __future__ import annotations

import logging
import math

import pytest

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.hearsay import Hearsay
from django_replica_router.replicas.readings import ToldReading
from django_replica_router.replicas.sharing import Beat, Beats
from django_replica_router.sql.answering import ServerIdentity
from tests.sharing_world import (  # noqa: F401 - fixtures
    BEAT_KEY,
    ENDURANCE,
    INTERVAL,
    LIFE,
    REPORT_KEY,
    STREAMING,
    Process,
    World,
    check,
    pair,
    run_at_random,
    world,
)

# ruff: noqa: F811 - fixtures are arguments of the same name


# Beats


def beats_met(*met: tuple[str, int, float]) -> Beats:
    """Return the beats of a reader who has met these."""
    beats = Beats(ENDURANCE)
    for owner, number, asked_at in met:
        beats.note(Beat(owner, number), asked_at)
    return beats


def test_beat_was_given_after_another_was_met() -> None:
    """The last time that the one before was met is the bound, however long it was there."""
    beats = beats_met(
        ("a", 1, 10.0), ("a", 1, 10.5), ("a", 1, 11.0), ("a", 2, 11.5), ("a", 2, 12.0)
    )
    assert beats.given_after(Beat("a", 1)) == -math.inf
    assert beats.given_after(Beat("a", 2)) == 11.0
    assert beats.given_after(Beat("a", 3)) == -math.inf


def test_beat_of_another_leader_counts_as_well() -> None:
    """A change of the leader is a change of the beat."""
    beats = beats_met(("a", 7, 10.0), ("b", 1, 11.0))
    assert beats.given_after(Beat("b", 1)) == 10.0


def test_older_beat_proves_nothing() -> None:
    """One that comes after a later one of the same leader was on its way for long."""
    beats = beats_met(("a", 5, 10.0), ("a", 6, 11.0), ("a", 4, 12.0), ("a", 7, 13.0))
    assert beats.given_after(Beat("a", 4)) == -math.inf
    assert beats.given_after(Beat("a", 7)) == 11.0


def test_beat_after_a_long_silence_is_like_the_first() -> None:
    """Where the same one was there for long, that may have been a copy that was cut off."""
    beats = beats_met(("a", 1, 10.0), ("a", 1, 13.1), ("a", 9, 13.2), ("a", 10, 13.7))
    assert beats.given_after(Beat("a", 9)) == -math.inf
    assert beats.given_after(Beat("a", 10)) == 13.2


def test_few_beats_are_kept() -> None:
    """A reader that runs for years needs no more memory for it."""
    beats = beats_met(*(("a", number, number / 2) for number in range(1000)))
    assert len(beats._given_after) == 8
    assert beats.given_after(Beat("a", 999)) == 499.0


# Other servers


def test_replica_that_was_started_anew_is_forgotten(
    world: World, pair: tuple[Process, Process]
) -> None:
    """A replica that was started anew is forgotten until this process has looked at it itself."""
    leader, follower = pair
    world.restart(replayed=40)
    leader.look()
    world.rounds(1, leader, follower)
    assert leader.replica.watermark == 40
    assert follower.replica.watermark == -1
    assert "r1" in follower.woken()
    assert follower.rests() == set()
    assert follower.monitor.known.looks["r1"].connected_at == -math.inf
    follower.look()
    assert follower.replica.watermark == 40
    world.rounds(2, leader, follower)
    assert follower.rests() == {"default", "r1"}
    assert follower.replica.watermark == 40


def test_control_lives_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a follower that takes over readings of any life believes too much."""
    follow = Hearsay._follow

    def follow_any(hearsay: Hearsay, alias: str, told: ToldReading | None) -> bool:
        life = hearsay.known.servers.life(alias)
        return follow(hearsay, alias, told and told._replace(life=life))

    monkeypatch.setattr(Hearsay, "_follow", follow_any)
    with pytest.raises(AssertionError):
        run_at_random(*range(150))


def test_report_of_a_life_that_is_over_counts_for_nothing(
    world: World, pair: tuple[Process, Process]
) -> None:
    """Where this process has met the new life first, it goes on looking until the leader has."""
    leader, follower = pair
    world.restart(replayed=40)
    follower.look()
    leader.monitor.waiting.wait_for = lambda look, timeout: None  # type: ignore[method-assign]
    world.rounds(1, leader, follower)
    assert leader.replica.watermark == 100
    assert follower.replica.watermark == -1
    assert "r1" in follower.woken()
    follower.read()
    world.rounds(3, leader, follower)
    assert follower.replica.watermark == 40
    assert follower.rests() == set()


def test_replica_of_which_a_new_life_is_being_noted_is_not_told(
    world: World, pair: tuple[Process, Process]
) -> None:
    """Between the moment it is forgotten and the look that comes next, what is told may be old."""
    leader, follower = pair
    follower.monitor.known.forget("r1")
    world.rounds(2, leader, follower)
    assert follower.replica.watermark == -1
    assert follower.rests() == set()
    follower.read()
    world.rounds(1, leader, follower)
    assert follower.replica.watermark == 100
    assert follower.rests() == {"default", "r1"}


@pytest.mark.parametrize("what", ["identity", "timeline"])
def test_report_of_another_primary_counts_for_nothing(
    world: World, pair: tuple[Process, Process], what: str
) -> None:
    """After a failover a process goes by what it has seen of it itself."""
    leader, follower = pair
    if what == "identity":
        world.identity = ServerIdentity("7000", ("1700009999", "10.0.0.9", 5432))
    else:
        world.timeline = 2
    world.rounds(1, leader, follower)
    assert follower.rests() == set()
    assert follower.woken() == {"default", "r1"}
    assert follower.monitor.history.timeline == 1
    follower.look()
    world.rounds(2, leader, follower)
    assert follower.monitor.history.timeline == world.timeline
    assert follower.rests() == {"default", "r1"}


def test_replica_that_failed_here_is_out_until_it_is_read_here(
    world: World, pair: tuple[Process, Process]
) -> None:
    """What another process can reach is of no use to a request that has failed."""
    leader, follower = pair
    follower.monitor.report("r1", "refused")
    assert follower.woken() == {"r1"}
    world.rounds(4, leader, follower)
    assert follower.replica.state is ReplicaState.UNREACHABLE
    assert "r1" not in follower.rests()
    follower.read()
    world.rounds(1, leader, follower)
    assert follower.replica.state is STREAMING
    assert "r1" in follower.rests()


@pytest.mark.parametrize(
    "state", [s for s in ReplicaState if s not in (STREAMING, ReplicaState.AHEAD)]
)
def test_replica_that_failed_there_is_looked_at_here(
    world: World, pair: tuple[Process, Process], state: ReplicaState
) -> None:
    """Whether a server can be reached depends on who asks; so each process asks, at once."""
    leader, follower = pair
    world.state = state
    world.rounds(1, leader, follower)
    assert "r1" in follower.woken()
    assert "r1" not in follower.rests()
    assert follower.rests() == set()  # it serves here still, so the primary is sampled here, too
    follower.read()
    assert follower.rests() == {"default"}
    assert follower.replica.state is state


def test_replica_ahead_is_taken_out_and_stays_out(
    world: World, pair: tuple[Process, Process]
) -> None:
    """What the leader has compared closely holds for all, also for a look of one's own."""
    leader, follower = pair
    world.replayed = 5000
    world.rounds(2, leader, follower)
    assert leader.replica.state is ReplicaState.AHEAD
    world.rounds(1, leader, follower)
    assert follower.replica.state is ReplicaState.AHEAD
    follower.read()
    assert follower.replica.state is ReplicaState.AHEAD


def test_primary_that_failed_there_is_looked_at_here(
    world: World, pair: tuple[Process, Process]
) -> None:
    """The one that cannot reach the primary also gives up its place, for a while."""
    leader, follower = pair
    leader.reaches_primary = False
    leader.round()
    assert not leader.sharer.is_leading
    assert world.entries.keys() == {REPORT_KEY}
    follower.round()
    assert follower.sharer.is_leading
    assert not follower.monitor.known.primary_is_down
    leader.round()
    assert not leader.sharer.is_leading


def test_primary_that_is_down_there_is_sampled_here(
    world: World, pair: tuple[Process, Process]
) -> None:
    """What one process cannot reach is for each to find out."""
    leader, follower = pair
    follower.sharer._abstains_until = math.inf
    leader.reaches_primary = False
    world.rounds(1, leader)
    world.entries[BEAT_KEY] = leader.sharer._beat.encode(), math.inf
    world.rounds(1, follower)
    assert "default" in follower.woken()
    assert follower.rests() == {"r1"}
    assert not follower.monitor.known.primary_is_down


# Who leads


def test_only_the_leader_looks(world: World) -> None:
    """Of five processes one looks twice an interval, and the others not at all."""
    processes = [world.process() for _ in range(5)]
    world.rounds(20, *processes)
    assert [process.looks for process in processes] == [21, 1, 1, 1, 1]


def test_another_takes_over(world: World, pair: tuple[Process, Process]) -> None:
    """When the leader is gone its beat runs out, and the next one to ask looks itself."""
    _, follower = pair
    third = world.process()
    world.rounds(4, follower, third)
    assert not follower.sharer.is_leading
    world.rounds(4, follower, third)
    assert (follower.sharer.is_leading, third.sharer.is_leading) == (True, False)
    world.write(9)
    world.replay()
    world.rounds(2, follower, third)
    assert third.replica.watermark == 109
    assert third.rests() == {"default", "r1"}


def test_nobody_rests_longer_than_the_report_endures(
    world: World, pair: tuple[Process, Process]
) -> None:
    """Without news for three intervals a process looks itself, whoever leads."""
    _, follower = pair
    world.now += ENDURANCE - INTERVAL
    assert follower.rests() == {"default", "r1"}
    world.now += INTERVAL
    assert follower.rests() == set()


def test_leader_that_was_held_up_follows(world: World, pair: tuple[Process, Process]) -> None:
    """One that was stopped while another took its place, and then goes on, does no harm."""
    leader, follower = pair
    world.rounds(10, follower)
    assert leader.sharer.is_leading
    assert follower.sharer.is_leading
    world.rounds(2, follower, leader)
    assert (leader.sharer.is_leading, follower.sharer.is_leading) == (False, True)
    world.rounds(2, follower, leader)
    assert leader.rests() == {"default", "r1"}


def test_leader_that_is_overwritten_in_the_midst_of_its_round(
    world: World, pair: tuple[Process, Process]
) -> None:
    """Two that lead for a moment write two reports; both are true, and one gives way."""
    leader, follower = pair
    third = world.process()

    def lose() -> None:
        world.interrupt = lambda: None
        world.now += LIFE + 1
        third.round()  # finds no beat, and leads

    world.interrupt = lose
    leader.round()
    world.rounds(4, leader, third, follower)
    leading = [p for p in (leader, third, follower) if p.sharer.is_leading]
    assert len(leading) == 1
    for process in world.processes:
        check(world, process)


def test_leader_that_ends_makes_room_at_once(world: World, pair: tuple[Process, Process]) -> None:
    """A process that stops in good order does not leave the others waiting."""
    leader, follower = pair
    leader.sharer._try(leader.sharer._leave)
    world.rounds(1, follower)
    assert follower.sharer.is_leading
    leader.sharer._try(leader.sharer._leave)  # not its place any more
    assert world.entries[BEAT_KEY][0] == follower.sharer._beat.encode()


def test_without_the_cache_each_looks_itself(
    world: World, pair: tuple[Process, Process], caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that fails is told of once, and what was told before runs out."""
    leader, follower = pair
    world.cache_is_up = False
    with caplog.at_level(logging.WARNING):
        world.rounds(8, leader, follower)
    assert (leader.rests(), follower.rests()) == (set(), set())
    # A monitor of real servers, which another test has left, may have something to say as well.
    told = [text for text in caplog.messages if text.startswith("Readings")]
    assert told == ["Readings cannot be shared through 'default': the cache is down"] * 2
    world.cache_is_up = True
    world.rounds(8, leader, follower)
    assert sum(process.sharer.is_leading for process in world.processes) == 1


def test_cache_that_was_emptied(world: World, pair: tuple[Process, Process]) -> None:
    """A new leader is found with the next round."""
    leader, follower = pair
    world.entries.clear()
    world.rounds(1, follower, leader)
    assert (leader.sharer.is_leading, follower.sharer.is_leading) == (False, True)
