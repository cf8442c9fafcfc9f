"""Every way of writing is noticed, and remembered for its user."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, connections, reset_queries, transaction
from django.db.models.signals import post_migrate, post_save
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.test import Client

from django_replica_router import note_write, scope, writes
from django_replica_router.backends.mixin import TokenMixin
from django_replica_router.balancers import least_in_flight
from django_replica_router.cookies import NAME
from django_replica_router.identity import user_key
from django_replica_router.keys import EVERYBODY, digest
from django_replica_router.observers import StatementObserver, observe_open_connections
from django_replica_router.stores import get_store
from django_replica_router.tokens import NOWHERE, Record
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Event, Note, Tag
from tests.conftest import PATIENT, TIMEOUT, empty_store, stand_still, wait_until, wait_until_known
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


def record_of(user: User) -> Record | None:
    """Return what the token store knows of the user."""
    return get_store("default").load([f"rr:default:{user_key(user)}"])[0]


def wrote(user: User) -> Record:
    """Return what is stored of the user's write, whose position is known."""
    record = record_of(user)
    assert record is not None
    assert record.position != NOWHERE
    assert not record.pinned_until_ms
    return record


def session_record_of(client: Client) -> Record | None:
    """Return what the token store knows of the client's session."""
    cookie = client.cookies["sessionid"].value
    return get_store("default").load([f"rr:default:{digest('session', cookie)}"])[0]


@pytest.fixture
def signed_in(ann: User, forget_tokens: Callable[[], None]) -> Client:
    """Ann's browser, signed in, with nothing in the token store."""
    client = sign_in(ann)
    forget_tokens()
    return client


@pytest.fixture
def note(ann: User) -> Note:
    """A note of Ann's, with a tag and a comment."""
    note = Note.objects.create(owner=ann, title="first")
    note.tags.add(Tag.objects.create(name="red"))
    note.comments.create(author=ann, text="well said")
    return note


