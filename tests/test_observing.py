"""Observing a block tells which server has answered each statement, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import callers, scope, use_primary
from django_replica_router.conf import parsed
from django_replica_router.connections.observed import Observed
from django_replica_router.observations import Query, observers
from django_replica_router.observing import observe
from django_replica_router.routers import ReplicaRouter
from django_replica_router.values.lsn import parse_lsn
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import stand_still, wait_until_known
from tests.faulty import find_serving
from tests.reading import browser, note
from tests.shortcuts import refuse, route, route_by_shortcut
from tests.site import visit

__all__ = ["browser", "note"]

pytestmark = pytest.mark.usefixtures("test_site")


def only(queries: list[Query], table: str) -> Query:
    """Return the one statement that names a table."""
    found = [query for query in queries if table in query.sql]
    assert len(found) == 1, found
    return found[0]


def test_a_read_tells_its_server_and_reason(cluster: Cluster) -> None:
    """Of a replica, and of the primary after a write; each with the line of the code."""
    wait_until_known(cluster)
    with scope(), observe() as seen:
        (alias,) = {Tag.objects.all().db}
        for _ in range(2):
            list(Tag.objects.using(alias))
        Tag.objects.create(name="mine")
        list(Tag.objects.all())
    before, again, write, after = seen.queries
    assert before.alias.startswith("replica")
    assert (before.reason, before.writes) == ("CAUGHT_UP", False)
    assert (write.alias, write.reason, write.writes) == ("default", "WRITE", True)
    assert (after.alias, after.reason) == ("default", "WROTE")
    assert all(query.line.startswith(f"{__file__}:") for query in seen.queries)
    assert all(query.seconds > 0 and not query.failed for query in seen.queries)
    assert before.deciding > again.deciding == 0


def test_what_was_decided_before_is_told_with_its_reason(
    browser: Client, note: Note, ann: User, cluster: Cluster
) -> None:
    """Also where a shortcut had been made: there is none while somebody observes, and one afterwards."""

    queries: list[Query] = []

    def read(request: HttpRequest) -> None:
        route_by_shortcut()
        with observe() as seen:
            for _ in range(2):
                list(Note.objects.all())
        queries.extend(seen.queries)
        route_by_shortcut()

    visit(browser, read)
    first, second = queries
    assert (first.reason, second.reason) == ("CAUGHT_UP", "CAUGHT_UP")
    assert first.alias == second.alias != "default"
    assert parse_lsn(first.floor) > 0


def test_a_transaction_and_a_named_server_are_told(cluster: Cluster) -> None:
    """What begins or ends a transaction is of the session; what the code has named asked no router."""
    wait_until_known(cluster)
    with scope(), observe() as seen:
        with transaction.atomic():
            list(Tag.objects.all())
        with connections["replica1"].cursor() as cursor:
            cursor.execute("SELECT 1")
    reasons = [(query.alias, query.reason) for query in seen.queries]
    assert ("default", "IN_ATOMIC") in reasons
    assert ("replica1", "NAMED") in reasons
    assert {reason for _, reason in reasons} <= {"IN_ATOMIC", "NAMED", "SESSION"}


def test_outside_of_a_scope_the_reason_is_that(cluster: Cluster) -> None:
    """A command reads from the primary, or by use_primary."""
    with observe() as seen:
        list(Tag.objects.all())
        with use_primary():
            list(Tag.objects.all())
    assert [query.reason for query in seen.queries] == ["NO_SCOPE", "FORCED"]


def test_what_was_run_again_is_told_as_one_statement(note: Note, cluster: Cluster) -> None:
    """It was meant for the replica, the primary has answered, and the event says why."""
    with scope(), observe() as seen:
        list(Note.objects.raw("SELECT notes_note.*, notes_touch(id) FROM notes_note"))
    query = only(seen.queries, "notes_touch")
    assert query.asked.startswith("replica")
    assert query.alias == "default"
    assert "retried_refused_write" in query.events
    assert not query.failed


def test_a_connection_that_is_gone_is_told_by_its_reason(note: Note, cluster: Cluster) -> None:
    """The statement is one of the primary's, since the replica has failed."""
    with scope():
        alias, _ = find_serving(cluster)
        connections[alias].connection.close()
        with observe() as seen:
            list(Note.objects.all())
    query = only(seen.queries, "notes_note")
    assert (query.alias, query.reason) == ("default", "REPLICA_FAILED")
    assert "retried_replica_fault" in [event.name for event in seen.events]


def test_an_error_is_told(cluster: Cluster) -> None:
    """A statement that fails is one of those that were run."""
    with observe() as seen, pytest.raises(Exception, match="nothing_there"):
        Tag.objects.raw("SELECT * FROM nothing_there")[0]
    assert only(seen.queries, "nothing_there").failed


def test_blocks_may_be_nested(cluster: Cluster) -> None:
    """The outer block sees what the inner one does, and not the other way round."""
    with observe() as outer:
        list(Tag.objects.all())
        with observe() as inner:
            list(Note.objects.all())
        assert observers.present
    assert [len(seen.queries) for seen in (outer, inner)] == [2, 1]
    assert not observers.present


