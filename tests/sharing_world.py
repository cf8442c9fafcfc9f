"""A world of processes that share readings.

Each process has a clock of its own, which is set by hand and agrees with no other one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.replicas.sharing import Sharer
from django_replica_router.sql.answering import ServerIdentity
from django_replica_router.values.tokens import Position

INTERVAL = 1.0
ENDURANCE = 3 * INTERVAL
LIFE = 3  # seconds for which a beat stays in the cache
BEAT_KEY, REPORT_KEY = "rr-beat:default", "rr-report:default"
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


class WorldEntries:
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

    def _set(self, key: str, value: str, life: int, *, only_new: bool = False) -> bool:
        self._world.interrupt()
        entries = self._access()
        is_set = not (only_new and key in entries)
        if is_set:
            entries[key] = value, self._world.now + life
        self._world.interrupt()
        return is_set

    def read(self, keys: list[str]) -> list[object]:
        self._world.interrupt()
        entries = self._access()
        found: list[object] = [entries.get(key, (None, 0))[0] for key in keys]
        self._world.interrupt()
        return found

    def write(self, key: str, text: str, life: int) -> None:
        self._set(key, text, life)

    def add(self, key: str, text: str, life: int) -> bool:
        return self._set(key, text, life, only_new=True)

    def delete(self, key: str) -> None:
        self._access().pop(key, None)


class Process:
    """A process of the site, on a clock of its own."""

    def __init__(self, world: World, offset: float) -> None:
        self.world = world
        self.is_busy = False
        self.looks = 0
        self.reaches_primary = True
        self.monitor = Monitor("default", ["r1"], INTERVAL, clock=lambda: world.now + offset)
        self.monitor.waiting.wait_for = self.wait_for  # type: ignore[method-assign]
        self.sharer = Sharer(self.monitor, "default", lambda cache: WorldEntries(world))

    def wait_for(self, look: Callable[[], Any], timeout: float) -> Any:
        """Look, as nobody else does: no thread runs."""
        self.look()
        return look()

    def look(self) -> None:
        """Look at both servers, as the threads would."""
        world, monitor = self.world, self.monitor
        self.looks += 1
        if self.reaches_primary:
            monitor.known.primary_looks.failures = 0
            monitor.known.primary_looks.identity = world.identity
            position = Position(world.timeline, world.written)
            monitor.answers.publish_sample(Sample(monitor.clock(), position))
        else:
            monitor.known.primary_looks.failures += 1
        self.read()

    def read(self) -> None:
        """Look at the replica."""
        monitor, world = self.monitor, self.world
        monitor._pollers["r1"]._note_life(world.life_of_replica())
        read_at = monitor.clock()
        monitor.answers.publish_reading("r1", Reading(world.state, world.replayed, read_at=read_at))

    def round(self) -> None:
        """Take a round, unless one is under way."""
        if not self.is_busy:
            self.is_busy = True
            self.sharer.try_round()
            self.is_busy = False

    @property
    def replica(self) -> Replica:
        """What it knows of the replica."""
        return self.monitor.health.replica("r1")

    def woken(self) -> set[str]:
        """Return the servers that it is to look at now, and let its threads sleep again."""
        known = self.monitor.known
        every = [known.primary_looks, *known.looks.values()]
        found = {looks.alias for looks in every if looks.wake.is_set()}
        for looks in every:
            looks.wake.clear()
        return found

    def rests(self) -> set[str]:
        """Return the servers that it leaves to somebody else."""
        return {alias for alias in ("default", "r1") if self.monitor.known.is_told(alias)}


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


ACTIONS = "pass write write replay restart look read round round round round round".split()


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


def run_at_random(*seeds: int) -> None:
    """Let long scripts happen, in which nothing goes as it should."""
    for seed in seeds:
        draw = random.Random(seed)
        script = [(draw.choice(ACTIONS), draw.randint(0, 8)) for _ in range(300)]
        run(script, [max(0, draw.randint(-4, 4)) for _ in range(300)])
