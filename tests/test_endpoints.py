"""One alias that leads to several servers: each is known by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.connections import on_replica, proving
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import finishing
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import search
from django_replica_router.routing.budget import Budget
from django_replica_router.sql import answering
from django_replica_router.values.tokens import Position
from testproject.cluster import Cluster, PostgresServer
from testproject.notes.models import Note
from tests.conftest import POOLER, wait_until
from tests.endpoints import (  # noqa: F401 - fixtures
    ALIAS,
    BALANCED,
    POOLED,
    Endpoint,
    Seen,
    endpoint,
    kind,
    look,
    only_transaction,
    present_monitor,
    read,
    read_in_turn,
    rename,
    servers_of,
    site_settings,
    wait_until_served,
)
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.skipif(bool(POOLER), reason="it has poolers of its own"),
]


def are_known(endpoint: Endpoint) -> bool:
    """Tell whether each of the servers is known by itself, and how old what it shows is.

    While it is found out that a pooler leads each statement anywhere, they are met anew in turn, and one
    that is paused meanwhile would have to show first that it has all that the primary has.
    """
    monitor = find_monitor("default")
    if monitor is None or (ALIAS in monitor.servers.led) != (endpoint.kind == "transaction"):
        wait_until_served(endpoint)
        return False
    lives = {monitor.servers.life(ALIAS), *monitor.servers.lives(ALIAS)}
    ages = [monitor.health.server(ALIAS, life).age for life in lives if life is not None]
    return len(ages) == len(endpoint.targets) and max(ages) < math.inf


def pause_one(endpoint: Endpoint) -> tuple[PostgresServer, PostgresServer]:
    """Have one of the servers replay no more; return the other one, and that one."""
    wait_until(lambda: are_known(endpoint), "each server to be known by itself")
    one, other = endpoint.cluster.replicas
    other.pause()
    return one, other


def rename_by_nobody(cluster: Cluster, text: str) -> None:
    """Change the note, for nobody whom the package knows."""
    cluster.primary.execute("UPDATE notes_note SET title = %s", [text], dbname="app")


# Two servers that serve --------------------------------------------------------------------------


def test_both_servers_serve(endpoint: Endpoint, ann: User, note: Note) -> None:
    """Each is known by itself, and a reader is served by whichever is reached."""
    client = sign_in(ann)
    wait_until_served(endpoint)
    seen = []
    for server in endpoint.targets * 8:
        with endpoint.only(server):
            connections[ALIAS].close()
            seen.append(Seen(*visit(client, look)))
    assert [port for _, _, port in seen] == [server.port for server in endpoint.targets * 8]


def test_it_leads_to_both_by_itself(endpoint: Endpoint, ann: User, note: Note) -> None:
    """As the endpoint balances: nothing is preferred."""
    wait_until_served(endpoint)
    # There it depends on how many statements there are.
    least = 0 if endpoint.kind == "transaction" else 5

    def are_both_used() -> bool:
        served = servers_of(endpoint, [read(endpoint, None, ann) for _ in range(40)])
        return served["primary"] <= 2 and min(served["replica1"], served["replica2"]) >= least

    wait_until(are_both_used, "both servers to be used")  # unless the machine is busy


def test_writers_are_served_by_both(endpoint: Endpoint, ann: User, note: Note) -> None:
    """Who has just written is served where that was replayed: at once, where replicas do not lag."""
    wait_until_served(endpoint)

    def are_both_used() -> bool:
        seen = []
        for number in range(20):
            rename(ann, f"title {number}")
            seen.append(read(endpoint, endpoint.targets[number % 2], ann))
            assert seen[-1].title == f"title {number}"
        served = servers_of(endpoint, seen)
        return min(served["replica1"], served["replica2"]) >= 7

    wait_until(are_both_used, "both servers to be used")  # unless the machine is busy


# What one of them lacks --------------------------------------------------------------------------


def write_past_one(endpoint: Endpoint, user: User) -> None:
    """Have one server replay no more, and the user write: the other one has that, within MAX_LAG both serve."""
    wait_until_served(endpoint)
    one, _ = pause_one(endpoint)
    rename(user, "second")
    one.wait_replayed(endpoint.cluster.primary.flush())


def test_a_writer_is_not_served_by_the_one_that_lacks_it(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note
) -> None:
    """Whoever is led there is served by the primary, and whoever is led to the other one by that."""
    write_past_one(endpoint, ann)

    def are_served_so() -> bool:
        seen = read_in_turn(endpoint, ann)
        assert {title for title, _, _ in seen} == {"second"}
        return servers_of(endpoint, seen) == {"replica1": 6, "primary": 6}

    # Each time, unless the machine is busy.
    wait_until(are_served_so, "the one that has it to serve")


@pytest.mark.parametrize("kind", [*BALANCED, "session"])
def test_a_new_connection_may_lead_to_the_other_one(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note
) -> None:
    """Where a reader is not served by the server that is reached, one more connection is tried."""
    write_past_one(endpoint, ann)

    def is_the_other_one_used() -> bool:
        served = servers_of(endpoint, [read(endpoint, None, ann) for _ in range(20)])
        return served["replica1"] >= 18  # of those who are not led on, half would be

    wait_until(is_the_other_one_used, "the other server to be used")  # unless the machine is busy


def test_judged_by_the_alias_a_writer_would_be_shown_old_data(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: what is known of the best server is taken for that of each."""

    def best(self: Health, alias: str, life: Any = None) -> Any:
        known = [self.of_key(alias, key) for key in self.known.servers.keys(alias)]
        return max(known, key=lambda r: (r.state is ReplicaState.STREAMING, r.watermark))

    monkeypatch.setattr(Health, "replica", best)
    monkeypatch.setattr(proving.Proof, "_is_enough", lambda *args: True)
    write_past_one(endpoint, ann)
    assert "first" in {title for title, _, _ in read_in_turn(endpoint, ann)}


