"""Readings told from process to process: never younger than they are, and of no other server.

Each process has a clock of its own, which is set by hand and agrees with no other one.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache.backends.locmem import LocMemCache
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router import registry
from django_replica_router.monitor import Monitor
from django_replica_router.policy import Replica, ReplicaState, may_serve
from django_replica_router.postgres import ServerIdentity
from django_replica_router.readings import Reading, Sample, Told, ToldReading
from django_replica_router.sharing import Beat, Beats, Board, CacheBoard, Report, Sharer, shift
from django_replica_router.tokens import Position

INTERVAL = 1.0
ENDURANCE = 3 * INTERVAL
LIFE = 3  # seconds for which a beat stays in the cache
STREAMING = ReplicaState.STREAMING
PRIMARY = ServerIdentity("7000", ("1700000000.5", "10.0.0.1", 5432))


class World:
    """Servers, a cache and a true time, in which things happen one after the other."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.written = 100
        self.replayed = 100
        self.life = 1
        self.timeline = 1
        self.identity = PRIMARY
        self.state = STREAMING
        self.commits: list[tuple[float, int]] = []
        self.entries: dict[str, tuple[str, float]] = {}
        self.cache_is_up = True
        self.interrupt: Callable[[], None] = lambda: None
        self.processes: list[Process] = []

    def process(self) -> Process:
        """Start a process, which looks once."""
        process = Process(self, offset=7919.0 * len(self.processes))
        self.processes.append(process)
        process.look()
        return process

    def write(self, amount: int = 1) -> None:
        """Commit on the primary."""
        self.written += amount
        self.commits.append((self.now, self.written))

    def replay(self, amount: int = 1_000_000) -> None:
        """Let the replica replay, by default all there is."""
        self.replayed = min(self.written, self.replayed + amount)

    def restart(self, replayed: int) -> None:
        """Start the replica anew, as from a backup."""
        self.life += 1
        self.replayed = replayed

    def life_of_replica(self) -> tuple[Any, ...]:
        """Return what tells the replica's present life."""
        return (f"{1700000000 + self.life}.25", "10.0.0.2", 5432)

    def rounds(self, count: int, *processes: Process) -> None:
        """Let processes take their rounds, half an interval apart."""
        for _ in range(count):
            self.now += INTERVAL / 2
            for process in processes:
                process.sharer.try_round()


