"""The first decision where all is as usual goes a short way, which leaves all else to the long one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections

from django_replica_router import scope
from django_replica_router.conf import get_config
from django_replica_router.policy import ReplicaState, may_serve
from django_replica_router.recording.floors import load_floor
from django_replica_router.replicas.readings import Reading
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import usual
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.scopes.scope import Scope, current_scope
from django_replica_router.values.carried import Carried
from django_replica_router.values.servers import Servers
from django_replica_router.values.tokens import Floor, Position
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until_known
from tests.monitored import STREAMING
from tests.monitored import Cluster as Monitored

Patch = pytest.MonkeyPatch

READ = 1000.0
"""Moment of the reading."""


class First:
    """A first decision that is about to be made in a scope, and what it goes by."""

    def __init__(self, patch: Patch) -> None:
        self.patch = patch
        self.config: Any = get_config()
        self.monitor: Any = find_monitor("default")
        scope = current_scope()
        assert scope is not None
        self.scope: Scope = scope
        self.floor: Floor = load_floor("default", scope, self.config)
        self.state = scope.cluster("default")

    def decide(self) -> Any:
        """Return the decision; None where it is left to the long way."""
        way = usual.Usual("default", self.config, self.monitor)
        return way.choose(self.scope, self.state, connections["default"], 4.0, self.floor)


def is_in_shadow(first: First) -> None:
    first.patch.setitem(first.config.__dict__, "shadows", True)


def has_another_balancer(first: First) -> None:
    first.patch.setitem(first.config.__dict__, "BALANCER", "round_robin")


def carries_a_token(first: First) -> None:
    first.scope.carried = Carried()


def may_have_been_forgotten(first: First) -> None:
    first.state.reader.may_be_forgotten = True


def has_written(first: First) -> None:
    first.state.note_written()


def reads_by_an_endpoint(first: First) -> None:
    first.patch.setattr(first.monitor.servers, "endpoints", frozenset(["replica1"]))


def servers_have_just_come(first: First) -> None:
    first.patch.setattr(first.config.topology, "settling", {"default": None})


def was_served_without_the_store(first: First) -> None:
    first.patch.setattr(usual, "unstored", {"default"})


def is_pinned(first: First) -> None:
    first.floor = replace(first.floor, pinned=True)


def store_is_empty(first: First) -> None:
    first.state.reader.records[EVERYBODY] = None


def store_is_of_before_a_failover(first: First) -> None:
    first.patch.setattr(first.monitor.history, "timeline", 2)


def token_is_of_a_later_timeline(first: First) -> None:
    first.floor = replace(first.floor, position=Position(2, 1))


def no_replica_has_the_token(first: First) -> None:
    first.floor = replace(first.floor, position=Position(1, 2**60))


def server_was_started_anew(first: First) -> None:
    first.patch.setattr(Servers, "life", lambda self, alias: ("another",))


def connections_are_closed(first: First) -> None:
    for alias in ("replica1", "replica2"):
        connections[alias].close()


def connections_have_broken(first: First) -> None:
    for alias in ("replica1", "replica2"):
        connections[alias].connection.pgconn.finish()


def nobody_has_looked_where_they_lead(first: First) -> None:
    for alias in ("replica1", "replica2"):
        first.patch.setattr(connections[alias], "sight", None)


def a_pooler_may_lead_them_elsewhere(first: First) -> None:
    for alias in ("replica1", "replica2"):
        connection: Any = connections[alias]
        first.patch.setattr(connection, "sight", replace(connection.sight, is_pooled=True))


def a_test_forbids_their_use(first: First) -> None:
    for alias in ("replica1", "replica2"):
        first.patch.setitem(connections[alias].__dict__, "cursor", None)


def session_has_a_setting(first: First) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SET search_path = public")


UNUSUAL = [
    is_in_shadow,
    has_another_balancer,
    carries_a_token,
    may_have_been_forgotten,
    has_written,
    reads_by_an_endpoint,
    servers_have_just_come,
    was_served_without_the_store,
    is_pinned,
    store_is_empty,
    store_is_of_before_a_failover,
    token_is_of_a_later_timeline,
    no_replica_has_the_token,
    server_was_started_anew,
    connections_are_closed,
    connections_have_broken,
    nobody_has_looked_where_they_lead,
    a_pooler_may_lead_them_elsewhere,
    a_test_forbids_their_use,
    session_has_a_setting,
]


@pytest.fixture
def first(test_site: None, cluster: Cluster, note: Note, monkeypatch: Patch) -> Any:
    """Return a first decision, of nobody in particular, with all connections open."""
    wait_until_known(cluster)
    for alias in connections:
        connections[alias].ensure_connection()
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
    for _ in range(40):  # a draw of 40 that leaves one of two replicas out is one of 10**12
        with scope():
            list(Note.objects.all())
    with scope():
        yield First(monkeypatch)
    connections["default"].close()


def test_the_usual_replica_is_found_at_once(first: First) -> None:
    """Where nothing has a say but what it has replayed."""
    decision = first.decide()
    assert decision.alias in {"replica1", "replica2"}
    life = find_monitor("default").servers.life(decision.alias)  # type: ignore[union-attr]
    assert first.state.route.lives == {decision.alias: life}


@pytest.mark.parametrize("change", UNUSUAL)
def test_anything_unusual_is_left_to_the_long_way(
    first: First, change: Callable[[First], None]
) -> None:
    """Which knows what to do about it: the fixture's own decision is one for a replica."""
    assert first.decide() is not None
    change(first)
    assert first.decide() is None


STATES = [STREAMING, ReplicaState.UNKNOWN, ReplicaState.UNREACHABLE]
AGES = [math.inf, math.nan, 3.0, 0.0]
BUSY = [None, 0.5, 5.0]


def test_a_replica_may_serve_at_once_where_it_may() -> None:
    """It is one and the same rule, whichever way it is asked."""
    world = Monitored()
    found = set()
    cases = itertools.product(STATES, [-1, 99, 100], AGES, [0.0, 100.0], BUSY, [0.0, 2.0, 1e9])
    for state, watermark, age, silent, busy, max_lag in cases:
        reading = Reading(state, watermark, READ - age, READ - silent)
        world.now = READ
        looks = world.monitor.known.looks["r1"]
        looks.busy_since = None if busy is None else READ - busy
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.monitor.known, "readings", {"r1": reading})
            long = may_serve(world.monitor.health.replica("r1"), Position(1, 100), max_lag)
            assert world.monitor.health.may_serve("r1", Position(1, 100), max_lag) is long
        found.add(long)
    assert found == {True, False}


def test_a_replica_that_has_left_may_not() -> None:
    """Nothing is known of it."""
    assert not Monitored().monitor.health.may_serve("gone", Position(0, 0), math.inf)
