"""Servers that a name leads to come and go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError
from django.db import close_old_connections, connections, router, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import pop_stats
from django_replica_router.commands import refuse_replica
from django_replica_router.conf import get_config
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import lookups
from django_replica_router.replicas.discovery import Discoverer
from django_replica_router.values.routed import RoutedAlias
from testproject.cluster import Cluster, ReplicaServer
from testproject.cluster.postgres import KEPT
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until, wait_until_known
from tests.discovered import (  # noqa: F401 - fixtures
    A2,
    A3,
    SECOND,
    THIRD,
    Discover,
    _standbys,
    discover,
    names,
    readers_of,
    rounds,
    standbys,
    template,
    the_monitor,
    wait_until_serving,
    where,
)
from tests.dnsmasq import Dnsmasq
from tests.helpers import Served
from tests.site import sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.not_pooled("the servers that are found are reached themselves"),
]


def clients_of(standby: ReplicaServer) -> int:
    """Return how many connections a server has, but for those of the cluster itself."""
    ((count,),) = standby.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' "
        "AND pid <> pg_backend_pid() AND application_name <> %s",
        [KEPT],
    )
    return int(count)


# They come


@pytest.mark.parametrize(
    "options",
    [{}, {"SHARE_READINGS": True}, {"BALANCER": "least_in_flight"}, {"BALANCER": "round_robin"}],
    ids=repr,
)
def test_a_server_that_appears_serves(
    discover: Discover, names: Dnsmasq, cluster: Cluster, options: dict[str, Any]
) -> None:
    """No process is started anew, and nothing that is known of the others is forgotten."""
    names.lead(SECOND)
    discover(**options)
    wait_until_serving(A2)
    wait_until_known(cluster)
    monitor, poller = the_monitor(), the_monitor()._pollers[A2]
    assert {visit(Client(), where) for _ in range(4)} == {A2}
    going_through = iter(connections)  # as another thread does for each request
    assert next(going_through) == "default"
    names.lead(SECOND, THIRD)
    wait_until_serving(A2, A3)
    assert [*going_through] == ["replica1", "replica2", A2]
    assert the_monitor() is monitor
    assert monitor._pollers[A2] is poller
    seen: set[str] = set()
    wait_until(lambda: seen.add(visit(Client(), where)) or seen == {A2, A3}, "both to serve")


def test_few_readers_are_moved_by_one_that_appears(
    discover: Discover, names: Dnsmasq, cluster: Cluster
) -> None:
    """Those whose replica it is from now on, and nobody else."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    staying, moving = readers_of(A2, A2, A3)[0], readers_of(A3, A2, A3)[0]
    clients = {user: sign_in(user) for user in (staying, moving)}
    names.lead(SECOND, THIRD)
    wait_until_serving(A2, A3)
    wait_until_known(cluster)
    for user, alias in ((staying, A2), (moving, A3)):

        def action(request: HttpRequest, user: User = user) -> str:
            assert request.user == user
            return where(request)

        wait_until(
            lambda user=user, action=action, alias=alias: visit(clients[user], action) == alias,
            f"{user} to meet {alias}",
        )


def test_a_server_that_was_found_is_a_replica_like_any_other(
    discover: Discover, names: Dnsmasq, cluster: Cluster
) -> None:
    """It has the weight of its alias, nothing is migrated there, and an object of it is the primary's."""
    names.lead(SECOND, THIRD)
    discover(CLUSTERS={"default": {"replica1": 3, "replica2": 1}})
    wait_until_serving(A2, A3, "replica2")
    topology = get_config().topology
    assert topology.clusters == {"default": {A2: 3, A3: 3, "replica2": 1}}
    assert set(topology.primary_of) == {"default", "replica1", "replica2", A2, A3}
    assert router.allow_migrate(A2, "notes") is False
    address = {key: connections.settings["default"][key] for key in ("HOST", "PORT")}
    connections.settings[A2].update(address)  # where one name is for all servers
    with pytest.raises(CommandError, match=f"'{A2}' is a replica of 'default'"):
        refuse_replica(A2, "migrate")
    wait_until_known(cluster)
    note = Note(title="new", owner=User.objects.create_user("bob"))
    note._state.db = A2
    note.save()
    assert note._state.db == "default"


def test_mirrors_describe_the_template_too(
    discover: Discover, names: Dnsmasq, settings: Any
) -> None:
    """Without CLUSTERS; a replica of which no name is known serves beside those that were found."""
    names.lead(SECOND)
    discover(CLUSTERS=None)
    wait_until_serving(A2, "replica2")
    assert connections.settings[A2]["TEST"]["MIRROR"] is None
    assert get_config().topology.clusters == {"default": {A2: 1.0, "replica2": 1.0}}