def read_what_others_write(endpoint: Endpoint, user: User) -> set[str]:
    """Return what a reader sees who has met a newer state on one server, and may meet the other."""
    wait_until_served(endpoint)
    one, other = pause_one(endpoint)
    rename_by_nobody(endpoint.cluster, "second")
    one.wait_replayed(endpoint.cluster.primary.flush())
    assert read(endpoint, other, user).title == "first"
    assert read(endpoint, one, user) == ("second", ALIAS, one.port)
    return {title for title, _, _ in read_in_turn(endpoint, user)}


def test_what_one_server_showed_is_not_taken_back_by_the_other(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note
) -> None:
    """It is remembered: a reader may meet the other one the next time."""
    assert read_what_others_write(endpoint, ann) == {"second"}


def test_without_remembering_it_would_be_taken_back(
    healed: Cluster, endpoint: Endpoint, ann: User, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(finishing, "locate_seen", lambda *args: Position(1, 0))
    assert "first" in read_what_others_write(endpoint, ann)


def test_what_was_remembered_is_not_stored_again(
    endpoint: Endpoint, ann: User, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody writes, a reader costs the token store one look, as elsewhere."""
    wait_until_served(endpoint)

    def stores_nothing() -> bool:
        read_in_turn(endpoint, ann, 4)
        stored: list[Any] = []
        with monkeypatch.context() as patch:
            patch.setattr(finishing, "_store", lambda *args: stored.append(args))
            served = servers_of(endpoint, read_in_turn(endpoint, ann))
        return not stored and served["primary"] == 0

    # Unless the primary itself writes a little meanwhile, as it does every 15 seconds.
    wait_until(stores_nothing, "what was remembered to do")


def test_nothing_is_remembered_for_nobody(
    endpoint: Endpoint, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no session is promised the bound of the lag alone, and costs neither store nor server."""
    wait_until_served(endpoint)
    monkeypatch.setattr(finishing, "locate_seen", lambda *args: pytest.fail("it was located"))
    assert servers_of(endpoint, read_in_turn(endpoint))["primary"] == 0


# Two statements of one request -------------------------------------------------------------------


def read_by_two_statements(endpoint: Endpoint) -> list[Seen]:
    """Return what two statements of a request see: the first led to one server, the other elsewhere."""
    wait_until_served(endpoint)
    one, other = pause_one(endpoint)
    rename_by_nobody(endpoint.cluster, "second")
    one.wait_replayed(endpoint.cluster.primary.flush())
    pop_stats()
    with scope():
        with endpoint.only(one):
            seen = [look()]
        with endpoint.only(other):
            seen.append(look())
    return seen


@only_transaction
def test_two_statements_of_one_request_do_not_go_back_in_time(
    healed: Cluster, endpoint: Endpoint, note: Note
) -> None:
    """What one server has shown, the next one has replayed, or its rows are not shown."""
    first, second = read_by_two_statements(endpoint)
    assert first == ("second", ALIAS, healed.replicas[0].port)
    assert second == ("second", ALIAS, healed.primary.port)
    assert get_stats()["retried_behind"] == 1


@only_transaction
def test_without_what_was_seen_before_they_would(
    healed: Cluster, endpoint: Endpoint, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    original = proving.Proof._is_enough

    def is_enough(self: proving.Proof, *args: Any) -> bool:
        self._state.route.shown = {}
        return original(self, *args)

    monkeypatch.setattr(proving.Proof, "_is_enough", is_enough)
    assert [title for title, _, _ in read_by_two_statements(endpoint)] == ["second", "first"]


@only_transaction
def test_two_statements_may_be_answered_by_two_servers(endpoint: Endpoint, note: Note) -> None:
    """Where the second one has replayed all that the first has shown."""
    wait_until_served(endpoint)
    one, other = endpoint.targets
    with scope():
        with endpoint.only(one):
            first = look()
        with endpoint.only(other):
            second = look()
    assert (first.port, second.port) == (one.port, other.port)


@only_transaction
def test_a_driver_that_cannot_go_back_proves_less(
    endpoint: Endpoint, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With psycopg 3.2 how much a statement has seen is not known: then one server answers a request."""
    monkeypatch.setattr(answering, "can_ask_bound", lambda sql, cursor: False)
    wait_until_served(endpoint)
    one, other = endpoint.targets
    with scope():
        with endpoint.only(one):
            seen = [look(), look()]
        with endpoint.only(other):
            seen.append(look())
    assert servers_of(endpoint, seen) == {"replica1": 2, "primary": 1}


@only_transaction
def test_what_cannot_ask_along_is_run_on_the_primary(
    endpoint: Endpoint, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where any server may answer, a question behind the statement tells nothing."""
    wait_until_served(endpoint)
    monkeypatch.setattr(on_replica, "can_ask_along", lambda raw, cursor: False)
    assert servers_of(endpoint, read_in_turn(endpoint)) == {"primary": 12}


# What may yield, and what stands in ----------------------------------------------------------------


def test_what_was_seen_yields_where_its_share_is_spent(
    healed: Cluster,
    endpoint: Endpoint,
    site_settings: Any,
    ann: User,
    note: Note,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader who has only seen more elsewhere is served by the server that is reached."""
    site_settings.REPLICA_ROUTER = {**site_settings.REPLICA_ROUTER, "MONOTONIC_SHARE": 0.0}
    wait_until_served(endpoint)
    one, other = pause_one(endpoint)
    rename_by_nobody(healed, "second")
    one.wait_replayed(healed.primary.flush())
    assert read(endpoint, one, ann).title == "second"
    # Nothing is free, as it would be in the first window and, in part, in each one after it.
    for module in (search, proving):
        monkeypatch.setattr(module, "monotonic_budget", Budget(free=0))
    pop_stats()
    assert read(endpoint, other, ann) == ("first", ALIAS, other.port)
    assert get_stats()["reads_yielded"] == 1
    rename(ann, "third")
    one.wait_replayed(healed.primary.flush())
    assert read(endpoint, other, ann).title == "third"


def test_an_endpoint_stands_in_for_a_primary_that_is_down(
    healed: Cluster, endpoint: Endpoint, site_settings: Any, note: Note
) -> None:
    """With ``PRIMARY_DOWN``, whichever server answers."""
    site_settings.REPLICA_ROUTER = {**site_settings.REPLICA_ROUTER, "PRIMARY_DOWN": "replicas"}
    wait_until_served(endpoint)
    healed.primary.kill()
    wait_until(lambda: present_monitor().known.primary_is_down, "its death to be noticed")
    for server in endpoint.targets:
        assert read(endpoint, server).port == server.port


@pytest.mark.parametrize("kind", POOLED)
def test_what_runs_past_the_wrappers_is_run_on_the_primary(endpoint: Endpoint, note: Note) -> None:
    """The rows of ``copy()`` and ``stream()`` prove nothing."""
    wait_until_served(endpoint)
    sql = "SELECT pg_is_in_recovery()::text"

    def stream(cursor: Any) -> str:
        return str(next(iter(cursor.stream(sql)))[0])

    def copy(cursor: Any) -> str:
        with cursor.copy(f"COPY ({sql}) TO STDOUT") as rows:
            return bytes(next(iter(rows))).decode().strip()

    pop_stats()
    for way in (stream, copy):
        with scope():
            assert look().alias == ALIAS
            with connections[ALIAS].cursor() as cursor:
                assert way(cursor) == "false"
    assert get_stats()["statements_unproven"] == 2