def raw_cursor(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE notes_note SET body = 'new' WHERE id = %s", [note.pk])


def writing_function(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT notes_touch(%s)", [note.pk])
        cursor.fetchall()


def writing_cte(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH gone AS (DELETE FROM notes_comment RETURNING id) SELECT count(*) FROM gone"
        )


def copy(note: Note) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY notes_tag (name) FROM STDIN") as rows:
        rows.write_row(("blue",))


def procedure(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.callproc("notes_touch", [note.pk])


def stream(note: Note) -> None:
    with connection.cursor() as cursor:
        list(cursor.stream("UPDATE notes_note SET body = 'new' RETURNING id"))


def driver(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.connection.execute("INSERT INTO notes_tag (name) VALUES ('blue')")
    note_write()


def many(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO notes_tag (name) VALUES (%s)", [("a",), ("b",)])


def in_transaction(note: Note) -> None:
    with transaction.atomic():
        Tag.objects.create(name="blue")


WAYS: dict[str, Callable[[Note], Any]] = {
    "save": lambda note: note.save(),
    "create": lambda note: Tag.objects.create(name="blue"),
    "delete": lambda note: note.delete(),
    "m2m add": lambda note: note.tags.add(Tag.objects.using("default").create(name="blue")),
    "m2m clear": lambda note: note.tags.clear(),
    "m2m set": lambda note: note.tags.set([]),
    "update": lambda note: Note.objects.filter(pk=note.pk).update(body="new"),
    "queryset delete": lambda note: Comment.objects.all().delete(),
    "bulk_create": lambda note: Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")]),
    "bulk_update": lambda note: Note.objects.bulk_update([note], ["body"]),
    "raw": lambda note: list(
        Note.objects.raw("UPDATE notes_note SET body = 'new' RETURNING notes_note.*")
    ),
    "raw cursor": raw_cursor,
    "executemany": many,
    "using default": lambda note: Tag.objects.using("default").create(name="blue"),
    "writing function": writing_function,
    "writing CTE": writing_cte,
    "copy": copy,
    "procedure": procedure,
    "stream": stream,
    "told by note_write": driver,
    "atomic": in_transaction,
    "get_or_create": lambda note: Tag.objects.get_or_create(name="blue"),
    "update_or_create": lambda note: Tag.objects.update_or_create(name="green"),
    "generic relation update": lambda note: note.comments.update(text="ill said"),
    "generic relation delete": lambda note: note.comments.all().delete(),
    "generic relation create": lambda note: note.comments.create(author=note.owner, text="oh"),
}


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_of_writing_makes_a_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    way: Callable[[Note], Any],
    method: str,
) -> None:
    """A write, by whatever way and in whatever request, is remembered for user and session."""
    before = cluster.primary.insert_lsn()
    wait_until_known(cluster)

    def action(request: HttpRequest) -> None:
        # As a view would: the object comes from wherever reads are routed to.
        way(Note.objects.get(pk=note.pk))

    visit(signed_in, action, method)
    of_user, of_session = record_of(ann), session_record_of(signed_in)
    assert of_user is not None
    assert of_session is not None
    assert of_user.position == of_session.position
    assert before < of_user.position.lsn <= cluster.primary.insert_lsn()
    assert of_user.position.timeline == 1
    assert of_session.owner == user_key(ann)


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_trigger_is_seen_with_the_statement_that_fires_it(
    signed_in: Client, note: Note, cluster: Cluster, method: str
) -> None:
    """What a trigger writes is behind the token of the statement that fired it."""
    wait_until_known(cluster)
    visit(signed_in, lambda request: Note.objects.filter(pk=note.pk).update(version=7), method)
    seen = visit(signed_in, lambda request: list(Event.objects.values_list("version", flat=True)))
    assert 7 in seen


READS: dict[str, Callable[[Note], Any]] = {
    "get": lambda note: Note.objects.get(pk=note.pk).title,
    "aggregate": lambda note: Note.objects.count(),
    "related": lambda note: [tag.name for tag in note.tags.all()],
    "nothing": lambda note: None,
    "select_for_update": lambda note: lock(note),
    "failed write": lambda note: fail(note),
}


def lock(note: Note) -> None:
    with transaction.atomic():
        Note.objects.select_for_update().get(pk=note.pk)


def fail(note: Note) -> None:
    with pytest.raises(Exception, match="duplicate"):
        Tag.objects.create(name="red")


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("way", READS.values(), ids=READS)
def test_a_request_that_wrote_nothing_gets_no_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    way: Callable[[Note], Any],
    method: str,
) -> None:
    """Reading, locking or failing to write makes no token for a write."""
    if way is READS["select_for_update"] and isinstance(connections["default"], TokenMixin):
        pytest.skip("a row lock takes a transaction id, which is all that the backend looks at")
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}
    wait_until_known(cluster)
    visit(signed_in, lambda request: way(note), method)
    assert record_of(ann) is None
    of_session = session_record_of(signed_in)
    assert of_session is None or of_session.position == NOWHERE


@pytest.mark.parametrize("way", ["get", "aggregate", "related", "nothing"])
def test_a_request_served_by_a_replica_stores_nothing(
    ann: User, note: Note, cluster: Cluster, way: str
) -> None:
    """Who meets the usual replica needs no memory of what was seen there."""
    client = sign_in(ann)
    wait_until_known(cluster)
    visit(client, lambda request: READS[way](note))
    before = record_of(ann)
    visit(client, lambda request: READS[way](note))
    assert record_of(ann) == before


def test_the_token_stands_before_the_response_leaves_though_the_view_raised(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A view that writes and then raises has written all the same."""

    def action(request: HttpRequest) -> None:
        note.save()
        raise RuntimeError

    signed_in.raise_request_exception = False
    assert visit(signed_in, action, "post").status_code == 500
    wrote(ann)


def test_a_stream_stores_its_token_at_its_end(signed_in: Client, ann: User, note: Note) -> None:
    """What the body of a streaming response writes is behind a token once the stream ends."""

    def body() -> Any:
        yield b"begin"
        note.save()
        yield b"end"

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert record_of(ann) is None
    assert b"".join(response.streaming_content) == b"beginend"
    wrote(ann)


def test_a_stream_that_is_cut_short_stores_its_token(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A client that hangs up in the middle has written what was written until then."""

    def body() -> Any:
        note.save()
        yield b"begin"
        yield b"never"

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert next(iter(response.streaming_content)) == b"begin"
    response.close()
    wrote(ann)


def test_what_a_stream_writes_when_it_is_cut_short_is_behind_its_token(
    signed_in: Client, ann: User, note: Note
) -> None:
    """As a chat saves in ``finally`` what it has said until the client hung up."""

    def body() -> Any:
        try:
            yield b"begin"
            yield b"never"
        finally:
            Note.objects.filter(pk=note.pk).update(title="second")

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert next(iter(response.streaming_content)) == b"begin"
    response.close()
    assert Note.objects.get(pk=note.pk).title == "second"
    wrote(ann)


def test_a_stream_that_lives_long_sees_what_came_later_in_a_scope_for_each_part(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Its request stays with what was known when it began; a scope asks anew."""
    feed, laptop = sign_in(ann), sign_in(ann)
    visit(feed, lambda request: str(request.user))
    wait_until_known(cluster)

    def body() -> Any:
        for _ in range(2):
            yield Note.objects.get(pk=note.pk).title
            with scope(user=ann):
                title = Note.objects.get(pk=note.pk).title
            yield title

    parts = visit(feed, lambda request: StreamingHttpResponse(body())).streaming_content
    assert [next(parts), next(parts)] == [b"first", b"first"]
    for replica in cluster.replicas:
        replica.pause()
    visit(laptop, lambda request: Note.objects.update(title="second") and None, "post")
    assert list(parts) == [b"first", b"second"]


def test_a_stream_that_nobody_begins_gives_back_what_its_request_held(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the client has hung up before: its request counts as in flight no more."""
    settings.REPLICA_ROUTER = {**PATIENT, "BALANCER": "least_in_flight"}
    monkeypatch.setattr(least_in_flight, "_counts", {})
    wait_until_known(cluster)
    response = visit(
        Client(), lambda request: StreamingHttpResponse([str(Note.objects.get(pk=note.pk))])
    )
    assert sum(least_in_flight._counts.values()) == 1
    response.close()
    assert sum(least_in_flight._counts.values()) == 0


def test_a_download_that_is_no_file_is_made_inside_the_scope(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """A FileResponse of a generator streams what it reads and writes, as any other stream does."""
    wait_until_known(cluster)

    def body() -> Any:
        yield str(Note.objects.get(pk=note.pk)._state.db).encode()
        Note.objects.filter(pk=note.pk).update(title="second")

    visit(signed_in, lambda request: bool(request.user.pk))  # its session is known again
    wait_until_known(cluster)
    response = visit(signed_in, lambda request: FileResponse(body(), filename="notes.csv"))
    assert b"".join(response.streaming_content).startswith(b"replica")
    wrote(ann)


def test_the_token_is_taken_after_the_commit(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """The token lies at or behind the record of the commit, also when that is asynchronous."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit = off")
            note.save()

    for _ in range(20):
        visit(signed_in, action, "post")
        record = record_of(ann)
        assert record is not None
        # The flush position of this moment says nothing of an asynchronous commit: have the
        # replica replay exactly up to the token, and look whether the row is there.
        cluster.replicas[0].wait_replayed(record.position.lsn)
        ((updated,),) = cluster.replicas[0].execute(
            "SELECT updated FROM notes_note WHERE id = %s", [note.pk], dbname="app"
        )
        assert updated == Note.objects.using("default").get(pk=note.pk).updated


def test_a_write_whose_position_cannot_be_read_pins_its_user(
    signed_in: Client, ann: User, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token the user reads from the primary for the token's life."""

    def fail(raw: object) -> None:
        message = "server closed the connection unexpectedly"
        raise psycopg.OperationalError(message)

    monkeypatch.setattr(writes.postgres, "read_token", fail)
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


FAILURES: dict[str, Callable[[Any], Any]] = {
    "procedure": lambda cursor: cursor.execute(
        "DO $$ BEGIN INSERT INTO notes_tag (name) VALUES ('blue'); COMMIT; "
        "RAISE EXCEPTION 'too late'; END $$"
    ),
    "several statements": lambda cursor: cursor.execute(
        "BEGIN; INSERT INTO notes_tag (name) VALUES ('blue'); COMMIT; SELECT 1 / 0"
    ),
    "one by one": lambda cursor: cursor.executemany(
        "INSERT INTO notes_tag (name) VALUES (%s)", [("blue",), ("blue",)]
    ),
}


@pytest.mark.parametrize("way", FAILURES.values(), ids=FAILURES)
def test_what_was_committed_before_a_statement_failed_makes_a_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Any], Any],
) -> None:
    """As by a procedure that works in portions and is stopped by ``statement_timeout``."""
    # Else the driver sends many at once, which are one transaction.
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    before = cluster.primary.insert_lsn()

    def action(request: HttpRequest) -> None:
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            way(cursor)

    visit(signed_in, action)
    assert Tag.objects.filter(name="blue").exists()
    record = record_of(ann)
    assert record is not None
    assert record.position.lsn > before


def test_a_scope_inside_a_transaction_pins_its_user(ann: User, note: Note) -> None:
    """Where the scope ends before the commit, no position can be known yet."""
    from django_replica_router import scope

    with transaction.atomic(), scope(user=ann):
        note.save()
    record = record_of(ann)
    assert record is not None
    assert record.position == NOWHERE
    assert record.pinned_until_ms > 0


def test_a_scope_inside_a_request_sees_what_the_request_has_written(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """As a task that is run at once, in the place where it is sent: no token is stored yet."""
    stand_still(cluster)

    def action(request: HttpRequest) -> str:
        Note.objects.filter(pk=note.pk).update(title="second")
        with scope(user=ann):
            return Note.objects.get(pk=note.pk).title

    assert visit(signed_in, action, "post") == "second"


def test_a_token_never_falls(signed_in: Client, ann: User, note: Note, cluster: Cluster) -> None:
    """A request that ends late with a low token does not undo a higher one."""
    high = Record(position=NOWHERE._replace(timeline=1, lsn=1 << 60), expires_ms=1 << 42)
    get_store("default").merge(
        {f"rr:default:{user_key(ann)}": high}, {f"rr:default:{user_key(ann)}": 60.0}
    )
    visit(signed_in, lambda request: note.save(), "post")
    record = record_of(ann)
    assert record is not None
    assert record.position == high.position


def test_the_users_key_is_found_though_the_view_never_asked_who_it_is(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A write is remembered for the user behind the session cookie, even if nobody looked."""

    def action(request: HttpRequest) -> None:
        Note.objects.filter(pk=note.pk).update(body="new")

    visit(signed_in, action, "post")
    assert record_of(ann) is not None


@pytest.mark.parametrize("engine", ["signed_cookies", "cache"])
def test_a_token_follows_its_session_to_a_new_key(
    note: Note, cluster: Cluster, settings: Any, engine: str
) -> None:
    """Also where a request that asks no database changes the key, and nobody is signed in."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    stand_still(cluster)
    browser = Client()

    def write(request: HttpRequest) -> None:
        request.session["basket"] = [1]
        Note.objects.filter(pk=note.pk).update(title="second")

    def change_key(request: HttpRequest) -> None:
        request.session["basket"] = [1, 2]
        request.session.cycle_key()

    def read(request: HttpRequest) -> str:
        return Note.objects.get(pk=note.pk).title

    visit(browser, write, "post")
    key = browser.cookies["sessionid"].value
    assert visit(browser, read) == "second"
    visit(browser, change_key)
    assert browser.cookies["sessionid"].value != key
    assert visit(browser, read) == "second"


def test_a_browser_carries_a_pin_where_the_store_does_not_tell_what_its_session_stood_for(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key's token is not known, and the new key has none."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    browser = Client()
    visit(browser, lambda request: request.session.update({"basket": [1]}))
    assert NAME not in browser.cookies

    def fail(*args: object) -> None:
        message = "away"
        raise ConnectionError(message)

    with monkeypatch.context() as patch:
        patch.setattr(type(get_store("default")), "_load", fail)
        patch.setattr(type(get_store("default")), "_load_with_owners", fail)
        visit(browser, lambda request: request.session.update({"basket": [1, 2]}))
    empty_store()
    wait_until_known(cluster)
    assert visit(browser, lambda request: Note.objects.get(pk=note.pk)._state.db) == "default"


def test_nothing_of_a_session_or_credential_is_readable_in_the_cache(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Keys are keyed hashes: a reader of the cache learns no session key and no password."""
    visit(
        signed_in, lambda request: note.save(), "post", headers={"authorization": "Basic c2VjcmV0"}
    )
    assert cluster.cache is not None
    keys = b" ".join(cluster.cache.command("KEYS", "*"))
    assert b"rr:default:" in keys
    assert signed_in.cookies["sessionid"].value.encode() not in keys
    assert b"c2VjcmV0" not in keys


def test_a_session_and_its_user_take_at_most_200_bytes_of_the_cache(
    signed_in: Client, note: Note, cluster: Cluster, forget_tokens: Callable[[], None]
) -> None:
    """Of a server that keeps key and value together, as Valkey does from 9 on; others need more."""
    visit(signed_in, lambda request: note.save(), "post")
    assert cluster.cache is not None
    keys = [key for key in cluster.cache.command("KEYS", "*") if EVERYBODY.encode() not in key]
    assert len(keys) == 2
    version = str(cluster.cache.command("INFO", "server").get("valkey_version", "0"))
    sizes = [cluster.cache.command("MEMORY", "USAGE", key) for key in keys]
    assert sum(sizes) <= (200 if int(version.partition(".")[0]) >= 9 else 240), sizes


def test_note_write_refuses_a_replica(cluster: Cluster) -> None:
    """Telling of a write to a replica is a mistake, and said so."""
    with pytest.raises(ValueError, match="'replica1' is a replica: pass the alias of the primary"):
        note_write("replica1")


def test_note_write_is_nothing_where_the_package_is_switched_off(
    signed_in: Client, ann: User, settings: Any
) -> None:
    """Nor is anything else remembered."""
    settings.REPLICA_ROUTER = {**PATIENT, "ENABLED": False}
    visit(signed_in, lambda request: note_write(), "post")
    assert record_of(ann) is None


def test_fast_deletion_stays_fast(note: Note, django_assert_num_queries: Any) -> None:
    """The package listens to no signal that would make Django delete objects one by one."""
    assert Event.objects.exists()
    with django_assert_num_queries(3) as captured:
        Event.objects.all().delete()
    assert [query["sql"].split()[0] for query in captured] == ["BEGIN", "DELETE", "COMMIT"]


def test_the_packages_own_question_is_in_no_log(
    ann: User, note: Note, django_assert_num_queries: Any
) -> None:
    """assertNumQueries of a site's tests counts what it counted without the package."""
    signed_in = sign_in(ann)
    with django_assert_num_queries(1):
        visit(signed_in, lambda request: Note.objects.filter(pk=note.pk).update(body="new"))


def test_a_write_outside_any_scope_is_left_alone(note: Note, ann: User) -> None:
    """A command or a shell writes for nobody in particular."""
    note.save()
    assert record_of(ann) is None


def test_a_saved_model_is_a_write_though_nobody_saw_its_statement(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal holds where a backend runs statements past Django's wrappers."""
    if isinstance(connections["default"], TokenMixin):
        pytest.skip("the backend is told by each COMMIT")
    monkeypatch.setattr(connections["default"], "execute_wrappers", [])
    with scope() as opened:
        Tag.objects.bulk_create([Tag(name="green")])  # sends no signal
        assert not opened.cluster("default").wrote
        note.save()
        assert opened.cluster("default").wrote


def test_signals_sent_by_hand_need_not_name_the_database(note: Note) -> None:
    """A site's tests send them with no more than its own receivers need."""
    app = apps.get_app_config("notes")
    with scope() as opened:
        post_migrate.send(sender=app, app_config=app, verbosity=0)
        assert not opened.cluster("default").wrote
        post_save.send(sender=Note, instance=note, created=False)
        assert opened.cluster("default").wrote


@pytest.mark.parametrize("is_debugged", [False, True])
def test_a_copy_is_noticed_whatever_the_class_of_the_cursor(
    note: Note, settings: Any, is_debugged: bool
) -> None:
    """Also where Django keeps a log of queries, and where the connection is observed anew."""
    reset_queries()  # of another test
    connection.force_debug_cursor = is_debugged
    connection.execute_wrappers.clear()
    try:
        for _ in range(2):
            observe_open_connections()
            with scope() as opened:
                with connection.cursor() as cursor:
                    cursor.execute("TRUNCATE notes_tag CASCADE")
                    opened.clusters.clear()
                    with cursor.copy("COPY notes_tag (name) FROM STDIN") as rows:
                        rows.write_row(("blue",))
                assert opened.cluster("default").has_pending
            connection.execute_wrappers.clear()
    finally:
        connection.force_debug_cursor = False
        observe_open_connections()
    assert bool(connection.queries) is is_debugged


def test_connections_that_were_open_before_the_app_was_ready_are_observed() -> None:
    """Each connection of a cluster has one observer, however often it connects."""
    for _ in range(2):
        observe_open_connections()
    for alias in connections:
        connections[alias].ensure_connection()
        connections[alias].close()
        connections[alias].ensure_connection()
        observers = [
            wrapper
            for wrapper in connections[alias].execute_wrappers
            if isinstance(wrapper, StatementObserver)
        ]
        assert len(observers) == 1
