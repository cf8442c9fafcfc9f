"""Dead servers behind a living pooler, and dead poolers."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.sql import wal
from testproject.cluster import Cluster, PgBouncerServer
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until, wait_until_reachable
from tests.faulty import state_of, wait_for_state
from tests.helpers import Served
from tests.pooled import (  # noqa: F401 - fixtures
    BLIND,
    look_until_routed,
    mode,
    poolers,
    rename,
    title,
    transaction_poolers,
    usual_replica,
)
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# A dead server behind a living pooler, and a dead pooler


@pytest.mark.hangs
def test_a_dead_server_behind_a_living_pooler_is_left_out(
    poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster, served: Served
) -> None:
    """New requests do not wait in the pooler's queue; when it is back, it serves again."""
    replica = healed.replicas[0]
    replica.kill()
    out = {ReplicaState.SILENT, ReplicaState.UNREACHABLE}
    wait_until(lambda: state_of(replica) in out, "its death to be noticed")
    served.clear()
    for _ in range(10):
        assert visit(Client(), title) == "first"
    assert replica.name not in served.aliases()
    replica.start()
    wait_for_state(replica, ReplicaState.STREAMING)


@pytest.mark.hangs
@pytest.mark.parametrize("way", ["kill", "suspend"])
def test_a_dead_pooler_is_left_out(
    poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster, served: Served, way: str
) -> None:
    """Though its server lives."""
    replica = healed.replicas[0]
    getattr(poolers[replica.name], way)()
    out = {ReplicaState.SILENT, ReplicaState.UNREACHABLE}
    wait_until(lambda: state_of(replica) in out, "its death to be noticed")
    connections.close_all()
    served.clear()
    for _ in range(10):
        assert visit(Client(), title) == "first"
    assert replica.name not in served.aliases()
    healed.heal()
    wait_for_state(replica, ReplicaState.STREAMING)


def test_a_full_pool_is_no_concern_of_the_visitor(
    transaction_poolers: dict[str, PgBouncerServer], note: Note, cluster: Cluster
) -> None:
    """Who waits in vain for a server's connection is answered by the primary."""
    with ExitStack() as stack:
        holders = {}
        for replica in cluster.replicas:
            pooler = transaction_poolers[replica.name]
            for command in ("SET default_pool_size = 1", "SET query_wait_timeout = 1"):
                pooler.ask(command)
            holders[replica.name] = stack.enter_context(
                psycopg.connect(host=pooler.host, port=pooler.port, user="postgres", dbname="app")
            )

        def action(request: HttpRequest) -> list[str]:
            alias = str(Note.objects.get()._state.db)
            # In a transaction, which keeps the one connection there is.
            holders[alias].execute("SELECT 1")
            return [alias, Note.objects.get().title]

        pop_stats()
        alias, seen = visit(Client(), action)
        assert alias in holders
        assert seen == "first"
    stats = get_stats()
    assert stats.get("retried_replica_fault", 0) + stats.get("retried_elsewhere", 0) == 1


def test_a_pooler_that_takes_no_more_clients_is_no_concern_of_the_visitor(
    poolers: dict[str, PgBouncerServer], note: Note, cluster: Cluster, served: Served
) -> None:
    """Another replica or the primary serves."""
    with ExitStack() as stack:
        for replica in cluster.replicas:
            stack.enter_context(poolers[replica.name].adjusted(max_client_conn="1"))
        connections.close_all()
        assert visit(Client(), title) == "first"
        assert served.only_primary("notes_note")


def test_a_replicas_pooler_that_is_led_to_the_primary_serves_nobody(
    transaction_poolers: dict[str, PgBouncerServer],
    note: Note,
    healed: Cluster,
    settings: Any,
    served: Served,
) -> None:
    """No request reads there, though connections live on and the monitor has not looked yet."""
    settings.REPLICA_ROUTER = BLIND
    look_until_routed()
    replica = usual_replica(Client(), healed)
    transaction_poolers[replica.name].lead(healed.primary.port)
    for _ in range(5):
        assert visit(Client(), title) == "first"
        # What turns out to come from there is read again elsewhere.
        assert served.statements[-1][0] != replica.name
    settings.REPLICA_ROUTER = PATIENT
    with scope():
        Note.objects.get()
    wait_for_state(replica, ReplicaState.PRIMARY)


def test_two_servers_behind_one_alias_are_noticed(
    transaction_poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster
) -> None:
    """Which answer in turn: each is known by itself from then on."""
    one, two = healed.replicas
    pooler = transaction_poolers[one.name]
    monitor = find_monitor("default")
    assert monitor is not None
    for server in (two, one):
        before = monitor.servers.life(one.name)
        pooler.lead(server.port)
        wait_until(
            lambda before=before: monitor.servers.life(one.name) != before, "the other to be met"
        )
    wait_until(lambda: one.name in monitor.servers.led, "it to be known")
    wait_for_state(one, ReplicaState.STREAMING)


# The primary's pooler


def test_a_failover_by_the_pooler_needs_no_change_of_the_site(
    poolers: dict[str, PgBouncerServer],
    mode: str,
    ann: User,
    note: Note,
    healed: Cluster,
    served: Served,
) -> None:
    """The pooler of the primary is led to the promoted replica; connections to it live on."""
    client = sign_in(ann)
    rename(client, "second")
    healed.wait_caught_up()
    first, second = healed.replicas
    healed.primary.kill()
    first.promote()
    second.follow(first)
    poolers["primary"].lead(first.port)
    wait_until_reachable("default")
    if mode == "session":
        connections["default"].close()  # it broke with its server
    assert visit(client, title) == "second"
    rename(client, "third")
    for _ in range(5):
        assert visit(client, title) == "third"
    wait_for_state(second, ReplicaState.STREAMING)

    def is_served_by_follower() -> bool:
        served.clear()
        assert visit(client, title) == "third"
        return served.only_replicas("notes_note")

    wait_until(is_served_by_follower, "the follower to serve")
    assert state_of(first) is not ReplicaState.STREAMING


def test_the_token_of_a_commit_may_be_read_on_another_connection(
    transaction_poolers: dict[str, PgBouncerServer], note: Note, cluster: Cluster
) -> None:
    """The position is one of the server, whichever of its processes tells it."""
    pooler = transaction_poolers["primary"]
    with transaction.atomic():
        note.save()
        ((committed_on,),) = connection.connection.execute("SELECT pg_backend_pid()").fetchall()
    least = cluster.primary.insert_lsn()
    with psycopg.connect(
        host=pooler.host, port=pooler.port, user="postgres", dbname="app"
    ) as holder:
        # PgBouncer gives the connection that was used last.
        assert holder.execute("SELECT pg_backend_pid()").fetchone() == (committed_on,)
        position = wal.read_token(connection.connection)
        ((read_on,),) = connection.connection.execute("SELECT pg_backend_pid()").fetchall()
    assert read_on != committed_on
    assert position.lsn >= least - 40  # less at most a page header


@pytest.mark.hangs
def test_a_primary_that_hangs_is_asked_again(
    poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster
) -> None:
    """The monitor's own look does not wait as long as a pooler, or TCP, lets it."""
    monitor = find_monitor("default")
    assert monitor is not None
    healed.primary.suspend()
    wait_until(lambda: monitor.known.primary_looks.failures, "its look to be given up")
    healed.primary.resume_process()
    wait_until(lambda: not monitor.known.primary_is_down, "it to be back")
