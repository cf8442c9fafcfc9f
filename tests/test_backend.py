"""The package's database backend: positions that come with the answer to COMMIT."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from contextvars import copy_context
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, connections, transaction
from django.http import HttpRequest, HttpResponseRedirect
from django.test import Client, override_settings

from django_replica_router import note_write, scope, use_replica
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.backend import DJANGO, _own_engine, engine, execute, only_writes, touching_view, wire  # noqa: F401 - fixtures
from tests.conftest import stand_still, wait_until_known, wait_until_seen
from tests.site import sign_in, visit
from tests.written import note, record_of, signed_in, wrote  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


def tag_and_leave(request: HttpRequest) -> HttpResponseRedirect:
    """Do what most forms do: write, and send the browser elsewhere."""
    with transaction.atomic():
        Tag.objects.create(name="blue")
    return HttpResponseRedirect("/")


# Round trips --------------------------------------------------------------------------------------


def messages_of_a_form(ann: User) -> list[str]:
    """Return what a form sends to the primary, by a browser that the token store knows."""
    client = sign_in(ann)
    visit(client, lambda request: note_write(), "post")
    with wire() as sent:
        assert visit(client, tag_and_leave, "post").status_code == 302
    return sent.sent


def test_a_token_costs_no_message(ann: User) -> None:
    """A form that writes in a transaction sends as many messages as without the package."""
    messages = messages_of_a_form(ann)
    wrote(ann)
    Tag.objects.all().delete()
    with engine(DJANGO), override_settings(REPLICA_ROUTER={"ENABLED": False}):
        *others, commit = messages_of_a_form(ann)
    assert commit == '"COMMIT"'
    assert [text.split()[0] for text in messages[:-1]] == [text.split()[0] for text in others]
    assert "pg_current_wal_insert_lsn" in messages[-1]


def test_without_the_backend_it_costs_one_message(ann: User) -> None:
    """What is saved: the question for the position, after the COMMIT."""
    with engine(DJANGO):
        *_, commit, question = messages_of_a_form(ann)
    assert commit == '"COMMIT"'
    assert "pg_current_wal_insert_lsn" in question


def test_what_was_seen_inside_a_transaction_costs_no_message(
    ann: User,
    note: Note,
    cluster: Cluster,
) -> None:
    """Where the user has only read, the COMMIT tells up to where."""

    def action(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        with transaction.atomic():
            Note.objects.get(pk=note.pk)

    client = sign_in(ann)
    visit(client, action, "post")
    before = wrote(ann)
    cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
    with wire() as sent:
        visit(client, action, "post")
    assert "COMMIT" in sent.sent[-1]
    assert wrote(ann).token > before.token


def test_use_replica_after_a_write_costs_no_message(
    ann: User,
    note: Note,
    cluster: Cluster,
) -> None:
    """The position that came with the COMMIT tells which replica may serve, too."""
    with scope(user=ann), wire() as sent:
        with transaction.atomic():
            Note.objects.filter(pk=note.pk).update(body="new")
        wait_until_known(cluster)
        with use_replica():
            found = Note.objects.get(pk=note.pk)
    assert (found.body, found._state.db in {"replica1", "replica2"}) == ("new", True)
    assert len(sent.sent) == 3


@pytest.mark.parametrize("way", ["no scope", "switched off", "a replica"])
def test_elsewhere_a_commit_is_a_plain_one(ann: User, settings: Any, way: str) -> None:
    """Where there is nothing to learn, nothing is asked."""
    if way == "switched off":
        settings.REPLICA_ROUTER = {"ENABLED": False}
    elif way == "a replica":
        settings.REPLICA_ROUTER = {"CLUSTERS": {"replica1": ["default"]}}
    block: Any = nullcontext() if way == "no scope" else scope(user=ann)
    with wire() as sent, block, transaction.atomic(using="default"):
        execute("SELECT 1")
    assert sent.sent[-1] == '"COMMIT"'


# What is known of writes --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["on", "off", "local", "remote_apply"])
def test_the_token_is_behind_the_commit(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    mode: str,
) -> None:
    """A replica that has replayed up to the token shows the write, however it was committed."""
    before: list[int] = []

    @transaction.atomic
    def write(request: HttpRequest) -> None:
        execute(f"SET LOCAL synchronous_commit = {mode}")
        Note.objects.filter(pk=note.pk).update(body=str(len(before)))
        ((lsn,),) = execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
        before.append(int(lsn))

    for number in range(10):
        visit(signed_in, write, "post")
        token = wrote(ann).position.lsn
        # There, or behind it, begins the record of the commit.
        assert token > before[-1]
        cluster.replicas[0].wait_replayed(token)
        ((body,),) = cluster.replicas[0].execute(
            "SELECT body FROM notes_note WHERE id = %s", [note.pk], dbname="app"
        )
        assert body == str(number)


def matched_nothing(note: Note) -> None:
    with transaction.atomic():
        assert not Note.objects.filter(pk=-1).update(body="new")


def rolled_back(note: Note) -> None:
    with transaction.atomic():
        note.save()
        transaction.set_rollback(True)


def failed_unnoticed(note: Note) -> None:
    with transaction.atomic():
        note.save()
        # Past Django, which therefore commits. The server answers ROLLBACK.
        with pytest.raises(Exception, match="nowhere"):
            connection.connection.execute("SELECT * FROM nowhere")


def failed_at_commit(note: Note) -> None:
    with pytest.raises(IntegrityError) as caught, transaction.atomic():
        Comment.objects.create(author_id=0, target=note, text="of nobody")
    constraint = caught.value.__cause__.diag.constraint_name  # type: ignore[union-attr]
    assert constraint.startswith("notes_comment_author_id")
    assert connection.is_usable()
    assert connection.get_autocommit()


NO_WRITES = {
    way.__name__: way for way in (matched_nothing, rolled_back, failed_unnoticed, failed_at_commit)
}


@pytest.mark.parametrize("way", NO_WRITES.values(), ids=NO_WRITES)
def test_a_transaction_that_wrote_nothing_leaves_the_user_free(
    signed_in: Client,
    ann: User,
    note: Note,
    only_writes: None,
    way: Callable[[Note], None],
) -> None:
    """Statements that might have written, and have not, make no token."""
    visit(signed_in, lambda request: way(note), "post")
    assert record_of(ann) is None


@pytest.mark.parametrize("way", NO_WRITES.values(), ids=NO_WRITES)
def test_what_such_a_transaction_has_shown_is_remembered(
    signed_in: Client,
    ann: User,
    note: Note,
    way: Callable[[Note], None],
) -> None:
    """That an update matches nothing is something a user may have seen."""
    before = record_of(ann)
    assert before is None

    def action(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        way(note)

    visit(signed_in, action, "get")
    record = record_of(ann)
    assert record is not None
    assert record.token > record.position


def test_a_write_that_no_statement_tells_of_is_noticed(
    signed_in: Client,
    ann: User,
    touching_view: str,
    only_writes: None,
) -> None:
    """A view may call a function that writes: the transaction's number tells."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            execute(touching_view)

    visit(signed_in, action)
    wrote(ann)


