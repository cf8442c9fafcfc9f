"""What carries no position outside of a transaction, and what goes wrong."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import copy_context
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models.signals import post_save, pre_save
from django.http import HttpRequest
from django.test import Client
from psycopg import sql

from django_replica_router import note_write, scope
from django_replica_router.connections import commits, on_primary
from django_replica_router.connections.commits import CarryingCursor
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.values.tokens import NOWHERE
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import (  # noqa: F401 - fixtures
    CARRIED,
    OWN,
    UNPREPARED,
    _cut,
    _own_engine,
    _wait_for_commit,
    current_state,
    engine,
    execute,
    is_pinned,
    only_writes,
    plain_role,
    wire,
)
from tests.conftest import wait_until
from tests.site import visit
from tests.torture.proxy import ProxyProcess
from tests.written import note, record_of, signed_in, wrote  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# What carries nothing -----------------------------------------------------------------------------


def by_many() -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO notes_tag (name) VALUES (%s)", [("a",)])


def by_procedure() -> None:
    execute("CREATE PROCEDURE step() LANGUAGE plpgsql AS $$ BEGIN COMMIT; END $$")
    try:
        execute("CALL step()")
    finally:
        execute("DROP PROCEDURE step()")


def by_index() -> None:
    execute("CREATE INDEX CONCURRENTLY built ON notes_tag (name)")
    execute("DROP INDEX CONCURRENTLY built")


def by_composition() -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql.SQL("INSERT INTO notes_tag (name) VALUES ({})").format("a"))


def in_pipeline() -> None:
    connection.ensure_connection()
    with connection.connection.pipeline():
        execute("INSERT INTO notes_tag (name) VALUES ('a')")


PLAIN: dict[str, Callable[[], Any]] = {
    "vacuum": lambda: execute("VACUUM notes_tag"),
    "index": by_index,
    "call": by_procedure,
    "truncate": lambda: execute("TRUNCATE notes_tag CASCADE"),
    "cte": lambda: execute("WITH x AS (DELETE FROM notes_tag RETURNING 1) SELECT * FROM x"),
    "several": lambda: execute("DELETE FROM notes_tag; DELETE FROM notes_tag"),
    "function": lambda: execute("UPDATE notes_note SET version = notes_touch(id)"),
    "executemany": by_many,
    "composed": by_composition,
    "pipeline": in_pipeline,
}


@pytest.mark.parametrize("way", PLAIN.values(), ids=PLAIN)
def test_what_brings_no_position(ann: User, cluster: Cluster, way: Callable[[], Any]) -> None:
    """Of all else the position is asked for at the end: some of it may not be run in a transaction."""
    before = cluster.primary.insert_lsn()
    with scope(user=ann):
        way()
        state = current_state()
        assert (state.checkpoint, state.has_pending) == (None, True)
    assert wrote(ann).position.lsn >= before


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"server_side_binding": True}, id="bound"),
        pytest.param(
            {"server_side_binding": True, "prepare_threshold": 0}, id="prepared", marks=UNPREPARED
        ),
    ],
)
def test_server_side_binding_asks_at_the_end(
    ann: User, cluster: Cluster, options: dict[str, Any]
) -> None:
    """The driver then sends one statement a message."""
    with engine(OWN, OPTIONS=options):
        before = cluster.primary.insert_lsn()
        with scope(user=ann):
            Tag.objects.create(name="blue")
            assert current_state().checkpoint is None
        assert wrote(ann).position.lsn > before


@pytest.mark.parametrize("way", ["no scope", "switched off", "a replica"])
def test_elsewhere_a_write_is_a_plain_one(ann: User, settings: Any, way: str) -> None:
    """Where there is nothing to learn, nothing is asked."""
    if way == "switched off":
        settings.REPLICA_ROUTER = {"ENABLED": False}
    elif way == "a replica":
        settings.REPLICA_ROUTER = {"CLUSTERS": {"replica1": ["default"]}}
    block: Any = nullcontext() if way == "no scope" else scope(user=ann)
    with wire() as sent, block:
        execute("INSERT INTO notes_tag (name) VALUES ('a')")
    assert not any(CARRIED in text for text in sent.sent)


def test_in_a_transaction_the_commit_carries(ann: User) -> None:
    """A statement inside atomic() is what it was."""
    with wire() as sent, scope(user=ann), transaction.atomic():
        Tag.objects.create(name="a")
    assert [CARRIED in text for text in sent.sent] == [False, False, True]


def test_of_many_writes_the_first_ones_carry(ann: User, cluster: Cluster) -> None:
    """A scope that goes on writing asks once, at its end, and all is behind its token."""
    with wire() as sent, scope(user=ann):
        for number in range(on_primary._MOST_CARRIED + 3):
            Tag.objects.create(name=str(number))
        before = cluster.primary.insert_lsn()
    asked = [CARRIED in text for text in sent.sent]
    assert asked == [True] * on_primary._MOST_CARRIED + [False] * 3 + [True]
    assert wrote(ann).position.lsn >= before


@pytest.mark.parametrize("options", [{"pool": {"min_size": 1, "max_size": 2}}], ids=["pool"])
def test_options_of_the_connection(ann: User, options: dict[str, Any]) -> None:
    """A connection of the driver's pool carries as well."""
    with engine(OWN, OPTIONS=options, CONN_MAX_AGE=0):
        with scope(user=ann):
            Tag.objects.create(name="blue")
            assert current_state().checkpoint is not None
        wrote(ann)


