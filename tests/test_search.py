"""Whom the search for a replica asks, and when: with a monitor that is fed by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from django.db import connections

from django_replica_router.policy import Decision, Reason, ReplicaState
from django_replica_router.recording.writes import locate_seen
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.routing import search, waiting
from django_replica_router.routing.balancers import Order
from django_replica_router.routing.budget import Budget
from django_replica_router.routing.candidates import Target
from django_replica_router.routing.search import Search
from django_replica_router.values.tokens import Position
from testproject.cluster import Cluster
from testproject.notes.models import Note

FLOOR = Position(1, 100)


class World:
    """Two replicas that have not replayed the floor, as far as the monitor knows.

    Args:
        answer: what the usual replica tells a request each time that it is asked.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[int], int], catch_up: float = 0.0
    ) -> None:
        self.monitor = Monitor("default", ["r1", "r2"], 1.0)
        self.asked: list[str] = []
        self.waited = 0.0
        self._answer = answer
        self._catch_up = catch_up
        monkeypatch.setattr(waiting, "ask_over_connection", self._ask)
        monkeypatch.setattr(waiting, "waits_itself", lambda *_: False)
        monkeypatch.setattr(search, "connect_to_replica", lambda *_: SimpleNamespace())
        self.monitor.answers.publish_sample(Sample(self.monitor.clock(), Position(1, 50)))
        for alias in ("r1", "r2"):
            self.read(alias, 50)

    def read(self, alias: str, lsn: int, state: ReplicaState = ReplicaState.STREAMING) -> None:
        """Let a replica say what it has replayed."""
        now = self.monitor.clock()
        self.monitor.answers.publish_reading(
            alias, Reading(state, lsn, read_at=now, catch_up=self._catch_up)
        )

    def _ask(self, alias: str, monitor: Monitor) -> None:
        self.asked.append(alias)
        self.read(alias, self._answer(len(self.asked)))

    def decide(
        self, *, age: float = 0.0, wait: float = 0.01, written: Position | None = None
    ) -> Decision:
        """Search for a replica for a reader whose usual one is ``r1``.

        Where it is told what the reader has written, the primary's budget is spent.
        """
        target = Target(FLOOR, age, 10.0, 0.5, None, 1.0, 0.0, written)
        order = Order("r1", lambda: ["r1", "r2"])
        one = Search("default", self.monitor, order, target, wait, keeps_replica=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(search, "monotonic_budget", Budget(free=0))
            decision = one.run().decision
        self.waited = wait - one.wait_left
        return decision


def test_the_usual_replica_is_asked_before_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has arrived since the last look is known at once."""
    world = World(monkeypatch, lambda number: 100)
    assert world.decide() == Decision("r1", Reason.CAUGHT_UP)
    assert world.asked == ["r1"]


@pytest.mark.parametrize("state", [ReplicaState.SILENT, ReplicaState.UNREACHABLE])
def test_a_replica_that_may_not_serve_is_asked_nothing(
    monkeypatch: pytest.MonkeyPatch, state: ReplicaState
) -> None:
    """It may be one that hangs, and the reader with it."""
    world = World(monkeypatch, lambda number: 100)
    world.monitor.known.lose("r1", state, "")
    assert world.decide() == Decision("default", Reason.LAGGING)
    assert world.asked == []


def test_the_usual_replica_is_asked_once_more_when_the_wait_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was expected within the budget may have come between the last look and its end."""
    world = World(monkeypatch, lambda number: 100 if number == 2 else 50, catch_up=0.01)
    assert world.decide() == Decision("r1", Reason.CAUGHT_UP)
    assert world.asked == ["r1", "r1"]


def test_who_is_sent_away_at_once_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is due where replicas usually take longer than the budget."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    assert world.decide() == Decision("default", Reason.LAGGING)
    assert world.asked == ["r1"]


def test_who_yields_does_not_wait_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where replicas usually take longer, the budget of the wait is not spent before."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    assert world.decide(written=Position(1, 50)) == Decision("r1", Reason.YIELDED)
    assert world.waited == 0.0
    assert world.asked == ["r1"]
    assert world.decide(written=Position(1, 51)) == Decision("default", Reason.LAGGING)
    assert world.waited > 0.0


def test_nobody_yields_to_a_replica_that_lacks_what_they_have_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The budget is for what was seen, and for nothing else."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    assert world.decide(written=Position(1, 51)) == Decision("default", Reason.LAGGING)


def test_who_yields_may_leave_the_usual_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shown there is given up as well, where it does not serve."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    world.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "")
    assert world.decide(written=Position(1, 50)) == Decision("r2", Reason.YIELDED)
    assert world.decide(written=None) == Decision("default", Reason.LAGGING)


def test_who_comes_again_and_again_waits_when_the_position_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though each visit to the primary makes the token young again, its position is not."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    world.monitor.waiting.want(FLOOR.lsn, 4.995)
    assert world.decide(age=0.0) == Decision("default", Reason.LAGGING)
    assert world.asked == ["r1", "r1"]  # at first, and after the wait


@pytest.mark.hangs
@pytest.mark.usefixtures("test_site")
def test_a_replica_that_hangs_is_not_waited_for_after_the_read(healed: Cluster) -> None:
    """Where the position of what was seen there is asked for, the primary tells another one."""
    replica = healed.replicas[0]
    assert not Note.objects.using(replica.name).exists()
    assert connections[replica.name].connection is not None
    replica.suspend()
    # So that this test ends, too, where the question is ended by nobody.
    rescue = threading.Timer(15.0, replica.resume_process)
    rescue.start()
    began = time.monotonic()
    try:
        assert locate_seen("default", replica.name) is not None
        assert time.monotonic() - began < 10.0
    finally:
        rescue.cancel()


class Patience:
    """What the search tells the usual replica's server to wait, where that can.

    Args:
        lsn: what it has replayed when the wait is over.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World, lsn: int) -> None:
        self.seconds: list[float] = []
        self._world = world
        self._lsn = lsn
        monkeypatch.setattr(waiting, "waits_itself", lambda *_: True)
        monkeypatch.setattr(waiting, "wait_over_connection", self._wait)

    def _wait(
        self, alias: str, monitor: Monitor, lsn: int, seconds: float, connect_timeout: float
    ) -> None:
        assert (alias, lsn) == ("r1", FLOOR.lsn)
        self.seconds.append(seconds)
        now = monitor.clock()
        catch_up = self._world._catch_up
        reading = Reading(ReplicaState.STREAMING, self._lsn, read_at=now, catch_up=catch_up)
        monitor.answers.publish_reading(alias, reading)


def test_a_server_that_can_wait_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells itself when it is there, and nobody else is asked."""
    world = World(monkeypatch, lambda number: 50)
    patience = Patience(monkeypatch, world, FLOOR.lsn)
    assert world.decide() == Decision("r1", Reason.WAITED)
    assert (len(patience.seconds), world.asked) == (1, [])


@pytest.mark.parametrize(("catch_up", "share"), [(0.0, 0.5), (0.004, 1.0)])
def test_a_server_waits_for_half_of_the_budget_or_as_long_as_it_should_take(
    monkeypatch: pytest.MonkeyPatch, catch_up: float, share: float
) -> None:
    """Where it should soon be there and is not, another replica may be."""
    world = World(monkeypatch, lambda number: 50, catch_up=catch_up)
    patience = Patience(monkeypatch, world, 50)
    assert world.decide(wait=0.01) == Decision("default", Reason.LAGGING)
    assert patience.seconds == [share * 0.01]


def test_a_server_waits_for_all_of_the_budget_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left to look for then."""
    world = World(monkeypatch, lambda number: 50)
    world.monitor.known.lose("r2", ReplicaState.UNREACHABLE, "")
    patience = Patience(monkeypatch, world, 50)
    assert world.decide(wait=0.01) == Decision("default", Reason.LAGGING)
    assert patience.seconds == [0.01]


def test_no_server_waits_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where it usually takes longer, where nothing may be waited, or where it may not serve."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    patience = Patience(monkeypatch, world, FLOOR.lsn)
    assert world.decide() == Decision("default", Reason.LAGGING)
    world = World(monkeypatch, lambda number: 50)
    patience = Patience(monkeypatch, world, FLOOR.lsn)
    assert world.decide(wait=0.0) == Decision("default", Reason.LAGGING)
    world.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "")
    world.decide()
    assert patience.seconds == []