def test_the_request_itself_reads_what_no_statement_tells_of(
    signed_in: Client,
    note: Note,
    touching_view: str,
    lagging: Cluster,
) -> None:
    """From then on the request has written, whatever was decided for it before."""

    def action(request: HttpRequest) -> list[int]:
        first = Note.objects.get(pk=note.pk)
        with transaction.atomic():
            execute(touching_view)
        return [first.version, Note.objects.get(pk=note.pk).version]

    first, second = visit(signed_in, action)
    assert second > first


def by_copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY notes_tag (name) FROM STDIN") as rows,
    ):
        rows.write_row(("blue",))


def by_procedure() -> None:
    with connection.cursor() as cursor:
        cursor.callproc("notes_touch", [Note.objects.get().pk])


def by_driver() -> None:
    connection.connection.execute("INSERT INTO notes_tag (name) VALUES ('blue')")


@pytest.mark.parametrize("way", [by_copy, by_procedure, by_driver])
def test_what_goes_past_the_statements_is_noticed(
    signed_in: Client,
    ann: User,
    note: Note,
    only_writes: None,
    way: Callable[[], None],
) -> None:
    """In a transaction nothing needs to be told by note_write()."""
    visit(signed_in, lambda request: transaction.atomic(way)())
    wrote(ann)


@pytest.mark.parametrize("is_rolled_back", [False, True])
def test_savepoints(
    signed_in: Client,
    ann: User,
    cluster: Cluster,
    only_writes: None,
    is_rolled_back: bool,
) -> None:
    """The outermost COMMIT counts, whatever became of a part of the transaction."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic(durable=True):
            Tag.objects.create(name="kept")
            try:
                with transaction.atomic():
                    Tag.objects.create(name="inner")
                    if is_rolled_back:
                        raise RuntimeError
            except RuntimeError:
                pass

    before = cluster.primary.insert_lsn()
    visit(signed_in, action, "post")
    assert wrote(ann).position.lsn > before
    assert Tag.objects.count() == 2 - is_rolled_back


def test_a_transaction_that_the_code_ends_itself_stays_a_write(
    signed_in: Client,
    ann: User,
    only_writes: None,
) -> None:
    """A raw COMMIT inside a transaction of Django's is not taken back by what follows it."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            Tag.objects.create(name="kept")
            execute("COMMIT")
            execute("SELECT 1")
            transaction.set_rollback(True)

    visit(signed_in, action, "post")
    wrote(ann)