def test_ports_come_from_srv_records(
    discover: Discover, names: Dnsmasq, cluster: Cluster, standbys: list[ReplicaServer]
) -> None:
    """Two servers of one address; one whose record tells no port; the primary; one without an address."""
    first, second = cluster.replicas[:2]
    names.serve(
        ("one.test", first.host, first.port),
        ("two.test", second.host, second.port),
        ("three.test", SECOND, 0),
        ("primary.test", cluster.primary.host, cluster.primary.port),
        ("gone.test", "", 5432),
    )
    discover({"TYPE": "SRV"})
    found = {f"replica1@127.0.0.1:{server.port}" for server in (first, second)}
    wait_until_serving(*found, A2)
    the_primary = f"replica1@127.0.0.1:{cluster.primary.port}"
    wait_until(
        lambda: the_monitor().known.readings[the_primary].state is ReplicaState.PRIMARY,
        "the primary to be known as such",
    )
    seen: set[str] = set()
    wait_until(lambda: seen.add(visit(Client(), where)) or seen >= {*found, A2}, "all to serve")
    assert seen <= {*found, A2, "default"}


# They go


@pytest.fixture
def many(cluster: Cluster, ann: User) -> None:
    """A note and two hundred tags, on every server."""
    Note.objects.create(owner=ann, title="first")
    Tag.objects.bulk_create(Tag(name=f"tag {n:03}") for n in range(200))