class WorldBoard:
    """The cache's entries, where anything may happen before and after each access."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _access(self) -> dict[str, tuple[str, float]]:
        if not self._world.cache_is_up:
            raise ConnectionError("the cache is down")
        entries = self._world.entries
        for key in [key for key, (_, until) in entries.items() if until <= self._world.now]:
            del entries[key]
        return entries

    def _set(self, key: str, value: str, *, only_new: bool = False) -> bool:
        self._world.interrupt()
        entries = self._access()
        is_set = not (only_new and key in entries)
        if is_set:
            entries[key] = value, self._world.now + LIFE
        self._world.interrupt()
        return is_set

    def read(self) -> tuple[object, object]:
        self._world.interrupt()
        entries = self._access()
        beat, report = (entries.get(key, (None, 0))[0] for key in ("beat", "report"))
        self._world.interrupt()
        return beat, report

    def take_lead(self, beat: str) -> bool:
        return self._set("beat", beat, only_new=True)

    def renew(self, beat: str) -> None:
        self._set("beat", beat)

    def report(self, report: str) -> None:
        self._set("report", report)

    def leave(self) -> None:
        self._access().pop("beat", None)


class IdleMonitor(Monitor):
    """A monitor whose threads do not run: whoever waits for them has the process look."""

    process: Process

    def wait_for(self, look: Callable[[], Any], timeout: float) -> Any:
        self.process.look()
        return look()


class Process:
    """A process of the site, on a clock of its own."""

    def __init__(self, world: World, offset: float) -> None:
        self.world = world
        self.is_busy = False
        self.looks = 0
        self.reaches_primary = True
        self.monitor = IdleMonitor("default", ["r1"], INTERVAL, clock=lambda: world.now + offset)
        self.monitor.process = self
        self.sharer = Sharer(self.monitor, "default", lambda *args: WorldBoard(world))

    def look(self) -> None:
        """Look at both servers, as the threads would."""
        world, monitor = self.world, self.monitor
        self.looks += 1
        if self.reaches_primary:
            monitor._primary_poller._failures = 0
            monitor._primary_poller.identity = world.identity
            position = Position(world.timeline, world.written)
            monitor.publish_sample(Sample(monitor.clock(), position))
        else:
            monitor._primary_poller._failures += 1
        self.read()

    def read(self) -> None:
        """Look at the replica."""
        monitor, world = self.monitor, self.world
        monitor._pollers["r1"]._note_life(world.life_of_replica())
        read_at = monitor.clock()
        monitor.publish_reading("r1", Reading(world.state, world.replayed, read_at=read_at))

    def round(self) -> None:
        """Take a round, unless one is under way."""
        if not self.is_busy:
            self.is_busy = True
            self.sharer.try_round()
            self.is_busy = False

    @property
    def replica(self) -> Replica:
        """What it knows of the replica."""
        return self.monitor.replica("r1")

    def woken(self) -> set[str]:
        """Return the servers that it is to look at now, and let its threads sleep again."""
        pollers = [self.monitor._primary_poller, *self.monitor._pollers.values()]
        found = {poller.alias for poller in pollers if poller._wake.is_set()}
        for poller in pollers:
            poller._wake.clear()
        return found

    def rests(self) -> set[str]:
        """Return the servers that it leaves to somebody else."""
        return {alias for alias in ("default", "r1") if self.monitor.is_told(alias)}


@pytest.fixture
def world() -> World:
    """Return a world without processes."""
    return World()


@pytest.fixture
def pair(world: World) -> tuple[Process, Process]:
    """Return a process that leads, and one that follows it."""
    leader, follower = world.process(), world.process()
    world.rounds(3, leader, follower)
    assert (leader.sharer.is_leading, follower.sharer.is_leading) == (True, False)
    assert follower.rests() == {"default", "r1"}
    follower.woken()
    return leader, follower


# Age

ACTIONS = "pass write write replay restart look read round round round round round".split()

steps = st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 8)), max_size=60)
interruptions = st.lists(st.integers(0, 3), max_size=60)


def run(script: list[tuple[str, int]], breaks: list[int]) -> None:
    """Let a script happen to three processes, parts of it in the midst of accesses to the cache."""
    world = World()
    processes = [world.process() for _ in range(3)]
    todo, pauses = iter(script), iter(breaks)

    def interrupt() -> None:
        for _ in range(next(pauses, 0)):
            step()

    def step() -> bool:
        action, amount = next(todo, ("end", 0))
        process = processes[amount % 3]
        world.now += amount / 16
        if action == "pass":
            world.now += amount / 2
        elif action == "write":
            world.write(amount)
        elif action == "replay":
            world.replay(amount)
        elif action == "restart":
            world.restart(max(0, world.replayed - amount))
        elif action == "look":
            process.look()
        elif action == "read":
            process.read()
        elif action == "round":
            process.round()
        for each in processes:
            check(world, each)
        return action != "end"

    world.interrupt = interrupt
    while step():
        pass


def check(world: World, process: Process) -> None:
    """Fail where a process takes the replica for better than it is."""
    known = process.replica
    if process.monitor._pollers["r1"].life != world.life_of_replica():
        return  # it takes no connection to this server, without a look
    assert known.watermark <= world.replayed
    written_by_then = [lsn for at, lsn in world.commits if at < world.now - known.age - 1e-6]
    assert all(lsn <= world.replayed for lsn in written_by_then)


@given(steps, interruptions)
def test_age_is_never_less_than_the_truth(script: list[tuple[str, int]], breaks: list[int]) -> None:
    """However rounds, looks, writes, restarts and pauses of three processes fall between each other."""
    run(script, breaks)


def run_at_random(*seeds: int) -> None:
    """Let long scripts happen, in which nothing goes as it should."""
    for seed in seeds:
        draw = random.Random(seed)
        script = [(draw.choice(ACTIONS), draw.randint(0, 8)) for _ in range(300)]
        run(script, [max(0, draw.randint(-4, 4)) for _ in range(300)])


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
    describe = leader.monitor.describe

    def describe_and_pause() -> Told | None:
        told = describe()
        world.write()
        world.now += INTERVAL / 2
        follower.round()
        world.now += INTERVAL / 2
        return told

    leader.monitor.describe = describe_and_pause  # type: ignore[method-assign]
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

    def lead(sharer: Sharer, board: Board) -> None:
        monitor = sharer._monitor
        monitor.wait_for(lambda: True, 0.0)
        described_at = monitor.clock()
        told = monitor.describe()
        assert told is not None
        board.renew(sharer._next_beat())
        board.report(Report(sharer._beat, shift(told, -described_at)).encode())

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
    late.monitor.readings["r1"] = Reading()
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
    assert follower.monitor._pollers["r1"]._connected_at == -math.inf
    follower.look()
    assert follower.replica.watermark == 40
    world.rounds(2, leader, follower)
    assert follower.rests() == {"default", "r1"}
    assert follower.replica.watermark == 40


def test_control_lives_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a follower that takes over readings of any life believes too much."""
    follow = Monitor._follow

    def follow_any(monitor: Monitor, alias: str, told: ToldReading | None) -> bool:
        life = monitor._pollers[alias].life
        return follow(monitor, alias, told and told._replace(life=life))

    monkeypatch.setattr(Monitor, "_follow", follow_any)
    with pytest.raises(AssertionError):
        run_at_random(*range(150))


