"""The block that Django's handler opens around a view, and what it needs of its server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest
from django.test import Client

from django_replica_router import current_scope, note_write, use_primary, use_replica
from django_replica_router.transactions.postponing import Postponed
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.atomic_requests import (  # noqa: F401 - fixtures
    HERE,
    SESSION,
    TAKING,
    UNNOTICED,
    Patch,
    atomic,
    closed,
    edit,
    edited,
    execute,
    follow,
    is_open,
    own_block,
    show,
    title,
)
from tests.backend import DJANGO, OWN, engine, wire
from tests.conftest import stand_still, wait_until_known
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.written import record_of

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("atomic")


# The handler's block


def test_reads_in_the_handlers_block_go_to_replicas(edited: Note, served: Served) -> None:
    """Also when they are repeated, and those that ask no router."""
    served.clear()
    assert show(lambda: [title(), title(), title()]) == ["first"] * 3
    assert served.only_replicas()


def test_a_repeated_decision_takes_the_shortcut(edited: Note, settings: Any) -> None:
    """That was found before the block inside it, and after it as well."""

    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{HERE}.RouteAround"]
    before, inside, after = show(follow).split()
    assert before.startswith("replica")
    assert before == inside == after


@pytest.mark.parametrize("backend", [DJANGO, OWN])
def test_the_primary_is_sent_nothing(note: Note, cluster: Cluster, backend: str) -> None:
    """No BEGIN and no COMMIT, where the connection is open and the server's isolation level is known."""
    with engine(backend):
        show(title)
        wait_until_known(cluster)
        with wire() as sent:
            assert show(lambda: [title(), str(Note.objects.get()._state.db)[:7]]) == [
                "first",
                "replica",
            ]
        assert sent.sent == []


def test_a_read_of_the_primary_is_a_transaction_as_ever(
    note: Note, settings: Any, cluster: Cluster
) -> None:
    """Control: what is sent is seen."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_ONLY": ["notes.Tag"]}
    show(title)
    with wire() as sent:
        show(Tag.objects.count)
    first, select, last = sent.sent
    assert (first, last) == ('"BEGIN"', '"COMMIT"')
    assert "notes_tag" in select


def test_own_writes_are_seen(ann: User, note: Note, cluster: Cluster) -> None:
    """The position is taken behind the COMMIT of the block."""
    browser = sign_in(ann)
    wait_until_known(cluster)
    stand_still(cluster)
    show(lambda: Note.objects.update(title="mine") and None, browser, method="post")
    assert show(title, browser) == "mine"
    assert show(title) == "first"
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    assert show(lambda: [title(), str(Note.objects.get()._state.db)[:7]], browser) == [
        "mine",
        "replica",
    ]


def test_a_request_that_may_write_reads_from_the_primary(edited: Note, settings: Any) -> None:
    """For that reason, and not for the block."""
    assert show(title, method="post") == "NEW"
    assert reasons(settings, title, method="post") == {"UNSAFE_METHOD"}


def reasons(settings: Any, action: Callable[[], Any], **extra: Any) -> set[str]:
    """Visit, and return the reasons of all decisions of the request."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "DEBUG": True}
    found: set[str] = set()

    def asking() -> None:
        action()
        current = current_scope()
        assert current is not None
        found.update(reason for _, reason in current.decisions or ())

    show(asking, **extra)
    return found


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_write_in_the_block_is_seen_in_it(note: Note, cluster: Cluster, method: str) -> None:
    """Before it is committed, and also under ``use_replica``, which is obeyed until then.

    A replica may have replayed all of it but the COMMIT.
    """

    def action() -> list[str]:
        with use_replica():
            before = str(Note.objects.get()._state.db)
        Note.objects.update(title="mine")
        wait_until_known(cluster)
        with use_replica():
            return [before[:7], title()]

    assert show(action, method=method) == ["replica", "mine"]


