"""A new connection to a replica asks who answers along with its first statement, not by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from django.db import DataError, OperationalError, connections, router, transaction

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.replicas import sights
from django_replica_router.sql import answering
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import believe_every_connection, unwatched, wait_until_known
from tests.helpers import Served
from tests.test_mending import close_replicas, locked_on_replicas

pytestmark = [
    pytest.mark.usefixtures("test_site"),
    pytest.mark.not_pooled("there each connection asks when it is opened, and each statement"),
]

ASKED_ALONG = answering.ask_along("SELECT", 1000, 0).split("<>")[0]


def title() -> str:
    """Read what one user reads, on a replica."""
    return Note.objects.get().title


@pytest.fixture
def usual(note: Note, cluster: Cluster) -> Iterator[str]:
    """The replica of one user, which this process has been connected to, and is not any more."""
    close_replicas()
    with scope(user=1):
        alias = str(Note.objects.get()._state.db)
    assert alias.startswith("replica")
    assert alias in sights.led_straight
    close_replicas()
    yield alias
    close_replicas()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The connections on which a request asks, in a message of its own, who is there."""
    asked: list[Any] = []
    original = answering.identify

    def identify(raw: Any, *args: Any) -> answering.ServerIdentity:
        if raw.info.get_parameters().get("application_name") != "django-replica-router":
            asked.append(raw)
        return original(raw, *args)

    monkeypatch.setattr(answering, "identify", identify)
    return asked


@contextmanager
def led_elsewhere(alias: str, cluster: Cluster) -> Iterator[None]:
    """Have an alias lead to another server, which is behind, and the monitor not know it yet."""
    other = next(replica for replica in cluster.replicas if replica.name != alias)
    other.pause()
    settings = connections[alias].settings_dict
    before = settings["PORT"]
    Note.objects.update(title="new")
    this = next(replica for replica in cluster.replicas if replica.name == alias)
    this.wait_replayed(cluster.primary.flush())
    try:
        with unwatched():
            settings["PORT"] = other.port
            yield
    finally:
        settings["PORT"] = before
        connections[alias].close()
        other.resume()


def test_a_new_connection_costs_no_message(usual: str, served: Served, asked: list[Any]) -> None:
    """The first statement asks along, and no other does."""
    for _ in range(2):
        with scope(user=1):
            assert [title(), title()] == ["first", "first"]
        connections[usual].close()
    assert asked == []
    assert {alias for alias, _ in served.statements} == {usual}
    starts = [sql.startswith(ASKED_ALONG) for _, sql in served.statements]
    assert starts == [True, False, True, False]


def test_the_first_connection_of_a_process_asks_by_itself(usual: str, asked: list[Any]) -> None:
    """Control: where nobody knows whether a pooler answers, only an answer shows that a server is there."""
    sights.led_straight.clear()
    with scope(user=1):
        assert title() == "first"
    assert len(asked) == 1


def test_another_server_is_not_shown(usual: str, cluster: Cluster) -> None:
    """What the first statement has read there is read once more on the primary."""
    pop_stats()
    with led_elsewhere(usual, cluster), scope(user=1):
        note = Note.objects.get()
        assert [note.title, str(note._state.db)] == ["new", usual]
        assert title() == "new"
    assert get_stats()["retried_elsewhere"] == 1


