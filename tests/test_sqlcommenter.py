"""Comments that tell the servers' own logs why a statement came to them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.http import HttpRequest
from django.test import AsyncClient, Client

from django_replica_router import scope, use_primary
from django_replica_router.connections.commenting import comment_of, with_comment
from django_replica_router.connections.on_replica import OnPooledReplica
from django_replica_router.observations import observers
from django_replica_router.observing import commenting, tell_reasons
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import CARRIED, DJANGO, OWN, UNPREPARED, engine, wire
from tests.pooled import transaction_poolers
from tests.reading import browser, note
from tests.site import avisit, visit

__all__ = ["browser", "note", "transaction_poolers"]

MIDDLEWARE = "django_replica_router.contrib.sqlcommenter.SqlCommenterMiddleware"


@pytest.fixture(autouse=True)
def _ready(test_site: None) -> Iterator[None]:
    tell_reasons()
    yield
    tell_reasons(is_on=False)
    assert not observers.present


def shown(cluster: Cluster, mark: str) -> set[tuple[str, str]]:
    """Return the server and the text of each statement that the servers show, and that has a mark."""
    question = (
        "SELECT query FROM pg_stat_activity WHERE datname = 'app' "
        "AND pid <> pg_backend_pid() AND strpos(query, %s) > 0"
    )
    servers = {"default": cluster.primary} | {one.name: one for one in cluster.replicas}
    return {
        (alias, text)
        for alias, server in servers.items()
        for (text,) in server.execute(question, [mark])
    }


def read(request: HttpRequest) -> None:
    """Read titles."""
    list(Note.objects.filter(title__contains="100 %").values_list("title"))


def test_a_request_tells_each_server_why_it_was_asked(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """A replica that it has caught up, and the primary that something was written."""
    settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]
    browser.handler.load_middleware()
    visit(browser, read)
    [(alias, text)] = shown(cluster, '"title" FROM')
    assert alias.startswith("replica")
    assert text.endswith(f"/*replica_reason='CAUGHT_UP',replica_server='{alias}'*/")
    texts: list[tuple[str, str]] = []

    def write(request: HttpRequest) -> None:
        Note.objects.update(title="mine")
        texts.extend(shown(cluster, 'UPDATE "notes_note"'))  # before the position is asked for

    visit(browser, write, "post")
    [(alias, text)] = texts
    assert (alias, text[-48:]) == (
        "default",
        "/*replica_reason='WRITE',replica_server='default'*/"[-48:],
    )


def test_an_asynchronous_request_does_so(cluster: Cluster, settings: Any) -> None:
    """In whatever thread its statements are run."""
    settings.MIDDLEWARE = [MIDDLEWARE, *settings.MIDDLEWARE]
    texts: list[str] = []

    async def count(request: HttpRequest) -> None:
        await Tag.objects.acount()
        found = await sync_to_async(shown)(cluster, 'AS "__count" FROM "notes_tag"')
        texts.extend(text for alias, text in found)
        await sync_to_async(connections.close_all)()  # those of this thread

    asyncio.run(avisit(AsyncClient(), count))
    assert any("/*replica_reason='" in text for text in texts)


def test_nothing_is_added_outside_of_it(cluster: Cluster, note: Note) -> None:
    """Where the process is ready, and nobody has asked for it."""
    with scope():
        read(HttpRequest())
    texts = shown(cluster, '"title" FROM')
    assert texts
    assert not any("replica_reason" in text for _, text in texts)


def test_what_the_primary_answers_instead_says_so(cluster: Cluster, note: Note) -> None:
    """A replica was to answer it; and a statement in a transaction tells that."""
    with scope(), commenting():
        list(Note.objects.raw("SELECT notes_note.*, notes_touch(id) FROM notes_note"))
        texts = shown(cluster, "notes_touch(id)")  # before the scope's end asks for a position
    [text] = {text for alias, text in texts if alias == "default"}
    assert "replica_reason='INSTEAD',replica_server='default'" in text
    with commenting(), transaction.atomic():
        read(HttpRequest())
        [(_, text)] = shown(cluster, '"title" FROM')
        assert "IN_ATOMIC" in text


def test_positions_still_come_along_with_what_is_written(cluster: Cluster) -> None:
    """With the package's backend a change outside a transaction is one message, with the comment in front."""
    with engine(OWN), scope(user=1), commenting(), wire() as sent:
        Tag.objects.create(name="mine")
    [message] = [text for text in sent.sent if "INSERT" in text]
    change, _, behind = message.partition("/*replica_reason='WRITE'")
    assert "notes_tag" in change
    assert CARRIED in behind
    assert not any(CARRIED in text for text in sent.sent if text != message)


def test_what_is_asked_along_behind_a_pooler_is_not_disturbed(
    transaction_poolers: Any, note: Note, cluster: Cluster
) -> None:
    """In transaction mode each query asks in its own message who answers it, and rows are the query's own."""
    with scope(), commenting():
        [(title,)] = Note.objects.values_list("title")
        alias = Note.objects.get()._state.db
        assert isinstance(connections[alias].around._inner, OnPooledReplica)  # type: ignore[attr-defined]
    assert title == note.title
    assert f"replica_server='{alias}'" in "".join(text for _, text in shown(cluster, "notes_note"))


@UNPREPARED
def test_prepared_statements_and_cursors_of_the_server_work(cluster: Cluster, note: Note) -> None:
    """A comment is the same each time, so a prepared statement is one; a cursor is declared with it."""
    options = {"server_side_binding": True, "prepare_threshold": 2}
    with engine(DJANGO, OPTIONS=options), scope(), commenting(), use_primary():
        for _ in range(5):
            list(Note.objects.filter(title="a").values_list("title"))
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement FROM pg_prepared_statements WHERE name LIKE '_pg3_%%'")
            prepared = [text for (text,) in cursor.fetchall() if '"title" FROM' in text]
        with transaction.atomic():
            assert [one.pk for one in Note.objects.iterator()] == [note.pk]
    [text] = prepared
    assert text.endswith("/*replica_reason='FORCED',replica_server='default'*/")


def test_a_copy_is_left_alone(cluster: Cluster, note: Note) -> None:
    """It runs past Django's cursors."""
    with (
        scope(),
        commenting(),
        connection.cursor() as cursor,
        cursor.copy("COPY (SELECT title FROM notes_note) TO STDOUT") as copy,
    ):
        assert b"".join(copy) == b"first\n"


def test_a_statement_with_a_comment_keeps_it() -> None:
    """And is not given another one; a value is encoded, and again for a driver that puts parameters in."""
    for sql in ("SELECT 1 /* mine */", "SELECT 1 -- mine"):
        assert with_comment(sql, comment_of("a", "B"), is_formatted=False) == sql
    comment = comment_of("l'été */", "B")
    assert comment == " /*replica_reason='B',replica_server='l%27%C3%A9t%C3%A9%20%2A%2F'*/"
    assert with_comment("SELECT %s", comment, is_formatted=True).count("%%") == comment.count("%")
    with connection.cursor() as cursor:
        cursor.execute(with_comment("SELECT %s", comment, is_formatted=True), [1])
        assert cursor.fetchone() == (1,)