def test_others_are_not_observed(cluster: Cluster) -> None:
    """A block sees what its own context does, in whatever thread, and nothing of other contexts."""

    async def observed() -> int:
        with observe() as seen:
            await asyncio.gather(
                sync_to_async(lambda: list(Tag.objects.all()))(),
                Tag.objects.acount(),
            )
        return len(seen.queries)

    async def beside() -> int:
        with observe() as seen:
            await Tag.objects.acount()
        return len(seen.queries)

    async def both() -> list[int]:
        found = await asyncio.gather(observed(), beside())
        await sync_to_async(connections.close_all)()  # those of this thread
        return found

    assert asyncio.run(both()) == [2, 1]


def test_a_block_that_ends_in_another_context_ends() -> None:
    """A stream that is read in several contexts, or given up, leaves nobody who observes."""

    def stream() -> Iterator[int]:
        with observe():
            yield 1

    begun = stream()
    copy_context().run(next, begun)
    assert observers.present
    assert list(begun) == []
    assert not observers.present

    async def astream() -> AsyncIterator[int]:
        with observe():
            yield 1
            yield 2

    async def give_up() -> None:
        async for _ in astream():
            break

    asyncio.run(give_up())
    assert not observers.present


def test_what_outlives_a_block_is_not_observed(cluster: Cluster) -> None:
    """A task that the block has begun, and whatever a block is given up in; it is observed by the next one alone."""

    async def outlive() -> list[int]:
        may_read = asyncio.Event()

        async def read_later() -> None:
            await may_read.wait()
            await Tag.objects.acount()
            with observe() as inner:
                await Tag.objects.acount()
            counted.append(len(inner.queries))

        counted: list[int] = []
        with observe() as seen:
            task = asyncio.create_task(read_later())
            await asyncio.sleep(0)
            await Tag.objects.acount()
        with observe():
            may_read.set()
            await task
        await sync_to_async(connections.close_all)()  # those of this thread
        return [len(seen.queries), *counted]

    assert asyncio.run(outlive()) == [1, 1]


def test_nothing_is_done_while_nobody_observes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections run statements as ever, and shortcuts are followed, before a block and after it."""
    wait_until_known(cluster)
    for _ in range(2):
        with scope():
            # Twice: a monitor's thread that reads the settings at the same time has the first look again.
            for _ in range(2):
                list(Tag.objects.all())
            around = [one.around for one in connections.all(initialized_only=True)]
            present = [one for one in around if one.edition is parsed.edition]
            assert present
            assert not any(isinstance(one, Observed) for one in present)
            route()
            with monkeypatch.context() as patch:
                patch.setattr(ReplicaRouter, "_route", refuse)
                route()
        with observe():
            list(Tag.objects.all())


def test_a_queryset_that_leaves_its_block_is_told_of(cluster: Cluster) -> None:
    """Where it is run outside of use_primary; not where it was made there, or run inside."""
    with scope(), observe() as seen:
        with use_primary():
            left, ran = Tag.objects.filter(name="a"), list(Tag.objects.all())
        assert not seen.events
        list(left.order_by("name"))
        assert not ran
    assert not seen.events  # order_by() has made another one, outside
    with scope(), observe() as seen:
        with use_primary():
            left = Tag.objects.filter(name="a")
        list(left)
    (event,) = seen.events
    assert (event.name, event.detail) == ("queryset_left_block", "notes.Tag")
    assert event.line.startswith(__file__)


def test_a_save_of_what_a_replica_has_shown_is_told_of(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """With the line that saves it; and an update that computes in the database is not."""
    with scope(), observe() as seen:
        found = Note.objects.get(pk=note.pk)
        Note.objects.filter(pk=note.pk).update(title="by the database")
        assert [event.name for event in seen.events] == []
        found.title = "by hand"
        found.save()
    (event,) = (one for one in seen.events if one.name == "saved_from_replica")
    assert event.line.startswith(__file__)


def test_a_replica_that_lags_is_told_by_its_reason(
    browser: Client, note: Note, ann: User, cluster: Cluster
) -> None:
    """And the LSN that the reader had to see."""
    stand_still(cluster)
    Note.objects.filter(pk=note.pk).update(title="later")
    visit(browser, lambda request: Note.objects.filter(pk=note.pk).update(title="mine"), "post")

    queries: list[Query] = []

    def read(request: HttpRequest) -> None:
        with observe() as seen:
            list(Note.objects.all())
        queries.extend(seen.queries)

    visit(browser, read)
    query = only(queries, "notes_note")
    assert (query.alias, query.reason) == ("default", "LAGGING")
    assert query.floor


def test_a_folder_of_the_name_of_a_package_hides_no_line_of_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes any folder on its path for a package of that name, which then lies nowhere."""
    (tmp_path / "django_dramatiq").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    callers._passed_by.cache_clear()
    try:
        assert callers.find_caller().startswith(f"{__file__}:")
    finally:
        callers._passed_by.cache_clear()