@pytest.mark.parametrize(("write", "expected"), UNNOTICED.values(), ids=UNNOTICED)
@pytest.mark.parametrize("has_scope", [True, False], ids=["request", "no scope"])
def test_what_runs_no_statement_of_djangos_counts(
    edited: Note, settings: Any, write: Callable[[], None], expected: str, has_scope: bool
) -> None:
    """Also where ``use_replica`` opens a scope only afterwards."""
    settings.MIDDLEWARE = settings.MIDDLEWARE if has_scope else []

    def action() -> str:
        write()
        with use_replica():
            return title()

    assert show(action) == expected


@pytest.mark.parametrize("way", TAKING.values(), ids=TAKING)
def test_what_locks_or_sets_something_keeps_the_rest_on_the_primary(
    edited: Note, way: str | Callable[[], Any]
) -> None:
    """The code now relies on the transaction."""

    def action() -> list[str]:
        before = [title(), title()]
        if callable(way):
            way()
        else:
            execute(way)
        return [*before, title(), title()]

    assert show(action) == ["first", "first", "NEW", "NEW"]


def test_a_read_that_fails_fails_the_block_as_ever(edited: Note) -> None:
    """Nobody goes on in a transaction that the server has given up."""

    def action() -> str:
        with pytest.raises(DatabaseError):
            execute("SELECT 1 / 0")
        try:
            return title()
        except DatabaseError:
            return "failed"

    assert show(action) == "failed"


