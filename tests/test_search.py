"""Whom the search for a replica asks, and when: with a monitor that is fed by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from django.db import connections

from django_replica_router import search
from django_replica_router.balancers import Order
from django_replica_router.monitor import Monitor
from django_replica_router.policy import Decision, Reason, ReplicaState
from django_replica_router.readings import Reading, Sample
from django_replica_router.search import Search, Target
from django_replica_router.tokens import Position
from django_replica_router.writes import locate_seen
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
        self._answer = answer
        self._catch_up = catch_up
        monkeypatch.setattr(search, "ask_over_connection", self._ask)
        monkeypatch.setattr(search, "connect_to_replica", lambda *_: SimpleNamespace())
        self.monitor.publish_sample(Sample(self.monitor.clock(), Position(1, 50)))
        for alias in ("r1", "r2"):
            self.read(alias, 50)

    def read(self, alias: str, lsn: int, state: ReplicaState = ReplicaState.STREAMING) -> None:
        """Let a replica say what it has replayed."""
        now = self.monitor.clock()
        self.monitor.publish_reading(
            alias, Reading(state, lsn, read_at=now, catch_up=self._catch_up)
        )

    def _ask(self, alias: str, monitor: Monitor) -> None:
        self.asked.append(alias)
        self.read(alias, self._answer(len(self.asked)))

    def decide(self, *, age: float = 0.0, wait: float = 0.01) -> Decision:
        """Search for a replica for a reader whose usual one is ``r1``."""
        target = Target(FLOOR, age, 10.0, 0.5, None, 1.0)
        order = Order("r1", lambda: ["r1", "r2"])
        one = Search("default", self.monitor, order, target, wait, keeps_replica=True)
        return one.run().decision


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
    world.monitor.lose("r1", state, "")
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


def test_who_comes_again_and_again_waits_when_the_position_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though each visit to the primary makes the token young again, its position is not."""
    world = World(monkeypatch, lambda number: 50, catch_up=5.0)
    world.monitor.want(FLOOR.lsn, 4.995)
    assert world.decide(age=0.0) == Decision("default", Reason.LAGGING)
    assert world.asked == ["r1", "r1"]  # at first, and after the wait


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