def test_the_drivers_own_use_of_the_connection_is_left_alone(ann: User) -> None:
    """What the site does past Django's cursors is sent as it is, and told by note_write()."""
    with wire() as sent, scope(user=ann):
        connection.ensure_connection()
        connection.connection.execute("INSERT INTO notes_tag (name) VALUES ('a')")
    assert sent.sent == ["\"INSERT INTO notes_tag (name) VALUES ('a')\""]


def test_a_driver_without_the_method_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later driver that does not call it any more gets no message with more in it."""

    class Own(psycopg.ClientCursor[Any]):
        pass

    class Later(psycopg.ClientCursor[Any]):
        pass

    connection.ensure_connection()
    raw = connection.connection
    assert isinstance(commits.let_carry(Own(raw)), CarryingCursor)
    assert isinstance(commits.let_carry(Own(raw)), Own)
    assert commits.let_carry(psycopg.Cursor(raw)) is None
    monkeypatch.delattr(psycopg._cursor_base.BaseCursor, "_check_results")
    later = Later(raw)
    assert commits.let_carry(later) is None
    assert type(later) is Later


# Others on the way --------------------------------------------------------------------------------


@contextmanager
def wrapper(act: Callable[[Any], None], *, before: bool = False) -> Iterator[None]:
    """Have somebody else's wrapper do something around each statement."""

    def run(execute: Any, statement: Any, params: Any, many: bool, context: Any) -> Any:
        if before:
            act(context)
        result = execute(statement, params, many, context)
        if not before:
            act(context)
        return result

    with connection.execute_wrapper(run):
        yield


@pytest.mark.parametrize("before", [True, False])
def test_a_wrapper_that_uses_the_same_cursor_itself(
    ann: User, cluster: Cluster, only_writes: None, before: bool
) -> None:
    """No position is taken for that of the write but its own."""
    places: list[int] = []

    def act(context: Any) -> None:
        context["cursor"].cursor.execute("SELECT 1 WHERE false")
        places.append(cluster.primary.insert_lsn())

    with scope(user=ann):
        with wrapper(act, before=before):
            execute("INSERT INTO notes_tag (name) VALUES ('a')")
        assert (current_state().checkpoint is not None) is before
    assert wrote(ann).position.lsn >= places[0]


def test_a_wrapper_that_runs_the_write_again(
    ann: User, cluster: Cluster, only_writes: None
) -> None:
    """One that tries again after an error may have run it twice."""

    def twice(execute: Any, statement: Any, params: Any, many: bool, context: Any) -> Any:
        execute(statement, params, many, context)
        return execute(statement, params, many, context)

    with scope(user=ann):
        with connection.execute_wrapper(twice):
            execute("INSERT INTO notes_comment SELECT * FROM notes_comment WHERE false")
            execute("UPDATE notes_tag SET name = name")
        before = cluster.primary.insert_lsn()
    assert wrote(ann).position.lsn >= before


def test_a_wrapper_that_fails_after_the_write(ann: User, cluster: Cluster) -> None:
    """The write stands, whatever else becomes of the request."""

    def fail(context: Any) -> None:
        raise RuntimeError

    before = cluster.primary.insert_lsn()
    with scope(user=ann), pytest.raises(RuntimeError), wrapper(fail):
        execute("INSERT INTO notes_tag (name) VALUES ('a')")
    assert wrote(ann).position.lsn > before