def test_report_of_a_life_that_is_over_counts_for_nothing(
    world: World, pair: tuple[Process, Process]
) -> None:
    """Where this process has met the new life first, it goes on looking until the leader has."""
    leader, follower = pair
    world.restart(replayed=40)
    follower.look()
    leader.monitor.wait_for = lambda look, timeout: None  # type: ignore[method-assign]
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
    follower.monitor.forget("r1")
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
    assert follower.monitor.timeline == 1
    follower.look()
    world.rounds(2, leader, follower)
    assert follower.monitor.timeline == world.timeline
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
    assert world.entries.keys() == {"report"}
    follower.round()
    assert follower.sharer.is_leading
    assert not follower.monitor.primary_is_down
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
    world.entries["beat"] = leader.sharer._beat.encode(), math.inf
    world.rounds(1, follower)
    assert "default" in follower.woken()
    assert follower.rests() == {"r1"}
    assert not follower.monitor.primary_is_down


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
    assert world.entries["beat"][0] == follower.sharer._beat.encode()


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
    poller._wake, poller._connection = wake, connection  # type: ignore[assignment]
    poller._rest(delay)
    return wake.sleeps, connection.closed


def test_poller_rests_while_another_process_looks(world: World) -> None:
    """Without a connection after a while; but once a minute it looks, as the name may have moved."""
    process = world.process()
    process.monitor._told = {"r1": math.inf}
    began = world.now
    sleeps, is_closed = rest(process)
    assert 60.0 < world.now - began <= 61.0
    assert sleeps > 50
    assert is_closed


def test_poller_that_is_told_nothing_looks_every_interval(world: World) -> None:
    """As without the setting."""
    process = world.process()
    assert rest(process) == (1, False)
    process.monitor._told = {"default": math.inf}
    assert rest(process) == (1, False)


def test_poller_rests_no_longer_than_it_is_told(world: World) -> None:
    """What was told runs out."""
    process = world.process()
    process.monitor._told = {"r1": process.monitor.clock() + 3.0}
    sleeps, is_closed = rest(process)
    assert 3 <= sleeps <= 4
    assert not is_closed


def test_poller_that_has_failed_or_is_waited_for_does_not_rest(world: World) -> None:
    """Its next look is due when it says."""
    process = world.process()
    process.monitor._told = {"r1": math.inf}
    assert rest(process, 0.02) == (1, False)
    process.monitor._pollers["r1"]._failures = 1
    assert rest(process) == (1, False)
    process.monitor._pollers["r1"]._failures = 0
    process.monitor.report("r1", "refused")
    assert rest(process) == (1, False)


def test_chase_ends_when_another_process_has_seen_its_end(
    world: World, pair: tuple[Process, Process]
) -> None:
    """And the time that it took is remembered as it was, not as it is when one looks next."""
    leader, follower = pair
    poller = follower.monitor._pollers["r1"]
    world.write()
    follower.monitor.want(world.written, 0.0)
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
    world.entries["beat"] = beat, math.inf
    world.rounds(8, leader, follower)
    assert world.entries["beat"][0] == beat
    assert (leader.rests(), follower.rests()) == (set(), set())


def test_report_that_is_garbage_leaves_readings_as_they_were(
    world: World, pair: tuple[Process, Process]
) -> None:
    """They age, and the process looks itself in the end."""
    leader, follower = pair
    for _ in range(8):
        world.rounds(1, leader)
        world.entries["report"] = "garbage", math.inf
        world.rounds(1, follower)
    assert follower.replica.watermark == 100
    assert follower.replica.age > ENDURANCE
    assert follower.rests() == set()


# Threads, caches, registry


def test_board_in_any_cache() -> None:
    """Django's own interface suffices: add, get_many, set, delete."""
    board = CacheBoard(LocMemCache("sharing", {}), ("rr-beat:default", "rr-report:default"), 60)
    assert board.read() == (None, None)
    assert board.take_lead("b1")
    assert not board.take_lead("b2")
    board.report("r1")
    assert board.read() == ("b1", "r1")
    board.renew("b3")
    assert board.read() == ("b3", "r1")
    board.leave()
    assert board.read() == (None, "r1")


class StillMonitor(Monitor):
    """A monitor that starts no thread."""

    def start(self) -> None:
        """Start nothing."""


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the test a registry of its own, in which monitors do not run."""
    monkeypatch.setattr(registry, "_registry", registry._Registry(StillMonitor))
    yield
    registry.stop_monitors()


@pytest.mark.usefixtures("own_registry")
def test_setting_starts_and_stops_the_sharing(settings: Any) -> None:
    """It is off by default, and follows the setting as soon as a monitor is asked for."""
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    first = registry.get_monitor("default", ("r1",), 1.0)
    assert registry._registry.sharers == {}
    settings.REPLICA_ROUTER = {"SHARE_READINGS": True}
    second = registry.get_monitor("default", ("r1",), 1.0)
    assert first.stopped
    assert registry.get_monitor("default", ("r1",), 1.0) is second
    sharer = registry._registry.sharers["default"]
    assert sharer.is_alive()
    settings.REPLICA_ROUTER = {}
    assert registry.get_monitor("default", ("r1",), 1.0) is not second
    sharer.join(60.0)  # on a busy machine it may need more than the second that was waited for it
    assert not sharer.is_alive()


def test_each_process_has_a_name_of_its_own() -> None:
    """Also those that were forked from one."""
    monitor = StillMonitor("default", ("r1",), 1.0)
    assert len({Sharer(monitor, "default")._beat.owner for _ in range(50)}) == 50
