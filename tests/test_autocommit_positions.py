"""Positions that come with a change outside of a transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, IntegrityError, connection
from django.http import HttpRequest
from django.test import Client, override_settings

from benchmarks.load.commits import enable, ends_of_commits
from django_replica_router import note_write, scope
from django_replica_router.connections import commits, on_primary
from django_replica_router.values.tokens import Position
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Event, Note, Tag
from tests.backend import (  # noqa: F401 - fixtures
    CARRIED,
    DJANGO,
    _own_engine,
    current_state,
    engine,
    execute,
    only_writes,
    wire,
)
from tests.conftest import stand_still, wait_until, wait_until_known
from tests.site import sign_in, visit
from tests.written import note, record_of, signed_in, wrote  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


def ask_for_the_position_too_early(patch: pytest.MonkeyPatch) -> None:
    """Take out the rule that the position is asked for behind the commit."""
    position = "pg_current_wal_insert_lsn()::text"
    early = f"{commits._WROTE}, set_config('test.early', {position}, false)"
    for name in ("_COMMIT", "_BEHIND_CHANGE"):
        message = getattr(commits, name).decode().replace(commits._WROTE, early)
        message = message.replace(f"SELECT {position}", "SELECT current_setting('test.early')")
        patch.setattr(commits, name, message.encode())


# Round trips --------------------------------------------------------------------------------------


WAYS: dict[str, Callable[[Note], Any]] = {
    "create": lambda note: Tag.objects.create(name="blue"),
    "save": lambda note: note.save(),
    "save, update_fields": lambda note: note.save(update_fields=["title"]),
    "update": lambda note: Note.objects.filter(pk=note.pk).update(body="new"),
    "delete": lambda note: Event.objects.all()._raw_delete("default"),
    "raw": lambda note: list(
        Note.objects.raw("UPDATE notes_note SET body = 'new' RETURNING notes_note.*")
    ),
    "cursor": lambda note: execute("DELETE FROM notes_event WHERE note_id = %s", [note.pk]),
    "cursor, no parameters": lambda note: execute("INSERT INTO notes_tag (name) VALUES ('50%')"),
    "insert": lambda note: Tag.objects.all()._insert(
        [Tag(name="blue")], fields=[Tag._meta.get_field("name")], using="default"
    ),
}


def messages_of(user: User, way: Callable[[Note], Any], note: Note) -> list[str]:
    """Return what a form sends to the primary, by a browser that the token store knows."""
    client = sign_in(user)
    visit(client, lambda request: note_write(), "post")
    with wire() as sent:
        visit(client, lambda request: way(note) and None, "post")
    return sent.sent


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_token_costs_no_message(
    ann: User,
    note: Note,
    cluster: Cluster,
    way: Callable[[Note], Any],
) -> None:
    """A form that writes outside a transaction sends as many messages as without the package."""
    before = cluster.primary.insert_lsn()
    messages = messages_of(ann, way, note)
    assert CARRIED in messages[-1]
    assert wrote(ann).position.lsn > before
    Tag.objects.filter(name__in=["blue", "50%"]).delete()
    with engine(DJANGO), override_settings(REPLICA_ROUTER={"ENABLED": False}):
        others = messages_of(ann, way, note)
    assert [text.split()[0] for text in messages] == [text.split()[0] for text in others]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_without_the_backend_it_costs_one_message(
    ann: User,
    note: Note,
    way: Callable[[Note], Any],
) -> None:
    """Control: what is saved is the question for the position at the end."""
    with engine(DJANGO):
        *_, change, question = messages_of(ann, way, note)
    assert CARRIED not in change
    assert CARRIED in question


# What is known of writes --------------------------------------------------------------------------


@contextmanager
def committing(cluster: Cluster, mode: str) -> Iterator[None]:
    """Have every session commit in a mode."""
    cluster.primary.configure(synchronous_commit=mode)
    try:
        wait_until(lambda: execute("SHOW synchronous_commit") == [(mode,)], "the mode")
        yield
    finally:
        cluster.primary.configure(synchronous_commit=None)


@pytest.mark.parametrize("mode", ["on", "off", "local", "remote_apply"])
def test_the_position_is_behind_the_commit(ann: User, cluster: Cluster, mode: str) -> None:
    """Each write's position is at the end of its commit record, or behind it."""
    enable(cluster)
    before = cluster.primary.flush()
    found: dict[int, int] = {}
    with committing(cluster, mode):
        for number in range(60):
            with scope(user=ann):
                [(transaction_id,)] = execute(
                    "INSERT INTO notes_tag (name) VALUES (%s) RETURNING xmin::text", [str(number)]
                )
                state = current_state()
                assert state.checkpoint is not None, "it was carried"
                found[int(transaction_id)] = state.checkpoint.position.lsn
    cluster.primary.flush()
    ends = ends_of_commits(cluster, before)
    assert all(position >= ends[number] for number, position in found.items())


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_position_in_the_same_message_in_front_of_the_commit_is_stale(
    ann: User, cluster: Cluster, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the server tells before it commits is too low, each time."""
    ask_for_the_position_too_early(monkeypatch)
    with pytest.raises(AssertionError, match=r"all\("):
        test_the_position_is_behind_the_commit(ann, cluster, mode)


def test_several_statements_alone_are_no_way(cluster: Cluster, test_site: None) -> None:
    """Control: without BEGIN and COMMIT the position of a message stands before its commit."""
    enable(cluster)
    before = cluster.primary.flush()
    found = {}
    connection.ensure_connection()
    with psycopg.ClientCursor(connection.connection) as cursor:
        for number in range(20):
            cursor.execute(
                f"INSERT INTO notes_tag (name) VALUES ('{number}') RETURNING xmin::text;"
                "SELECT (pg_current_wal_insert_lsn() - '0/0')::text"
            )
            ((transaction_id,),) = cursor.fetchall()
            cursor.nextset()
            ((position,),) = cursor.fetchall()
            found[int(transaction_id)] = int(position)
    cluster.primary.flush()
    ends = ends_of_commits(cluster, before)
    assert all(position < ends[number] for number, position in found.items())


def test_the_author_sees_the_write(
    signed_in: Client,
    note: Note,
    cluster: Cluster,
) -> None:
    """Replicas that lack it do not serve who has written; once they have it they do."""
    stand_still(cluster)

    def change(request: HttpRequest) -> None:
        Note.objects.filter(pk=note.pk).update(title="new")

    def read(request: HttpRequest) -> list[str]:
        found = Note.objects.get(pk=note.pk)
        return [found.title, str(found._state.db)]

    visit(signed_in, change, "post")
    assert visit(signed_in, read) == ["new", "default"]
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    title, alias = visit(signed_in, read)
    assert title == "new"
    assert alias != "default"


NOTHING: dict[str, str] = {
    "update": "UPDATE notes_note SET title = 'new' WHERE id = -1",
    "delete": "DELETE FROM notes_note WHERE id = -1",
    # With its key: to take one from a sequence is a write now and then, when the sequence logs some in advance.
    "conflict": "INSERT INTO notes_tag (id, name) VALUES (0, 'red') ON CONFLICT DO NOTHING",
    "select": "INSERT INTO notes_tag (name) SELECT name FROM notes_tag WHERE id = -1",
    "merge": "MERGE INTO notes_tag t USING (SELECT -1 AS id) v ON t.id = v.id WHEN MATCHED THEN DELETE",
}


@pytest.mark.parametrize("statement", NOTHING.values(), ids=NOTHING)
def test_a_write_that_matched_nothing_is_none(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    only_writes: None,
    statement: str,
) -> None:
    """The rest of the request, and all that follow, are free to read from a replica."""
    wait_until_known(cluster)

    def action(request: HttpRequest) -> list[Any]:
        execute(statement)
        alias = str(Note.objects.get(pk=note.pk)._state.db)
        return [alias != "default", current_state().has_pending]

    assert visit(signed_in, action) == [True, False]
    assert record_of(ann) is None


@pytest.mark.parametrize("statement", NOTHING.values(), ids=NOTHING)
def test_what_such_a_write_has_shown_is_remembered(
    signed_in: Client,
    ann: User,
    note: Note,
    statement: str,
) -> None:
    """That an update matches nothing is something a user may have seen. It costs no message either."""

    def action(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        execute(statement)

    def token() -> Position:
        record = record_of(ann)
        assert record is not None
        return record.token

    visit(signed_in, action, "post")
    before = token()
    Tag.objects.create(name="later")
    with wire() as sent:
        visit(signed_in, action, "post")
    assert CARRIED in sent.sent[-1]
    assert statement in sent.sent[-1]
    assert token() > before


def test_a_write_of_which_no_row_tells_is_noticed(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    only_writes: None,
) -> None:
    """A trigger may write where the statement itself matches nothing: the transaction's number tells."""
    for statement in (
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO notes_tag (name) VALUES ('told'); RETURN NULL; END $$",
        "CREATE TRIGGER tell AFTER UPDATE ON notes_comment EXECUTE FUNCTION tell()",
    ):
        cluster.primary.execute(statement, dbname="app")
    try:
        visit(signed_in, lambda request: Comment.objects.filter(pk=-1).update(text="") and None)
        assert Tag.objects.filter(name="told").exists()
        wrote(ann)
    finally:
        cluster.primary.execute("DROP FUNCTION tell() CASCADE", dbname="app")


def test_what_an_error_has_shown_is_behind_the_token(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """That a name is taken tells of what somebody else has written since the last position came."""

    def action(request: HttpRequest) -> None:
        Tag.objects.create(name="mine")
        stand_still(cluster)
        cluster.primary.execute("INSERT INTO notes_tag (name) VALUES ('theirs')", dbname="app")
        with pytest.raises(IntegrityError):
            Tag.objects.create(name="theirs")

    client = sign_in(ann)
    visit(client, action, "post")
    assert visit(client, lambda request: Tag.objects.filter(name="theirs").count()) == 1


# Nothing shows it ---------------------------------------------------------------------------------


TABLES = """
CREATE TABLE kinds (id serial PRIMARY KEY, name text UNIQUE, number int NOT NULL DEFAULT 0,
    twice int GENERATED ALWAYS AS (number * 2) STORED,
    parent int REFERENCES kinds DEFERRABLE INITIALLY DEFERRED);
CREATE VIEW deaf AS SELECT name FROM kinds;
CREATE RULE deaf AS ON INSERT TO deaf DO INSTEAD NOTHING;
CREATE VIEW loud AS SELECT name FROM kinds;
CREATE RULE loud AS ON INSERT TO loud DO INSTEAD (INSERT INTO kinds (name) VALUES (NEW.name); SELECT 7 AS seven);
CREATE VIEW odd AS SELECT name FROM kinds;
CREATE RULE odd AS ON UPDATE TO odd DO INSTEAD SELECT 8 AS eight;
"""
STATEMENTS: list[tuple[str, Any]] = [
    ("INSERT INTO kinds (name, number) VALUES ('c', 3) RETURNING id, twice", None),
    ("INSERT INTO kinds (name) VALUES (%s), (%s) RETURNING id", ["it's; a %", "--"]),
    ("INSERT INTO kinds (name) VALUES (%(name)s)", {"name": "c"}),
    ("INSERT INTO kinds (name) VALUES ('100%')", None),
    ("INSERT INTO kinds (name) VALUES ('100%%')", []),
    ("INSERT INTO kinds (name) VALUES ('c') -- a comment", None),
    ("INSERT INTO kinds (name) VALUES ('c'); -- a comment; SELECT 1", None),
    ("/* before */ INSERT INTO kinds (name) VALUES ('c') /* behind */", None),
    ("INSERT INTO kinds (name) VALUES ('c') ; ; \n", None),
    ("INSERT INTO kinds DEFAULT VALUES RETURNING *", None),
    ("INSERT INTO kinds (name) VALUES ('a') ON CONFLICT DO NOTHING RETURNING id", None),
    ("INSERT INTO kinds (name) VALUES ('a') ON CONFLICT (name) DO UPDATE SET number = 9 WHERE false", None),
    ("INSERT INTO kinds (name) VALUES ('a') ON CONFLICT (name) DO UPDATE SET number = 9 RETURNING *", None),
    ("INSERT INTO kinds (name) SELECT name || '2' FROM kinds RETURNING name", None),
    ("INSERT INTO deaf VALUES ('c')", None),
    ("INSERT INTO loud VALUES ('c')", None),
    ("UPDATE odd SET name = 'c'", None),
    ("UPDATE kinds SET number = number + 1", None),
    ("UPDATE kinds SET number = %s WHERE name = %s RETURNING twice", [5, "b"]),
    ("UPDATE kinds SET number = 1 WHERE false", None),
    ("DELETE FROM kinds WHERE name = 'b'", None),
    ("DELETE FROM kinds RETURNING id", None),
    (
        "MERGE INTO kinds k USING (SELECT 'a' AS name, 4 AS number UNION SELECT 'd', 5) v ON k.name = v.name "
        "WHEN MATCHED THEN UPDATE SET number = v.number "
        "WHEN NOT MATCHED THEN INSERT VALUES (DEFAULT, v.name, v.number)",
        None,
    ),
    # Errors, in the statement and at its commit.
    ("INSERT INTO kinds (name) VALUES ('a')", None),
    ("INSERT INTO kinds (name, number) VALUES ('c', NULL)", None),
    ("INSERT INTO kinds (name, parent) VALUES ('c', 77)", None),
    ("INSERT INTO kinds (name, twice) VALUES ('c', 1)", None),
    ("UPDATE kinds SET number = 1 / (number - number)", None),
    ("UPDATE kinds SET nowhere = 1", None),
    ("UPDATE kinds\n   SET number 1", None),
    ("DELETE FROM nowhere", None),
    ("INSERT INTO kinds (name) VALUES (%s)", [b"\xff".decode("latin-1") * 3]),
    ("INSERT INTO kinds (name) VALUES ('never closed", None),
    ("INSERT INTO kinds (name) VALUES ('c') /* never closed", None),
]  # fmt: skip


@pytest.fixture
def kinds(cluster: Cluster) -> Iterator[None]:
    """A table of each kind of column, and views with rules."""
    cluster.primary.execute(TABLES, dbname="app")
    yield
    connection.close()
    cluster.primary.execute("DROP TABLE kinds CASCADE", dbname="app")


def outcome(statement: str, params: Any) -> dict[str, Any]:
    """Return all that can be seen of a statement, and what it has done, on a table put in order."""
    execute("TRUNCATE kinds RESTART IDENTITY; INSERT INTO kinds (name) VALUES ('a'), ('b')")
    notices: list[Any] = []
    raw = connection.connection
    raw.add_notice_handler(notices.append)
    seen: dict[str, Any] = {}
    with scope(), connection.cursor() as cursor:
        try:
            returned = cursor.execute(statement, params)
            seen |= {"returned": returned is cursor.cursor, "rowcount": cursor.rowcount}
            seen |= {
                "status": cursor.statusmessage,
                "columns": cursor.description and [c.name for c in cursor.description],
            }
            seen |= {"rows": cursor.fetchall() if cursor.description else None}
            seen |= {"more": cursor.nextset(), "number": cursor.rownumber}
            if hasattr(psycopg.Cursor, "results"):
                seen["sets"] = len(list(cursor.results()))
        except DatabaseError as error:
            cause: Any = error.__cause__
            seen |= {"error": type(error), "text": str(error), "state": cause.sqlstate}
            seen |= {"place": cause.diag.statement_position, "of": cause.diag.constraint_name}
        seen["carried"] = current_state().checkpoint is not None
    seen["idle"] = (raw.info.transaction_status.name, connection.get_autocommit())
    raw.remove_notice_handler(notices.append)
    rows = execute("SELECT name, number, twice, parent FROM kinds ORDER BY name")
    return seen | {"notices": len(notices), "table": rows}


@pytest.mark.parametrize(("statement", "params"), STATEMENTS, ids=[text for text, _ in STATEMENTS])
def test_nothing_else_is_different(
    kinds: None, statement: str, params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, counts, errors and their places are those of the statement alone."""
    carried = outcome(statement, params)
    monkeypatch.setattr(on_primary, "_MOST_CARRIED", 0)
    alone = outcome(statement, params)
    assert (carried.pop("carried"), alone.pop("carried")) == ("error" not in carried, False)
    assert carried == alone
    assert carried["idle"] == ("IDLE", True)


def test_logs_and_counts_are_those_without_the_backend(
    ann: User, caplog: pytest.LogCaptureFixture, django_assert_num_queries: Any
) -> None:
    """Whoever counts or logs sees the statement as the site has made it."""
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        scope(user=ann),
        django_assert_num_queries(1) as captured,
    ):
        Tag.objects.create(name="blue")
        assert current_state().checkpoint is not None
    statement = 'INSERT INTO "notes_tag" ("name") VALUES (\'blue\') RETURNING "notes_tag"."id"'
    assert [query["sql"] for query in captured] == [statement]
    assert not any("pg_current" in record.getMessage() for record in caplog.records)


def test_what_other_wrappers_see(ann: User) -> None:
    """The wrappers of others are given the statement, its parameters and its result."""
    seen: list[Any] = []

    def watch(execute: Any, statement: Any, params: Any, many: bool, context: Any) -> Any:
        result = execute(statement, params, many, context)
        cursor = context["cursor"]
        seen.append((statement, params, many, cursor.rowcount, result is cursor.cursor))
        return result

    with scope(user=ann), connection.execute_wrapper(watch):
        tag = Tag.objects.create(name="blue")
        assert current_state().checkpoint is not None
    statement = 'INSERT INTO "notes_tag" ("name") VALUES (%s) RETURNING "notes_tag"."id"'
    assert seen == [(statement, ("blue",), False, 1, True)]
    assert tag.pk


def test_djangos_own_results(ann: User, note: Note, cluster: Cluster) -> None:
    """Keys, columns that the database fills, and counts of rows arrive."""
    with scope(user=ann):
        event = Event.objects.create(note_id=7, action="made", version=1)
        assert (event.pk, event.at) == Event.objects.values_list("pk", "at").get(note_id=7)
        assert Event.objects.filter(note_id=7).update(version=2) == 1
        assert Event.objects.filter(note_id=-7).update(version=2) == 0
        assert Event.objects.filter(note_id=7).delete() == (1, {"notes.Event": 1})
        tags = Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")])
        assert {tag.pk for tag in tags} == {
            *Tag.objects.filter(name__in="ab").values_list("pk", flat=True)
        }
        again = Tag.objects.bulk_create(
            [Tag(name="b"), Tag(name="c")],
            update_conflicts=True,
            unique_fields=["name"],
            update_fields=["name"],
        )
        assert again[0].pk == tags[1].pk
        with pytest.raises(IntegrityError):
            Tag.objects.create(name="a")


def test_a_cursor_that_is_used_again_carries_nothing_over(ann: User) -> None:
    """Each statement of a cursor stands for itself."""
    with scope(user=ann), connection.cursor() as cursor:
        cursor.execute("INSERT INTO notes_tag (name) VALUES ('a') RETURNING name")
        assert cursor.fetchall() == [("a",)]
        cursor.execute("SELECT 1; SELECT 2")
        assert (cursor.fetchall(), cursor.nextset(), cursor.fetchall()) == ([(1,)], True, [(2,)])
        cursor.executemany("INSERT INTO notes_tag (name) VALUES (%s)", [("b",), ("c",)])
        assert cursor.rowcount == 2
        list(cursor.stream("SELECT 1"))
        with cursor.copy("COPY notes_tag (name) FROM STDIN") as rows:
            rows.write_row(("d",))
        cursor.execute("DELETE FROM notes_tag")
        assert (cursor.rowcount, cursor.nextset()) == (4, None)