def test_a_wrapper_that_changes_the_statement(ann: User) -> None:
    """Comments that others put into the text are no hindrance."""

    def comment(execute: Any, statement: Any, params: Any, many: bool, context: Any) -> Any:
        return execute(f"/* view */ {statement} -- trace", params, many, context)

    with scope(user=ann), connection.execute_wrapper(comment):
        tag = Tag.objects.create(name="blue")
        assert current_state().checkpoint is not None
    assert tag.pk == Tag.objects.get().pk


def test_a_wrapper_that_answers_itself_leaves_the_position_to_be_asked_for(ann: User) -> None:
    """Nothing of an earlier statement of the cursor is taken for it."""
    with wire() as sent, scope(user=ann), connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes_tag (name) VALUES ('a')")
        with connection.execute_wrapper(lambda *args: None):
            cursor.execute("INSERT INTO notes_tag (name) VALUES ('b')")
    assert [CARRIED in text for text in sent.sent] == [True, True]
    assert "INSERT" not in sent.sent[-1]


# Saves and their signal ---------------------------------------------------------------------------


def write_past_django(note: Note) -> None:
    """Change a note by the driver's own connection, and send the signals of a save."""
    pre_save.send(sender=Note, instance=note, raw=False, using="default", update_fields=None)
    connection.connection.execute("UPDATE notes_note SET title = 'NEW' WHERE id = %s", [note.pk])
    post_save.send(sender=Note, instance=note, created=False, using="default")


def by_signals(note: Note) -> None:
    Tag.objects.create(name="a")
    write_past_django(note)


def by_signal_alone(note: Note) -> None:
    Tag.objects.create(name="a")
    connection.connection.execute("UPDATE notes_note SET title = 'NEW' WHERE id = %s", [note.pk])
    post_save.send(sender=Note, instance=note, created=False)


def by_receiver(note: Note) -> None:
    def write_more(instance: Note, **kwargs: Any) -> None:
        connection.connection.execute("UPDATE notes_note SET title = 'NEW'")
        note_write()

    post_save.connect(write_more, sender=Note)
    try:
        note.save()
    finally:
        post_save.disconnect(write_more, sender=Note)


PAST = {way.__name__: way for way in (by_signals, by_signal_alone, by_receiver)}


@pytest.mark.parametrize("way", PAST.values(), ids=PAST)
def test_a_write_that_only_a_signal_tells_of_is_behind_the_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
) -> None:
    """A position that came with an earlier statement does not cover it."""
    places: list[int] = []

    def action(request: HttpRequest) -> None:
        way(note)
        places.append(cluster.primary.insert_lsn())

    visit(signed_in, action, "post")
    assert wrote(ann).position.lsn >= places[0]


