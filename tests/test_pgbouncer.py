"""What only a pooler can do: outlive its server, and lead each statement elsewhere."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import ProgrammingError, connections
from django.db.models import Count
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.connections import on_replica
from django_replica_router.sql import answering
from testproject.cluster import Cluster, PgBouncerServer, ReplicaServer
from testproject.notes.models import Note
from tests.conftest import (
    POOLER,
    believe_every_connection,
    wait_until,
    wait_until_reachable,
    wait_until_routed,
)
from tests.faulty import find_serving
from tests.helpers import Served
from tests.pooled import (  # noqa: F401 - fixtures
    BLIND,
    look_until_routed,
    mode,
    poolers,
    read_ten_times,
    rename,
    title,
    transaction_poolers,
    usual_replica,
)
from tests.site import sign_in, visit
from tests.torture.faults import copy_directory

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


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
        alias, replica = find_serving(healed)
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
    monkeypatch.setattr(on_replica, "can_ask_along", lambda raw, cursor: False)
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
    original = answering.identify

    def identify(raw: Any, *args: Any) -> answering.ServerIdentity:
        if threading.current_thread() is threading.main_thread():
            asked.append(raw)
        return original(raw, *args)

    monkeypatch.setattr(answering, "identify", identify)
    return asked


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
    asked_along = answering.ask_along("SELECT", 1000, 0).split("<>")[0]
    assert all(sql.startswith(asked_along) for _, sql in served.statements)


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