def test_without_the_rule_another_server_is_shown(
    usual: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: it shows what is old."""
    believe_every_connection(monkeypatch)
    with pytest.raises(AssertionError, match="first"):
        test_another_server_is_not_shown(usual, cluster)


def by_iterator(alias: str) -> str:
    return next(iter(Note.objects.iterator(chunk_size=1))).title


def by_many(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.executemany("SELECT title FROM notes_note WHERE title <> %s", [("none",)])
    return title()


def by_procedure(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.callproc("current_setting", ["transaction_read_only"])
        ((is_standby,),) = cursor.fetchall()
    return "first" if is_standby == "on" else "new"


def by_stream(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        ((found,),) = cursor.stream("SELECT title FROM notes_note")
    return str(found)


def by_copy(alias: str) -> str:
    with (
        connections[alias].cursor() as cursor,
        cursor.copy("COPY notes_note (title) TO STDOUT") as rows,
    ):
        ((found,),) = rows.rows()
    return str(found)


def by_show(alias: str) -> str:
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        ((is_standby,),) = cursor.fetchall()
    return "first" if is_standby == "on" else "new"


OTHERS = {
    way.__name__: way for way in (by_iterator, by_procedure, by_stream, by_copy, by_many, by_show)
}


@pytest.mark.parametrize("way", OTHERS.values(), ids=OTHERS)
def test_what_cannot_ask_along_has_it_asked_before(
    usual: str, cluster: Cluster, asked: list[Any], way: Callable[[str], str]
) -> None:
    """It is what it was: one question for each connection, and nothing of another server is shown."""
    with scope(user=1):
        assert way(router.db_for_read(Note)) == "first"
    assert len(asked) == 1
    connections[usual].close()
    with led_elsewhere(usual, cluster), scope(user=1):
        assert way(router.db_for_read(Note)) == "new"


@pytest.mark.parametrize("way", OTHERS.values(), ids=OTHERS)
def test_without_the_question_another_server_is_shown_there(
    usual: str,
    cluster: Cluster,
    asked: list[Any],
    way: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: where nobody asks, the tests above fail."""
    for module in ("on_replica", "cursors", "connection"):
        name = f"django_replica_router.connections.{module}.look_where_expected"
        monkeypatch.setattr(name, lambda connection: None)
    believe_every_connection(monkeypatch)
    with pytest.raises(AssertionError):
        test_what_cannot_ask_along_has_it_asked_before(usual, cluster, asked, way)


def test_a_transaction_asks_before_it_begins(
    usual: str, cluster: Cluster, asked: list[Any]
) -> None:
    """Inside it a replica's fault is the code's to see, as ever."""

    def read() -> str:
        with (
            transaction.atomic(using=router.db_for_read(Note)),
            connections[usual].cursor() as cursor,
        ):
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT title FROM notes_note")
            return str(cursor.fetchall()[0][0])

    with scope(user=1):
        assert read() == "first"
    assert len(asked) == 1
    connections[usual].close()
    with led_elsewhere(usual, cluster), scope(user=1):
        with pytest.raises(OperationalError, match="another server than was chosen"):
            read()
        assert title() == "new"


def test_an_error_of_the_first_statement_leaves_the_next_to_ask(usual: str, served: Served) -> None:
    """It is the site's own, and says nothing of the server."""
    with scope(user=1):
        for _ in range(2):
            with pytest.raises(DataError, match="division by zero"):
                list(Note.objects.raw("SELECT 1 / (id - id) AS id FROM notes_note"))
        assert title() == "first"
    assert served.aliases() == {usual}
    connections[usual].close()


def test_the_first_statement_waits_no_longer_for_a_lock(
    usual: str, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Nor do those after it."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "LOCK_WAIT": 0.05}
    question = "SELECT id, current_setting('lock_timeout') AS bound FROM notes_note"
    with scope(user=1):
        assert [Note.objects.raw(question)[0].bound for _ in range(2)] == ["50ms", "50ms"]
    close_replicas()
    pop_stats()
    with locked_on_replicas(cluster), scope(user=1):
        assert title() == "first"
    assert get_stats()["retried_replayed_lock"] == 1


def test_a_log_of_queries_shows_the_sites_own(usual: str, served: Served, asked: list[Any]) -> None:
    """Where Django keeps one, the connection asks when it is opened."""
    connections[usual].force_debug_cursor = True
    try:
        with scope(user=1):
            assert title() == "first"
    finally:
        connections[usual].force_debug_cursor = False
    assert len(asked) == 1
    assert not any(sql.startswith(ASKED_ALONG) for _, sql in served.statements)


def test_a_promoted_server_is_known_by_its_first_words(
    usual: str, note: Note, healed: Cluster, asked: list[Any]
) -> None:
    """libpq is told at the opening whether it is a standby: one that is none is not believed."""
    replica = next(replica for replica in healed.replicas if replica.name == usual)
    with unwatched():
        replica.promote()
        replica.execute("UPDATE notes_note SET title = 'of another history'", dbname="app")
        with scope(user=1):
            assert title() == "first"
    assert len(asked) >= 1


def test_what_the_monitor_knows_must_still_hold(usual: str, note: Note, cluster: Cluster) -> None:
    """A connection that has run nothing yet is opened anew where the server has changed meanwhile."""
    with scope(user=1):
        assert router.db_for_read(Note) == usual
    raw = connections[usual].connection
    sight = sights.last_sight(connections[usual])
    assert sight is not None
    assert sight.is_expected
    connections[usual].sight = replace(sight, life=("another",))  # type: ignore[attr-defined]
    wait_until_known(cluster)
    with scope(user=1):
        assert title() == "first"
    assert raw.closed