@pytest.mark.usefixtures("many")
def test_one_that_vanishes_is_drained(
    discover: Discover,
    names: Dnsmasq,
    standbys: list[ReplicaServer],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody new is sent there, what runs goes on there, and then all connections end."""
    monkeypatch.setattr(lookups, "_LIFETIME", 0.3)
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    poller = the_monitor()._pollers[A2]

    def action(request: HttpRequest) -> list[Any]:
        rows = Tag.objects.order_by("name").iterator(chunk_size=10)
        first = [next(rows).name for _ in range(15)]
        names.lead(THIRD)
        wait_until_serving(A3)
        rest = [tag.name for tag in rows]
        # The request stays with the server that it was given.
        return [first + rest, where(request), Note.objects.get().title]

    pop_stats()
    assert visit(Client(), action) == [[f"tag {n:03}" for n in range(200)], A2, "first"]
    assert {event for event in pop_stats() if event.startswith("retried")} == set()
    wait_until_known(cluster)
    assert visit(Client(), where) == A3
    assert connections[A2].connection is not None
    wait_until(lambda: connections[A2].close_at == 0.0, "it to be told that it is too old")
    assert poller.is_alive()  # or nobody would see if the server hung
    names.stop()
    close_old_connections()  # as Django at the end of a request
    wait_until(lambda: clients_of(standbys[0]) == 0, "no connection to be left")
    wait_until(lambda: not poller.is_alive(), "nobody to look at it any more")
    assert A2 not in the_monitor().known.readings


@pytest.mark.usefixtures("many")
def test_control_of_draining(
    discover: Discover,
    names: Dnsmasq,
    rounds: Callable[[int], None],
    standbys: list[ReplicaServer],
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With nobody who sees to it, the connections stay open."""
    monkeypatch.setattr(Discoverer, "_drain", lambda self: None)
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    assert visit(Client(), where) == A2
    names.lead(THIRD)
    wait_until_serving(A3)
    rounds(3)
    close_old_connections()
    assert clients_of(standbys[0]) == 2
    assert the_monitor()._pollers[A2].is_alive()


@pytest.mark.usefixtures("many")
def test_a_transaction_on_one_that_vanishes_goes_on_there(
    discover: Discover, names: Dnsmasq, cluster: Cluster
) -> None:
    """What the code reads inside ``atomic()`` on a replica it reads there to the end."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)

    def action(request: HttpRequest) -> list[str]:
        with transaction.atomic(using=A2):
            before = where(request)
            names.lead(THIRD)
            wait_until_serving(A3)
            return [before, where(request)]

    assert visit(Client(), action) == [A2, A2]


def read_on_hanging(
    names: Dnsmasq, standby: ReplicaServer, lead_on: Callable[[], None]
) -> Callable[[HttpRequest], str]:
    """Return a view whose replica vanishes from the name and hangs in the midst of it, for a while."""

    def action(request: HttpRequest) -> str:
        assert where(request) == A2
        names.lead(THIRD)
        wait_until_serving(A3)
        lead_on()
        standby.suspend()
        timer = threading.Timer(4.0, standby.resume_process)
        timer.start()
        try:
            return Note.objects.get().title
        finally:
            timer.cancel()
            timer.join()
            standby.resume_process()

    return action


@pytest.mark.hangs
@pytest.mark.usefixtures("many")
def test_one_that_vanishes_and_hangs_is_not_waited_for(
    discover: Discover, names: Dnsmasq, cluster: Cluster, standbys: list[ReplicaServer]
) -> None:
    """It is looked at as long as anything may run there."""
    names.lead(SECOND)
    discover(MAX_LAG=100.0, TOKEN_TTL=200.0)
    wait_until_serving(A2)
    wait_until_known(cluster)
    pop_stats()
    assert visit(Client(), read_on_hanging(names, standbys[0], lambda: None)) == "first"
    events = pop_stats()
    assert events["waits_ended"] >= 1  # that of the look at it as well
    assert events["retried_replica_fault"] == 1


@pytest.mark.usefixtures("many")
def test_control_of_one_that_vanishes_and_hangs(
    discover: Discover, names: Dnsmasq, cluster: Cluster, standbys: list[ReplicaServer]
) -> None:
    """With nobody who looks at it any more, it is waited for until it goes on."""
    names.lead(SECOND)
    discover(MAX_LAG=100.0, TOKEN_TTL=200.0)
    wait_until_serving(A2)
    wait_until_known(cluster)
    pop_stats()

    def look_no_more() -> None:
        the_monitor().remove(A2)

    assert visit(Client(), read_on_hanging(names, standbys[0], look_no_more)) == "first"
    assert "waits_ended" not in pop_stats()


@pytest.mark.usefixtures("many")
def test_one_that_comes_back_serves_again(
    discover: Discover, names: Dnsmasq, cluster: Cluster, standbys: list[ReplicaServer]
) -> None:
    """Under its old alias, with a look at it that knows nothing of before."""
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    poller = the_monitor()._pollers[A2]
    names.lead(THIRD)
    wait_until_serving(A3)
    wait_until(lambda: not poller.is_alive(), "nobody to look at it any more")
    names.lead(SECOND, THIRD)
    wait_until_serving(A2, A3)
    assert the_monitor()._pollers[A2] is not poller
    names.lead(SECOND)
    wait_until_serving(A2)
    wait_until_known(cluster)
    assert visit(Client(), where) == A2


def test_what_was_read_from_one_that_is_gone_can_be_used(
    ann: User, discover: Discover, names: Dnsmasq, cluster: Cluster
) -> None:
    """An object that outlives its request names an alias that nobody goes through any more."""
    Note.objects.create(owner=ann, title="first")
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    kept: list[Note] = []
    visit(Client(), lambda request: kept.append(Note.objects.get()))
    names.lead(THIRD)
    wait_until_serving(A3)
    connections[A2].close()
    wait_until(lambda: A2 not in the_monitor().known.readings, "nobody to look at it")
    wait_until_known(cluster)
    del connections[A2]
    assert A2 not in list(connections)
    (note,) = kept
    assert type(note._state.db) is RoutedAlias
    with Served() as served:

        def action(request: HttpRequest) -> list[Any]:
            other = Note.objects.get()
            return [
                note.owner.username,
                # Past the router.
                Note.objects.using(note._state.db).get().title,
                # Of one cluster, though neither alias was there when the other one was.
                note._state.db != other._state.db,
                other._state.db != note._state.db,
            ]

        assert visit(Client(), action) == ["ann", "first", False, False]
        assert served.aliases("notes_note") == served.aliases("auth_user") == {A3}
    note.title = "second"
    note.save()
    assert note._state.db == "default"


def test_a_pool_ends_with_its_server(
    discover: Discover,
    names: Dnsmasq,
    cluster: Cluster,
    standbys: list[ReplicaServer],
    template: dict[str, Any],
) -> None:
    """psycopg's pool would go on to connect to a server that is gone."""
    template.update(CONN_MAX_AGE=0, OPTIONS={"pool": {"min_size": 2, "max_size": 4}})
    names.lead(SECOND)
    discover()
    wait_until_serving(A2)
    wait_until_known(cluster)
    assert visit(Client(), where) == A2
    assert A2 in connections[A2]._connection_pools
    connections[A2].close()
    assert clients_of(standbys[0]) >= 2
    names.lead(THIRD)
    wait_until_serving(A3)
    wait_until(lambda: clients_of(standbys[0]) == 0, "the pool to end")
    assert A2 not in connections[A2]._connection_pools
