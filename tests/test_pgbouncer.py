"""Behind PgBouncer the promises are the same, in session and in transaction mode.

Here is what a pooler alone can do. All other tests that reach servers run through poolers, too, with
``REPLICA_ROUTER_TEST_POOLER=transaction`` or ``session``; the few that have no meaning there are
skipped with their reason.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import ProgrammingError, connection, connections, transaction
from django.db.models import Count
from django.http import HttpRequest
from django.test import Client

from django_replica_router import connecting, get_stats, observers, pop_stats, postgres, scope
from django_replica_router.conf import get_config
from django_replica_router.policy import ReplicaState
from django_replica_router.registry import find_monitor, get_monitor, stop_monitors
from testproject.cluster import Cluster, PgBouncerServer, ReplicaServer
from testproject.cluster.binaries import PGBOUNCER_VARIABLE, locate_pgbouncer
from testproject.cluster.pgbouncer import POOL_MODES
from testproject.notes.models import Note
from tests.conftest import (
    PATIENT,
    POOLER,
    believe_every_connection,
    impatient,
    wait_until,
    wait_until_reachable,
    wait_until_routed,
)
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.test_faults import state_of, wait_for_state
from tests.torture.faults import copy_directory

pytestmark = pytest.mark.usefixtures("test_site")

# The monitor looks only when it is asked to: whatever is noticed, a request has noticed.
BLIND = {**PATIENT, "MAX_LAG": 400.0, "TOKEN_TTL": 1000.0, "INTERVAL": 100.0}


def require_pgbouncer() -> None:
    """Skip aloud where there is no PgBouncer; in CI, fail."""
    if locate_pgbouncer() is None:
        message = f"there is no PgBouncer; install it, or set {PGBOUNCER_VARIABLE} to its path"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@contextmanager
def pooled_by(cluster: Cluster, mode: str) -> Iterator[dict[str, PgBouncerServer]]:
    """Lead the application through poolers for the length of the block."""
    require_pgbouncer()
    before = {alias: dict(connections[alias].settings_dict) for alias in connections}
    servers = [("default", cluster.primary), *((r.name, r) for r in cluster.replicas)]
    cluster.lead_poolers(mode, {server.name: server.port for _, server in servers})
    lead(cluster)
    try:
        wait_until_routed()
        yield cluster.poolers
    finally:
        try:
            cluster.heal()
        finally:
            connections.close_all()
            stop_monitors()
            if POOLER:
                cluster.lead_poolers(POOLER, {server.name: server.port for _, server in servers})
                lead(cluster)
            else:
                cluster.remove_poolers()
                for alias, settings in before.items():
                    connections[alias].settings_dict.clear()  # also what was not there before
                    connections[alias].settings_dict.update(settings)


def lead(cluster: Cluster) -> None:
    """Point Django to the cluster's present entrances."""
    connections.close_all()
    stop_monitors()
    for alias, database in cluster.django_databases("app").items():
        known = {"DISABLE_SERVER_SIDE_CURSORS": False} | database
        for name in ("PORT", "DISABLE_SERVER_SIDE_CURSORS"):
            connections[alias].settings_dict[name] = known[name]


