"""Replicas that lag, by a snapshot of one database: what they show, and what the rules make of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import Error, connection, connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope, use_replica
from django_replica_router.errors import ConfigurationError, TooStale
from django_replica_router.sql import wal
from django_replica_router.testing import assert_reads_from, lagging_replicas
from django_replica_router.testing.lagging import LaggingReplicas
from django_replica_router.testing.moments import Snapshot
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until
from tests.mirrored import addresses, mirrored
from tests.site import sign_in, visit

__all__ = ["addresses", "mirrored"]

pytestmark = pytest.mark.usefixtures("mirrored", "test_site")


def names(alias: str = "replica1") -> list[str]:
    """Return the names of the tags that an alias shows."""
    return [tag.name for tag in Tag.objects.using(alias)]


def in_thread(function: Callable[[], Any]) -> Any:
    """Return what a function returns in a thread of its own."""
    found: list[Any] = []

    def run() -> None:
        found.append(function())
        connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def create(name: str) -> None:
    """Write a tag, as somebody else does."""
    Tag.objects.create(name=name)


def test_a_replica_shows_what_was_before_until_it_catches_up() -> None:
    """In each thread the same: what was there, what has changed, and what is gone."""
    create("early")
    create("gone")
    with lagging_replicas() as replicas:
        create("late")
        Tag.objects.filter(name="early").update(name="changed")
        Tag.objects.filter(name="gone").delete()
        assert names("default") == ["changed", "late"]
        assert names("replica1") == in_thread(names) == ["early", "gone"]
        replicas.catch_up()
        create("latest")
        assert names("replica2") == in_thread(names) == ["changed", "late"]
    assert names() == ["changed", "late", "latest"]


def test_control_of_what_a_replica_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the snapshot a mirror shows what there is."""

    def run(self: Snapshot, connection: Any, execute: Any, *statement: Any) -> Any:
        return execute(*statement)

    monkeypatch.setattr(Snapshot, "run", run)
    with lagging_replicas():
        create("late")
        assert names() == ["late"]


def test_who_has_written_reads_from_the_primary(ann: User) -> None:
    """And others from a replica, until that has it."""
    browser, other = sign_in(ann), Client()
    Note.objects.create(owner=ann, title="first")

    def titles(request: HttpRequest) -> list[str]:
        return list(Note.objects.values_list("title", flat=True))

    with lagging_replicas() as replicas:
        with assert_reads_from("replica", of=Note, reason="CAUGHT_UP"):
            assert visit(browser, titles) == ["first"]
        visit(browser, lambda request: Note.objects.update(title="second") and None, "post")
        with assert_reads_from("primary", of=Note, reason="LAGGING"):
            assert visit(browser, titles) == ["second"]
        with assert_reads_from("replica", of=Note):
            assert visit(other, titles) == ["first"]
        replicas.catch_up()
        with assert_reads_from("replica", of=Note, reason="CAUGHT_UP"):
            assert visit(browser, titles) == ["second"]


def test_control_of_who_has_written(ann: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the replicas taken for better than they are, the writer would be shown what was."""
    browser = sign_in(ann)
    Note.objects.create(owner=ann, title="first")
    with lagging_replicas() as replicas:
        monkeypatch.setattr(replicas, "watermark", lambda primary: (1 << 64) - 1)
        visit(browser, lambda request: Note.objects.update(title="second") and None, "post")
        assert visit(browser, lambda request: Note.objects.get().title) == "first"


def test_a_commit_is_shown_if_and_only_if_its_token_is_covered() -> None:
    """Of 40 commits, each with a token of its own, and moments in between."""
    raw = connection.connection
    wrong = []
    for number in range(40):
        create(f"before {number}")
        before = wal.read_token(raw)
        moment = Snapshot("default")
        create(f"after {number}")
        after = wal.read_token(raw)
        moment.end()
        if not before <= moment.position < after:
            wrong.append((before, moment.position, after))
    assert not wrong


def test_control_of_tokens_and_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a record in between, nothing tells a moment from a commit whose token is asked for later."""
    monkeypatch.setattr(wal, "_MARK_SQL", "SELECT 1")
    create("one")
    moment = Snapshot("default")
    after = wal.read_token(connection.connection)
    moment.end()
    assert moment.position == after  # the token of a commit that the snapshot may lack


def test_the_lag_is_what_the_test_says() -> None:
    """Who allows less, and everybody beyond MAX_LAG, is sent to the primary."""
    with lagging_replicas(lag=2.0) as replicas:
        with scope():
            with assert_reads_from("replica"):
                list(Tag.objects.all())
            with (
                pytest.raises(TooStale),
                use_replica(max_lag=1.0, on_stale="raise"),
            ):
                list(Tag.objects.all())
        replicas.lag = 60.0
        with scope(), assert_reads_from("primary", reason="LAGGING"):
            list(Tag.objects.all())


def test_nothing_can_be_written_on_a_replica() -> None:
    """As on a real one; the connection goes on working."""
    with lagging_replicas():
        with pytest.raises(Error, match="read-only transaction"):
            Tag.objects.using("replica1").create(name="there")
        with pytest.raises(Error, match="does not exist"):
            Tag.objects.using("replica1").raw("SELECT * FROM nowhere")[0]
        assert names() == []


def test_a_block_on_a_replica_sees_the_moment_that_it_began_at() -> None:
    """Also where its first statement is a savepoint; and it ends as ever."""
    create("early")
    with lagging_replicas() as replicas:
        create("late")
        with transaction.atomic(using="replica1"):
            with transaction.atomic(using="replica1"):
                assert names() == ["early"]
            replicas.catch_up()
            assert names() == ["early"]
        assert names() == ["early", "late"]


def test_rows_that_are_fetched_one_by_one_are_of_the_moment() -> None:
    """By a server-side cursor."""
    for number in range(5):
        create(f"{number}")
    with lagging_replicas():
        create("late")
        rows = Tag.objects.using("replica1").iterator(chunk_size=2)
        assert [tag.name for tag in rows] == list("01234")


def test_tables_may_be_emptied_meanwhile() -> None:
    """No lock is kept on what was read: else a test case could not be flushed in the block."""
    create("early")
    with lagging_replicas():
        assert in_thread(names) == names() == ["early"]
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '5s'")
            cursor.execute("TRUNCATE notes_tag CASCADE")
            cursor.execute("RESET lock_timeout")


def test_nothing_remains_of_it() -> None:
    """No transaction of the block is open afterwards, whatever has ended it."""

    def fail(replicas: LaggingReplicas) -> None:
        replicas.catch_up()
        names()
        raise KeyError

    with pytest.raises(KeyError), lagging_replicas() as replicas:
        fail(replicas)
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND state LIKE 'idle in transaction%%'"
    )

    def is_none_open() -> bool:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone() == (0,)

    wait_until(is_none_open, "the server to end the session that has held the snapshot")


def test_one_block_is_enough() -> None:
    """A second one is refused with what to do."""
    with (
        lagging_replicas(),
        pytest.raises(ConfigurationError, match=r"use its catch_up\(\) for another moment"),
        lagging_replicas(),
    ):
        pass