@pytest.mark.parametrize("way", [by_signals, by_signal_alone])
def test_without_the_rule_such_a_write_is_missed(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    only_writes: None,
    way: Callable[[Note], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where any position that came counts as that of the save, the test above fails."""
    monkeypatch.setattr(ClusterScope, "has_saved", lambda self, instance: True)
    with pytest.raises(AssertionError):
        test_a_write_that_only_a_signal_tells_of_is_behind_the_token(
            signed_in, ann, note, cluster, only_writes, way
        )


def test_a_save_of_several_tables_costs_no_message(ann: User) -> None:
    """Django makes a transaction of it, and sends the signal behind that."""
    note = Note(owner=ann, title="in a block of its own")
    with wire() as sent, scope(user=ann):
        pre_save.send(sender=Note, instance=note, raw=False, using="default", update_fields=None)
        with transaction.atomic():
            execute("INSERT INTO notes_tag (name) VALUES ('a')")
        post_save.send(sender=Note, instance=note, created=True, using="default")
    assert len(sent.sent) == 3


def test_threads_of_a_scope_write_at_the_same_time(
    ann: User,
    cluster: Cluster,
    only_writes: None,
) -> None:
    """Whichever thread is the last, the token is behind all."""

    def write(name: str) -> None:
        try:
            for number in range(10):
                Tag.objects.create(name=f"{name}{number}")
        finally:
            connections.close_all()

    with scope(user=ann):
        threads = [
            threading.Thread(target=copy_context().run, args=(write, name)) for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        before = cluster.primary.insert_lsn()
    assert Tag.objects.count() == 40
    assert wrote(ann).position.lsn >= before


# When things go wrong -----------------------------------------------------------------------------


@pytest.mark.not_pooled("a role is set for the session")
def test_a_position_that_is_refused_fails_no_write(
    ann: User, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What the package asks for may fail; the write stands, and its rows arrive."""
    with plain_role(cluster, "pg_walfile_name(pg_lsn)"), scope(user=ann):
        tag = Tag.objects.create(name="blue")
        assert execute("SELECT id, name FROM notes_tag") == [(tag.pk, "blue")]
    assert is_pinned(ann)
    assert "told no position with a COMMIT" in caplog.text


@pytest.mark.not_pooled("a role is set for the session")
def test_without_the_rule_a_write_fails_that_stands(
    ann: User,
    cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where an error behind the COMMIT is one of the write, the site is told so, and it is not."""
    monkeypatch.setattr(commits, "_is_committed", lambda results: False)
    with pytest.raises(DatabaseError, match="permission denied"):
        test_a_position_that_is_refused_fails_no_write(ann, cluster, caplog)
    assert Tag.objects.count() == 1


@pytest.mark.not_pooled("a setting is set for the session")
def test_a_statement_that_takes_too_long_is_ended(ann: User, cluster: Cluster) -> None:
    """A time limit of the site's holds for the statement as before."""
    execute("SET statement_timeout = '20ms'")
    try:
        with scope(user=ann):
            with pytest.raises(OperationalError, match="statement timeout"):
                execute("UPDATE auth_user SET last_name = pg_sleep(5)::text")
            assert current_state().carried == 1
            assert connection.connection.info.transaction_status.name == "IDLE"
        record = record_of(ann)
        assert record is not None  # of what the failure may have shown, and of no write
        assert record.position == NOWHERE
    finally:
        connection.close()


@pytest.mark.not_pooled("a role is set for the session")
def test_an_error_of_the_packages_own_leaves_no_transaction_open(
    ann: User, cluster: Cluster
) -> None:
    """Where the transaction's number may not be asked for, a write fails, and the session is idle."""
    with plain_role(cluster, "pg_current_xact_id_if_assigned()"), scope(user=ann):
        with pytest.raises(DatabaseError, match="permission denied"):
            Tag.objects.create(name="blue")
        assert connection.connection.info.transaction_status.name == "IDLE"
        assert execute("SELECT count(*) FROM notes_tag") == [(0,)]


def test_an_error_between_begin_and_commit_leaves_no_transaction_open(
    ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel may come just there."""
    message = commits._BEHIND_CHANGE.replace(b"BEGIN;", b"BEGIN;SELECT 1 / 0;")
    monkeypatch.setattr(commits, "_BEHIND_CHANGE", message)
    with scope(user=ann):
        with pytest.raises(DatabaseError, match="division by zero"):
            Tag.objects.create(name="blue")
        assert connection.connection.info.transaction_status.name == "IDLE"
        assert not Tag.objects.using("default").exists()


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_an_answer_that_is_lost_pins(ann: User, cluster: Cluster) -> None:
    """The server has committed, and the line is cut before it says so."""
    cluster.primary.configure(synchronous_standby_names="nobody")
    with (
        ProxyProcess({"primary": cluster.primary.port}) as proxy,
        engine(OWN, PORT=str(proxy.ports["primary"])),
    ):
        connection.ensure_connection()
        pid = connection.connection.info.backend_pid
        cutter = threading.Thread(target=_cut, args=(cluster, proxy, pid))
        cutter.start()
        try:
            with scope(user=ann), pytest.raises(DatabaseError):
                Tag.objects.create(name="blue")
        finally:
            cutter.join(30)
            cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    wait_until(
        lambda: cluster.primary.execute("SELECT name FROM notes_tag", dbname="app") == [("blue",)],
        "the server to show what it has committed",
    )


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_write_that_was_interrupted_pins(
    ann: User,
    cluster: Cluster,
    only_writes: None,
) -> None:
    """Nobody knows what became of a write that the process did not wait for."""
    cluster.primary.configure(synchronous_standby_names="nobody")
    connection.ensure_connection()
    pid = connection.connection.info.backend_pid

    def interrupt() -> None:
        try:
            _wait_for_commit(cluster, pid)
        finally:  # else who commits would wait for ever
            signal.raise_signal(signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    # A shell has processes that it starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter.start()
        with scope(user=ann), pytest.raises(KeyboardInterrupt):
            Tag.objects.create(name="blue")
    finally:
        interrupter.join(30)
        signal.signal(signal.SIGINT, before)
        cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    assert connection.get_autocommit()
    connection.close()  # the driver gives up asking for an end after a while, and leaves it as it is
    wait_until(
        lambda: cluster.primary.execute("SELECT name FROM notes_tag", dbname="app") == [("blue",)],
        "the server to show what it has committed",
    )