def test_what_is_read_on_the_primary_keeps_nothing_there(edited: Note, settings: Any) -> None:
    """Models of ``PRIMARY_ONLY``, what is named, and blocks of the code's own that have ended."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_ONLY": ["notes.Tag"]}

    def action() -> list[str]:
        list(Tag.objects.all())
        with use_primary():
            by_name = [title(), Note.objects.using("default").get().title]
        with transaction.atomic():
            inside = title()
        return [*by_name, inside, title()]

    assert show(action) == ["NEW", "NEW", "NEW", "first"]


# What the block needs of the server


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("backend", [DJANGO, OWN])
def test_a_connection_is_opened_where_it_is_needed(backend: str) -> None:
    """Django opens one for every block."""

    def action() -> list[Any]:
        return [title(), is_open(), len(connection.atomic_blocks), connection.get_rollback()]

    with engine(backend):
        assert show(action) == ["first", False, 1, False]
        assert not is_open()
        assert connection.get_autocommit()
        assert show(lambda: [title(), use_primary(title)(), is_open(), title()]) == [
            "first",
            "NEW",
            True,
            "first",
        ]
        assert not connection.in_atomic_block
        assert connection.get_autocommit()


@pytest.mark.usefixtures("closed")
def test_a_transaction_that_begins_late_is_the_blocks() -> None:
    """What was put off changes nothing of what the code does in the block."""
    ran: list[str] = []

    def fail() -> None:
        transaction.on_commit(lambda: ran.append("never"))
        Note.objects.update(title="mine")
        assert title() == "mine"
        raise RuntimeError("no")

    def write() -> str:
        transaction.on_commit(lambda: ran.append(title()))
        with transaction.atomic():
            Note.objects.update(title="mine")
        transaction.on_commit(lambda: ran.append("second"))
        return title()

    with pytest.raises(RuntimeError, match="no"):
        show(fail)
    connections["default"].close()
    assert (ran, Note.objects.using("default").get().title) == ([], "NEW")
    connections["default"].close()
    assert show(write) == "mine"
    connections["default"].close()
    assert (ran, Note.objects.using("default").get().title) == (["mine", "second"], "mine")


@pytest.mark.usefixtures("closed")
def test_what_a_block_may_do_without_a_connection() -> None:
    """Hooks run, also those that write; what is to be rolled back is; what asks for a feature is told it."""
    ran: list[Any] = []

    def hook() -> None:
        ran.append([is_open(), connection.in_atomic_block])
        Note.objects.update(title="by the hook")

    def roll_back() -> None:
        transaction.on_commit(hook)
        transaction.set_rollback(True)

    def fail() -> None:
        transaction.on_commit(hook)
        raise RuntimeError("no")

    def ask() -> list[Any]:
        connections["default"].__dict__.pop("pg_version", None)
        return [connection.pg_version > 0, len(connection.atomic_blocks), own_block(title)]

    show(roll_back)
    with pytest.raises(RuntimeError, match="no"):
        show(fail)
    assert (ran, is_open()) == ([], False)
    show(lambda: transaction.on_commit(hook))
    assert ran == [[False, False]]
    assert Note.objects.using("default").get().title == "by the hook"
    connections["default"].close()
    assert show(ask) == [True, 1, "by the hook"]


@pytest.mark.usefixtures("closed")
def test_a_write_that_only_the_code_knows_of_needs_no_connection(
    ann: User, cluster: Cluster
) -> None:
    """It is remembered by a position, as any other."""
    browser = sign_in(ann)
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    connections["default"].close()

    def write() -> None:
        edit(cluster, "mine")
        note_write()

    stand_still(cluster)
    connections["default"].close()
    show(write, browser)
    record = record_of(ann)
    assert record is not None
    assert record.position.lsn
    assert not record.pinned_until_ms
    assert show(title, browser) == "mine"


@pytest.mark.not_pooled("a session is set", modes=["transaction"])
@pytest.mark.usefixtures("closed")
def test_a_connection_that_is_prepared_for_snapshots_keeps_reads(monkeypatch: Patch) -> None:
    """Known only once it is open; from then on the block keeps them."""

    def prepare(*, connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(SESSION)

    for alias in ("replica1", "replica2"):
        prepare(connection=connections[alias])
    connection_created.connect(prepare)
    try:
        assert show(lambda: [title(), use_primary(title)(), title()]) == ["first", "NEW", "NEW"]
    finally:
        connection_created.disconnect(prepare)
        connections.close_all()


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
@pytest.mark.parametrize("is_broken", [False, True], ids=["sound", "broken"])
def test_a_health_check_is_made_where_it_is_needed(
    edited: Note, monkeypatch: Patch, cluster: Cluster, is_broken: bool
) -> None:
    """``CONN_HEALTH_CHECKS`` costs the primary nothing where it serves nothing."""
    monkeypatch.setitem(connections.settings["default"], "CONN_HEALTH_CHECKS", True)
    connections["default"].close()
    show(title)
    connection.ensure_connection()
    connection.close_if_unusable_or_obsolete()  # as Django does after a request
    with wire() as sent:
        assert show(title) == "first"
    assert sent.sent == []
    assert not connection.health_check_done
    pid = connection.connection.info.backend_pid
    if is_broken:
        cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert show(lambda: [title(), own_block(title), title()]) == ["first", "NEW", "first"]
    assert connection.health_check_done
    assert (connection.connection.info.backend_pid != pid) is is_broken


@pytest.mark.usefixtures("closed")
def test_a_block_that_is_not_opened_needs_what_it_needs(monkeypatch: Patch) -> None:
    """Where something else takes the handler's blocks away, the view is as if there were none."""
    monkeypatch.setattr(transaction, "atomic", lambda using: lambda view: partial(view))

    def view(request: HttpRequest) -> list[Any]:
        return [connection.in_atomic_block, title(), use_primary(title)()]

    assert visit(Client(), view) == [False, "first", "NEW"]


@pytest.mark.usefixtures("closed")
def test_without_that_it_would_be_without_a_connection(monkeypatch: Patch) -> None:
    """Control: the test above fails."""
    monkeypatch.setattr(Postponed, "confirm", lambda self: None)
    with pytest.raises(AttributeError, match="cursor"):
        test_a_block_that_is_not_opened_needs_what_it_needs(monkeypatch)
