"""Writes whose position or answer is lost."""

from __future__ import annotations

import signal
import threading
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope
from django_replica_router.recording import writes
from django_replica_router.values.tokens import NOWHERE
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, empty_store, wait_until
from tests.site import visit
from tests.written import note, record_of, session_record_of, signed_in  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def test_a_write_whose_position_cannot_be_read_pins_its_user(
    signed_in: Client, ann: User, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token the user reads from the primary for the token's life."""

    def fail(raw: object) -> None:
        message = "server closed the connection unexpectedly"
        raise psycopg.OperationalError(message)

    monkeypatch.setattr(writes.wal, "read_token", fail)
    visit(signed_in, lambda request: note.save(), "post")
    monkeypatch.undo()
    record = record_of(ann)
    assert record is not None
    assert record.position == NOWHERE
    assert record.pinned_until_ms > 0
    assert visit(signed_in, lambda request: Note.objects.db) == "default"


def test_a_connection_lost_at_commit_pins_its_user(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Whether the commit took place is unknown, so the user reads from the primary."""

    def action(request: HttpRequest) -> str:
        try:
            with transaction.atomic():
                note.save()
                ((pid,),) = connection.connection.execute("SELECT pg_backend_pid()").fetchall()
                cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        except Exception as error:
            return type(error).__name__
        return "committed"

    # PgBouncer adds an error of its own to the server's, which the driver does not expect.
    lost = {"OperationalError", "InterfaceError", "InternalError"}
    assert visit(signed_in, action, "post") in lost
    record = record_of(ann)
    assert record is not None
    assert record.pinned_until_ms > 0
    assert visit(signed_in, lambda request: Note.objects.db) == "default"


def test_an_answer_lost_in_autocommit_pins_its_user(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A statement whose answer never came may have been committed."""

    def action(request: HttpRequest) -> str:
        try:
            with connection.cursor() as cursor:
                # Kills its own backend in the middle of a statement that counts as a write.
                cursor.execute("SELECT pg_terminate_backend(pg_backend_pid()), notes_touch(0)")
        except Exception as error:
            connection.close()
            return type(error).__name__
        return "answered"

    assert visit(signed_in, action, "post") in {"OperationalError", "InterfaceError"}
    record = record_of(ann)
    assert record is not None
    assert record.pinned_until_ms > 0


def test_an_answer_lost_pins_a_session_of_which_nobody_can_tell_whose_it_is(
    signed_in: Client, note: Note, settings: Any
) -> None:
    """Its row cannot be read where the connection is broken; what the browser carries is known."""
    # It asks who is signed in before the view does.
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "LoginRequired" not in name]
    browser = Client()
    browser.cookies = signed_in.cookies

    def action(request: HttpRequest) -> None:
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid()), notes_touch(0)")

    visit(browser, action, "post")
    connection.close()
    record = session_record_of(browser)
    assert record is not None
    assert record.pinned_until_ms > 0


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_procedure_whose_answer_is_lost_pins_its_user(
    signed_in: Client, ann: User, note: Note
) -> None:
    """It may have been committed, as any other statement."""

    def action(request: HttpRequest) -> None:
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            cursor.callproc("pg_terminate_backend", [connection.connection.info.backend_pid])
        connection.close()

    visit(signed_in, action, "post")
    record = record_of(ann)
    assert record is not None
    assert record.pinned_until_ms > 0


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_connection_lost_at_a_commit_by_hand_pins_its_user(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """With autocommit off a write is in a transaction, although in no atomic block."""

    def action(request: HttpRequest) -> None:
        connection.set_autocommit(False)
        note.save()
        pid = connection.connection.info.backend_pid
        cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        with pytest.raises(DatabaseError):
            connection.commit()
        connection.close()

    visit(signed_in, action, "post")
    record = record_of(ann)
    assert record is not None
    assert record.pinned_until_ms > 0


def test_a_commit_by_hand_makes_a_token(signed_in: Client, ann: User, note: Note) -> None:
    """Whether by Django's function or by a statement, with whatever is rolled back behind it."""

    def action(request: HttpRequest) -> None:
        transaction.set_autocommit(False)
        note.save()
        if request.GET:
            connection.cursor().execute("COMMIT")
        else:
            transaction.commit()
        Note.objects.count()
        transaction.rollback()
        transaction.set_autocommit(True)

    for data in ({}, {"statement": 1}):
        visit(signed_in, action, query_params=data)
        record = record_of(ann)
        assert record is not None
        assert record.position != NOWHERE
        assert not record.pinned_until_ms
        empty_store()


class TimeLimitError(Exception):
    """A time limit that a signal has raised, as that of a task queue does."""


@pytest.mark.parametrize("kind", [TimeLimitError, KeyboardInterrupt])
def test_an_answer_that_nobody_waits_for_pins_its_user(
    ann: User, note: Note, cluster: Cluster, kind: type[BaseException]
) -> None:
    """A statement goes on in the server where a signal has made the code leave it."""
    other = connections.create_connection("default")

    def stop(*args: object) -> None:
        raise kind

    def interrupt() -> None:
        try:
            wait_until(
                lambda: cluster.primary.execute("SELECT 1 FROM pg_locks WHERE NOT granted"),
                "the statement to wait",
            )
        finally:  # else it would wait for ever
            signal.raise_signal(signal.SIGUSR1)

    def write() -> None:
        interrupter.start()
        Note.objects.filter(pk=note.pk).update(title="second")

    other.set_autocommit(False)
    before = signal.signal(signal.SIGUSR1, stop)
    interrupter = threading.Thread(target=interrupt)
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT FROM notes_note FOR UPDATE")
        with pytest.raises(kind), scope(user=ann):
            write()
    finally:
        interrupter.join(TIMEOUT)
        signal.signal(signal.SIGUSR1, before)
        other.rollback()
        other.close()
    if kind is TimeLimitError:  # of a KeyboardInterrupt the driver knows, and cancels the statement
        wait_until(
            lambda: cluster.primary.execute(
                "SELECT 1 FROM notes_note WHERE title = 'second'", dbname="app"
            ),
            "the statement to end",
        )
    connection.close()
    record = record_of(ann)
    assert record is not None
    assert record.pinned_until_ms > 0