def test_hooks_and_atomic_requests(
    signed_in: Client,
    ann: User,
    cluster: Cluster,
    only_writes: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A hook runs after the COMMIT, and what it writes has a token as well."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    ran: list[int] = []

    def hook() -> None:
        ran.append(cluster.primary.insert_lsn())
        Tag.objects.update(name="by the hook")  # sends no signal

    def action(request: HttpRequest) -> None:
        Tag.objects.create(name="by the view")
        transaction.on_commit(hook)

    visit(signed_in, action, "post")
    assert ran
    assert wrote(ann).position.lsn > ran[0]


def test_a_write_after_the_commit_is_behind_the_token(
    signed_in: Client,
    ann: User,
    cluster: Cluster,
    only_writes: None,
) -> None:
    """A write that brings no position has it asked for, as without the backend."""
    between: list[int] = []

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            Tag.objects.create(name="first")
        between.append(cluster.primary.insert_lsn())
        with connection.cursor() as cursor:
            cursor.executemany("INSERT INTO notes_tag (name) VALUES (%s)", [("second",)])

    visit(signed_in, action, "post")
    assert wrote(ann).position.lsn > between[0]


def test_a_commit_covers_what_was_written_before_it(ann: User, only_writes: None) -> None:
    """A write outside any transaction needs no question where a COMMIT follows."""
    with wire() as sent, scope(user=ann):
        Tag.objects.create(name="first")
        with transaction.atomic():
            Tag.objects.create(name="second")
        list(Tag.objects.using("default"))
    assert len(sent.sent) == 5  # INSERT, BEGIN, INSERT, COMMIT, SELECT
    wrote(ann)


def test_of_transactions_that_overlap_the_last_one_counts(
    ann: User, cluster: Cluster, only_writes: None
) -> None:
    """Whichever thread of the scope commits last, the token is behind that."""
    has_written, may_commit = threading.Event(), threading.Event()

    def other() -> None:
        try:
            with transaction.atomic():
                Tag.objects.create(name="other")
                has_written.set()
                assert may_commit.wait(15)
        finally:
            connection.close()

    with scope(user=ann):
        thread = threading.Thread(target=copy_context().run, args=(other,))
        thread.start()
        assert has_written.wait(15)
        with transaction.atomic():
            Tag.objects.create(name="mine")
        between = cluster.primary.insert_lsn()
        may_commit.set()
        thread.join(15)
    assert wrote(ann).position.lsn > between


def test_a_scope_inside_another_hands_its_write_over(
    ann: User, cluster: Cluster, only_writes: None
) -> None:
    """What the inner scope has written is behind the token of the outer one's user, too."""
    ben = User.objects.create_user("ben")
    before = cluster.primary.insert_lsn()
    with scope(user=ben), scope(user=ann), transaction.atomic():
        Tag.objects.create(name="blue")
    for user in (ann, ben):
        assert wrote(user).position.lsn > before


# What was seen ------------------------------------------------------------------------------------


def test_what_the_primary_showed_after_the_commit_is_not_taken_back(
    ann: User,
    note: Note,
    cluster: Cluster,
) -> None:
    """A position that came with the COMMIT does not cover what was read later."""
    client = sign_in(ann)
    wait_until_known(cluster)

    def title(request: HttpRequest) -> str:
        return Note.objects.get(pk=note.pk).title

    def action(request: HttpRequest) -> str:
        with transaction.atomic():
            Tag.objects.create(name="blue")
        stand_still(cluster)
        cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
        return Note.objects.get(pk=note.pk).title

    assert visit(client, action, "post") == "new"
    assert visit(client, title) == "new"


def test_where_nothing_was_seen_since_the_replicas_serve(
    ann: User,
    note: Note,
    cluster: Cluster,
) -> None:
    """The token is no higher than it must be: what others write later binds nobody."""
    client = sign_in(ann)
    wait_until_known(cluster)

    def action(request: HttpRequest) -> int:
        with transaction.atomic():
            Tag.objects.create(name="blue")
        position = cluster.primary.flush()
        for replica in cluster.replicas:
            replica.wait_replayed(position)
            replica.pause()
        cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")
        return position

    visit(client, lambda request: note_write(), "post")
    wait_until_seen(visit(client, action, "post"))
    assert visit(client, lambda request: Note.objects.get(pk=note.pk).title) == "first"