@pytest.fixture(params=POOL_MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Return a pool mode."""
    return str(request.param)


@pytest.fixture
def poolers(
    mode: str, real_cluster: Cluster, _django_on_cluster: None
) -> Iterator[dict[str, PgBouncerServer]]:
    """A PgBouncer for each server, by the server's name."""
    with pooled_by(real_cluster, mode) as poolers:
        yield poolers


@pytest.fixture
def transaction_poolers(
    real_cluster: Cluster, _django_on_cluster: None
) -> Iterator[dict[str, PgBouncerServer]]:
    """The same, in transaction mode."""
    with pooled_by(real_cluster, "transaction") as poolers:
        yield poolers


# What only a pooler can do: outlive its server


@contextmanager
def copied(replica: ReplicaServer) -> Iterator[Callable[[], None]]:
    """Copy a replica; yield what starts it anew from that copy, with no way to catch up."""
    old = replica.data_directory.with_name(f"{replica.data_directory.name}-old")
    replica.kill()
    copy_directory(replica.data_directory, old)
    replica.start()

    def restore() -> None:
        replica.kill()
        shutil.rmtree(replica.data_directory)
        old.rename(replica.data_directory)
        with (replica.data_directory / "postgresql.auto.conf").open("a") as file:
            file.write("primary_conninfo = ''\n")
        replica.start()

    try:
        yield restore
    finally:
        shutil.rmtree(old, ignore_errors=True)


def look_until_routed() -> None:
    """Have a monitor that looks only when it is asked to know both replicas."""
    config = get_config()

    def is_known() -> bool:
        monitor = get_monitor("default", ("replica1", "replica2"), config.interval)
        monitor.refresh(0.0)
        return all(r.state is ReplicaState.STREAMING and r.age < 60 for r in monitor.replicas())

    wait_until(is_known, "both replicas to be known")


def usual_replica(client: Client, cluster: Cluster) -> ReplicaServer:
    """Return the replica that the client's requests meet."""

    replicas = {replica.name: replica for replica in cluster.replicas}
    found: list[str] = []

    def is_on_replica() -> bool:
        found.append(visit(client, lambda request: Note.objects.get()._state.db))
        return found[-1] in replicas

    wait_until(is_on_replica, "a replica to serve")
    return replicas[found[-1]]


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    return Note.objects.get().title


def rename(client: Client, text: str) -> None:
    """Change the note, as the client's user."""
    visit(client, lambda request: Note.objects.update(title=text) and None, "post")


def read_from_a_server_that_went_back_in_time(
    ann: User, healed: Cluster, settings: Any, served: Served
) -> set[str]:
    """Have the usual replica start anew with an old copy; return what the user sees then."""
    client = sign_in(ann)
    healed.wait_caught_up()
    replica = usual_replica(client, healed)
    with copied(replica) as restore:
        healed.wait_caught_up()
        wait_until_reachable(replica.name)
        settings.REPLICA_ROUTER = BLIND
        look_until_routed()
        rename(client, "second")
        healed.wait_caught_up()
        wait_until(lambda: usual_replica(client, healed) is replica, "it to serve again")
        served.clear()
        assert visit(client, title) == "second"
        assert served.only_replicas("notes_note"), "the replica should serve before its restart"
        restore()
        wait_until_reachable(replica.name)
        return {visit(client, title) for _ in range(3)}


def test_a_server_that_went_back_in_time_behind_its_pooler_is_noticed(
    poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    settings: Any,
    served: Served,
) -> None:
    """The connection lives on, and the monitor has not looked: the next request asks itself."""
    seen = read_from_a_server_that_went_back_in_time(ann, healed, settings, served)
    assert seen == {"second"}


def test_without_the_question_old_data_would_be_shown(
    transaction_poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    settings: Any,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: a connection that was seen through once is believed for ever."""
    believe_every_connection(monkeypatch)
    seen = read_from_a_server_that_went_back_in_time(ann, healed, settings, served)
    assert seen == {"first"}


def read_around_a_restart(ann: User, healed: Cluster) -> list[str]:
    """Read twice in one request, with a restart from an old copy in between."""
    client = sign_in(ann)
    healed.wait_caught_up()
    replica = usual_replica(client, healed)
    with copied(replica) as restore:
        wait_until_routed()
        healed.primary.execute("UPDATE notes_note SET title = 'second'", dbname="app")
        healed.wait_caught_up()

        def action(request: HttpRequest) -> list[str]:
            before = Note.objects.get()
            assert before._state.db == replica.name
            restore()
            wait_until_reachable(replica.name)
            return [before.title, Note.objects.get().title]

        wait_until(lambda: usual_replica(client, healed) is replica, "it to serve again")
        result: list[str] = visit(client, action)
        return result


def test_one_request_does_not_go_back_in_time_with_its_replica(
    poolers: dict[str, PgBouncerServer], ann: User, note: Note, healed: Cluster
) -> None:
    """Started anew between two reads of one request, it answers as if nothing had happened."""
    pop_stats()
    assert read_around_a_restart(ann, healed) == ["second", "second"]


def test_without_the_question_one_request_would_go_back_in_time(
    transaction_poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""
    believe_every_connection(monkeypatch)
    assert read_around_a_restart(ann, healed) == ["second", "first"]


def test_a_promotion_is_noticed_though_the_pooler_does_not_tell(
    transaction_poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster
) -> None:
    """What a new connection of the pooler's says of its server never reaches the client."""

    def action(request: HttpRequest) -> list[str]:
        alias = str(Note.objects.get()._state.db)
        replica = next(r for r in healed.replicas if r.name == alias)
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        transaction_poolers[alias].ask("RECONNECT")
        return [alias, Note.objects.get().title]

    pop_stats()
    before, seen = visit(Client(), action)
    assert before.startswith("replica")
    assert seen == "first"
    assert get_stats()["retried_elsewhere"] == 1


@contextmanager
def led_elsewhere_for_one_statement(
    pooler: PgBouncerServer, alias: str, port: int
) -> Iterator[list[str]]:
    """Lead the pooler elsewhere while one statement of the alias runs, and back before its end."""
    led: list[str] = []

    def lead(execute: Any, sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
        if led or "notes_note" not in sql:
            return execute(sql, params, many, context)
        before = pooler.target_port
        pooler.lead(port)
        try:
            return execute(sql, params, many, context)
        finally:
            led.append(sql)
            pooler.lead(before)

    with connections[alias].execute_wrapper(lead):
        yield led


def pause_the_other(
    client: Client, cluster: Cluster, settings: Any
) -> tuple[ReplicaServer, ReplicaServer]:
    """Return the replica that the client's requests meet, and the other one, which replays no more.

    From now on the monitor looks only when it is asked to.
    """
    settings.REPLICA_ROUTER = BLIND
    cluster.wait_caught_up()
    look_until_routed()
    usual = usual_replica(client, cluster)
    other = next(replica for replica in cluster.replicas if replica is not usual)
    other.pause()
    return usual, other


def read_while_led_to_an_old_replica(
    poolers: dict[str, PgBouncerServer], ann: User, cluster: Cluster, settings: Any
) -> str:
    """Return what a user sees of a write that the server which answers has not replayed."""
    client = sign_in(ann)
    usual, other = pause_the_other(client, cluster, settings)
    rename(client, "second")
    usual.wait_replayed(cluster.primary.flush())

    def is_usual() -> bool:
        look_until_routed()
        return usual_replica(client, cluster) is usual

    wait_until(is_usual, "the usual replica to serve")
    with led_elsewhere_for_one_statement(poolers[usual.name], usual.name, other.port) as led:
        seen = str(visit(client, title))
    assert led, "the usual replica should be asked first"
    return seen


def test_a_pooler_may_lead_one_statement_elsewhere(
    transaction_poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    settings: Any,
) -> None:
    """Before and after the statement it leads to the right server: a question then tells nothing."""
    pop_stats()
    seen = read_while_led_to_an_old_replica(transaction_poolers, ann, healed, settings)
    assert seen == "second"
    assert get_stats()["retried_elsewhere"] == 1


def test_a_question_after_the_statement_would_not_notice(
    transaction_poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control."""
    monkeypatch.setattr(observers, "can_ask_along", lambda raw, cursor: False)
    seen = read_while_led_to_an_old_replica(transaction_poolers, ann, healed, settings)
    assert seen == "first"


def test_an_error_of_another_server_is_not_the_visitors_concern(
    transaction_poolers: dict[str, PgBouncerServer],
    ann: User,
    note: Note,
    healed: Cluster,
    settings: Any,
    request: pytest.FixtureRequest,
) -> None:
    """A table may exist where the statement was to be run; what is wrong there, too, is raised."""
    usual, other = pause_the_other(sign_in(ann), healed, settings)
    healed.primary.execute("CREATE TABLE late ()", dbname="app")
    request.addfinalizer(lambda: healed.primary.execute("DROP TABLE late", dbname="app"))
    usual.wait_replayed(healed.primary.flush())
    sql = "SELECT * FROM notes_note WHERE NOT EXISTS (SELECT FROM {})"

    def read_around(table: str) -> str:
        with scope(user=ann):
            return Note.objects.raw(sql.format(table))[0].title

    assert read_around("late") == "first"
    transaction_poolers[usual.name].lead(other.port)
    pop_stats()
    assert read_around("late") == "first"
    assert get_stats()["retried_replica_fault"] == 1
    with pytest.raises(ProgrammingError, match="nowhere"):
        read_around("nowhere")


def count_questions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list of the connections on which this thread asks, in a message of its own, who is there."""
    asked: list[Any] = []
    original = postgres.identify

    def identify(raw: Any, *args: Any) -> postgres.ServerIdentity:
        if threading.current_thread() is threading.main_thread():
            asked.append(raw)
        return original(raw, *args)

    monkeypatch.setattr(connecting.postgres, "identify", identify)
    return asked


def read_ten_times() -> str:
    """Return the alias of the replica that serves one user's reads."""
    with scope(user=1):
        (alias,) = {str(Note.objects.get()._state.db) for _ in range(10)}
    assert alias.startswith("replica")
    return alias


def test_a_query_asks_along_who_answers_it(
    poolers: dict[str, PgBouncerServer],
    cluster: Cluster,
    note: Note,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No message is sent for it."""
    read_ten_times()
    asked = count_questions(monkeypatch)
    served.clear()
    read_ten_times()
    assert asked == []
    assert len(served.statements) == 10
    assert all(sql.startswith(postgres.ask_along("SELECT", 1000)) for _, sql in served.statements)


def test_what_cannot_ask_along_is_followed_by_the_question(
    poolers: dict[str, PgBouncerServer],
    cluster: Cluster,
    note: Note,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a statement whose values travel apart from its text."""
    connection = connections[read_ten_times()]
    connection.close()
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"server_side_binding": True})
    monkeypatch.setattr(connection.features, "uses_server_side_binding", True)
    try:
        read_ten_times()
        asked = count_questions(monkeypatch)
        read_ten_times()
        assert len(asked) == 10
    finally:
        connection.close()


READS: dict[str, Callable[[], Any]] = {
    "count": lambda: Note.objects.filter(title__contains="fir%").count(),
    "values": lambda: list(Note.objects.values_list("title", flat=True)),
    "aggregate": lambda: Note.objects.aggregate(n=Count("*"))["n"],
    "iterator": lambda: [note.title for note in Note.objects.iterator(chunk_size=1)],
    "exists": lambda: Note.objects.filter(title="first").exists(),
    "raw": lambda: [n.title for n in Note.objects.raw("SELECT * FROM notes_note -- all")],
    "union": lambda: list(Note.objects.filter(pk=0).union(Note.objects.all()).values("title")),
    "explain": lambda: Note.objects.all().explain().split()[0],
    "in_bulk": lambda: Note.objects.in_bulk().popitem()[1].title,
    "related": lambda: [n.owner.pk for n in Note.objects.select_related("owner")],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_whatever_asks_along_yields_its_own_rows(
    transaction_poolers: dict[str, PgBouncerServer],
    cluster: Cluster,
    note: Note,
    read: Callable[[], Any],
    served: Served,
) -> None:
    """As on the primary, which is asked nothing."""
    expected = read()  # outside a scope
    assert served.only_primary()
    served.clear()
    with scope():
        assert read() == expected
    assert served.only_replicas()


def test_a_cursor_that_asks_along_is_one_of_the_statement(
    transaction_poolers: dict[str, PgBouncerServer], cluster: Cluster, note: Note
) -> None:
    """Its description and number of rows; an error is raised as the statement's own."""
    with scope():
        alias = str(Note.objects.get()._state.db)
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT title AS heading, 7 AS n FROM notes_note; SELECT 100 %% 30", ())
            assert [column.name for column in cursor.description] == ["heading", "n"]
            assert cursor.rowcount == 1
            assert cursor.fetchall() == [("first", 7)]
            assert cursor.nextset()
            assert cursor.fetchone() == (10,)
            assert not cursor.nextset()
            cursor.execute("SELECT 5 % 3")  # no parameters: nothing is doubled
            assert cursor.fetchone() == (2,)
            with pytest.raises(ProgrammingError) as caught:
                cursor.execute("SELECT nothing FROM notes_note")
            assert getattr(caught.value.__cause__, "sqlstate", None) == "42703"
            cursor.execute("SHOW transaction_read_only")
            assert cursor.fetchone() == ("on",)


def test_without_a_pooler_nothing_is_asked(
    cluster: Cluster, note: Note, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that leads to one server breaks with it."""
    if POOLER:
        pytest.skip("the whole run is behind a pooler")
    alias = read_ten_times()
    raw = connections[alias].connection
    asked = count_questions(monkeypatch)
    served.clear()
    read_ten_times()
    assert connections[alias].connection is raw
    assert asked == []
    assert all(sql.startswith('SELECT "notes_note"') for _, sql in served.statements)


# A dead server behind a living pooler, and a dead pooler


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
    """Which answer in turn: what one has replayed says nothing of the other."""
    one, two = healed.replicas
    pooler = transaction_poolers[one.name]
    monitor = find_monitor("default")
    assert monitor is not None
    for server in (two, one):
        before = monitor.life(one.name)
        pooler.lead(server.port)
        wait_until(lambda before=before: monitor.life(one.name) != before, "the other to be met")
    wait_for_state(one, ReplicaState.BALANCED)


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
        position = postgres.read_token(connection.connection)
        ((read_on,),) = connection.connection.execute("SELECT pg_backend_pid()").fetchall()
    assert read_on != committed_on
    assert position.lsn >= least - 40  # less at most a page header


def test_a_primary_that_hangs_is_asked_again(
    poolers: dict[str, PgBouncerServer], note: Note, healed: Cluster
) -> None:
    """The monitor's own look does not wait as long as a pooler, or TCP, lets it."""
    monitor = find_monitor("default")
    assert monitor is not None
    healed.primary.suspend()
    wait_until(lambda: monitor._primary_poller.has_failed, "its look to be given up")
    healed.primary.resume_process()
    wait_until(lambda: not monitor.primary_is_down, "it to be back")


# The server of the tests itself


def test_a_pooler_is_told_from_a_server(
    poolers: dict[str, PgBouncerServer], cluster: Cluster
) -> None:
    """By the process id, which it makes up."""
    with postgres.connect("replica1", 5.0) as raw:
        through = postgres.identify(raw)
    with cluster.replicas[0].connect() as raw:
        direct = postgres.identify(raw)
    assert through.is_pooled
    assert not direct.is_pooled
    assert through.life == direct.life
    assert through.in_recovery


def test_a_healed_cluster_is_reached_at_once(
    transaction_poolers: dict[str, PgBouncerServer], healed: Cluster
) -> None:
    """A pooler that has met a dead server refuses everybody for a while, also once it is back."""
    replica = healed.replicas[0]
    pooler = transaction_poolers[replica.name]

    def ask() -> None:
        with psycopg.connect(
            host=pooler.host, port=pooler.port, user="postgres", dbname="app"
        ) as raw:
            raw.execute("SELECT 1")

    ask()
    replica.kill()
    with impatient(healed, replica.name), pytest.raises(psycopg.OperationalError):
        ask()
    healed.heal()
    ask()


def test_a_healed_cluster_has_poolers_as_they_were(
    transaction_poolers: dict[str, PgBouncerServer], healed: Cluster
) -> None:
    """What a test has set there is undone, also what keeps everybody out."""
    pooler = transaction_poolers[healed.replicas[0].name]
    with psycopg.connect(host=pooler.host, port=pooler.port, user="postgres", dbname="app"):
        pooler.ask("SET max_client_conn = 1")
        healed.heal()
    known = {row["key"]: row["value"] for row in pooler.ask("SHOW CONFIG")}
    assert known["max_client_conn"] == "1000"


def test_the_monitor_prepares_nothing(
    transaction_poolers: dict[str, PgBouncerServer], cluster: Cluster
) -> None:
    """A statement that one server connection has prepared is unknown to the next one."""
    monitor = find_monitor("default")
    assert monitor is not None
    raw = monitor._pollers["replica1"]._connection
    assert raw is not None
    seen = monitor.readings["replica1"].read_at
    wait_until(lambda: monitor.readings["replica1"].read_at > seen, "another look")
    for _ in range(20):
        postgres.ask_replica(raw)
    ((prepared,),) = raw.execute(
        "SELECT count(*) FROM pg_prepared_statements", prepare=False
    ).fetchall()
    assert prepared == 0


def test_a_missing_pgbouncer_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the name of the variable that mends it."""
    monkeypatch.setenv(PGBOUNCER_VARIABLE, str(tmp_path / "nothing"))
    with (
        pytest.raises(Exception, match=PGBOUNCER_VARIABLE),
        Cluster(replicas=0, cache=False, pooler="session"),
    ):
        pass


def test_an_unknown_pool_mode_is_told() -> None:
    """Statement pooling knows no transactions, and Django needs them."""
    require_pgbouncer()
    with (
        pytest.raises(Exception, match="pool mode 'statement'"),
        Cluster(replicas=0, cache=False, pooler="statement"),
    ):
        pass
