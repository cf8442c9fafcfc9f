"""The first decision where all is as usual goes a short way, which leaves all else to the long one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_replica_router import conf, scope
from django_replica_router.conf import get_config, note_found
from django_replica_router.policy import ReplicaState, may_serve
from django_replica_router.recording.floors import load_floor
from django_replica_router.replicas.readings import Reading
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.routing import usual
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.scopes.scope import Scope, current_scope
from django_replica_router.values.carried import Carried
from django_replica_router.values.servers import Servers
from django_replica_router.values.tokens import Floor, Position
from django_replica_router.values.topology import Found
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


def has_no_replica_of_their_own(first: First) -> None:
    first.patch.setitem(first.config.__dict__, "BALANCER", "random")
    first.state.reader.name = "ann"


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
    has_no_replica_of_their_own,
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


# What it is worked out of


def usual_here() -> Any:
    """Return what the first reads of the cluster go by now."""
    return usual.usual_for("default", get_config())


def drawn(way: Any) -> set[str]:
    """Return the replicas that it sends readers to."""
    return {way._draw() for _ in range(40)}


ONE = {"CLUSTERS": {"default": ["replica1"]}}
OTHER = {"CLUSTERS": {"default": ["replica2"]}}


@pytest.fixture
def way(test_site: None, cluster: Cluster) -> Any:
    """Return what the first reads of the cluster go by, with both replicas known."""
    wait_until_known(cluster)
    return usual_here()


@pytest.fixture
def forget_found() -> Iterator[None]:
    """Forget afterwards what was found by a name."""
    yield
    conf.parsed.found = {}
    conf.reread()


def test_it_is_worked_out_once(way: Any) -> None:
    """As long as all is the same."""
    assert usual_here() is way
    assert drawn(way) == {"replica1", "replica2"}


def test_other_settings_have_their_own(way: Any) -> None:
    """Those before it, too, once they are back."""
    with override_settings(REPLICA_ROUTER=OTHER):
        assert drawn(usual_here()) == {"replica2"}
    with override_settings(REPLICA_ROUTER=ONE | {"BALANCER": "round_robin"}):
        assert not usual_here()._is_possible
    assert drawn(usual_here()) == {"replica1", "replica2"}


def test_a_thread_that_has_the_settings_of_before_leaves_nothing_of_them(way: Any) -> None:
    """It goes by what it has begun with, and whoever comes after it by the present ones."""
    with override_settings(REPLICA_ROUTER=ONE):
        before = get_config()
        with override_settings(REPLICA_ROUTER=OTHER):
            assert drawn(usual_here()) == {"replica2"}
            assert drawn(usual.usual_for("default", before)) == {"replica1"}
            assert drawn(usual_here()) == {"replica2"}


def test_servers_that_were_found_are_taken_into_account(way: Any, forget_found: None) -> None:
    """The settings are the same, and so is the monitor."""
    entry = {"NAME": "replicas.example"}
    with override_settings(REPLICA_ROUTER=ONE | {"DISCOVERY": {"replica1": entry}}):
        before = usual_here()
        assert drawn(before) == {"replica1"}
        note_found("replica1", Found(entry, ("replica2",)))
        before.monitor.follow(get_config().topology.replicas["default"])
        assert drawn(usual_here()) == {"replica2"}
        assert usual_here().monitor is before.monitor


def test_servers_that_are_found_meanwhile_are_taken_into_account(
    way: Any, monkeypatch: Patch, forget_found: None
) -> None:
    """What was worked out of both the old and the new ones does not last."""
    entry = {"NAME": "replicas.example"}
    tables = usual.random_table

    def find_before(primary: str, weights: Any) -> Any:
        note_found("replica1", Found(entry, ("replica2",)))
        find_monitor("default").follow(get_config().topology.replicas["default"])  # type: ignore[union-attr]
        return tables(primary, weights)

    with override_settings(REPLICA_ROUTER=ONE | {"DISCOVERY": {"replica1": entry}}):
        monkeypatch.setattr(usual, "random_table", find_before)
        usual_here()
        assert drawn(usual_here()) == {"replica2"}


def test_it_goes_by_the_monitor_that_looks(way: Any) -> None:
    """Of one that was stopped nothing new comes: its replicas would serve until that shows."""
    stop_monitors()
    assert find_monitor("default") is None
    assert usual_here().monitor is find_monitor("default")
    assert usual_here().monitor is not way.monitor
    assert usual_here()._health is find_monitor("default").health  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "test",
    [
        test_other_settings_have_their_own,
        test_a_thread_that_has_the_settings_of_before_leaves_nothing_of_them,
        test_servers_that_were_found_are_taken_into_account,
        test_servers_that_are_found_meanwhile_are_taken_into_account,
        test_it_goes_by_the_monitor_that_looks,
    ],
)
def test_control_of_what_it_is_worked_out_of(
    test: Callable[..., None], way: Any, forget_found: None
) -> None:
    """Each of them fails where it is kept for ever."""
    names = test.__code__.co_varnames[: test.__code__.co_argcount]
    with Patch.context() as patch:
        patch.setattr(usual, "usual_for", lambda primary, config: usual._known[primary])
        given = {"way": way, "forget_found": None, "monkeypatch": patch}
        with pytest.raises(AssertionError):
            test(**{name: given[name] for name in names})


# The rule is one


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
