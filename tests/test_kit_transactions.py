"""The kit in the one transaction of a ``TestCase``: what is shared there, and what is put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import Error, connection, connections, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope
from django_replica_router.contrib.background import token_to_publish
from django_replica_router.errors import ConfigurationError
from django_replica_router.testing import (
    assert_reads_from,
    lagging_replicas,
    mirrors_are_replicas,
    stale_prone,
)
from django_replica_router.transactions import atomic_requests as atomic_requests_of_views
from django_replica_router.transactions.blocks import keeps_reads, replicas_in_transaction
from testproject.notes.models import Tag
from tests.mirrored import addresses, in_scope, mirrored, told
from tests.site import sign_in, visit

__all__ = ["addresses", "mirrored"]


@pytest.fixture(autouse=True)
def _test_case(mirrored: None, test_site: None) -> Iterator[None]:
    """Do what a TestCase does: a block on each alias, for the class and for the test, that is rolled back."""
    blocks = []
    for _ in range(2):
        for alias in ("default", "replica1", "replica2"):
            block = transaction.atomic(using=alias)
            block._from_testcase = True
            block.__enter__()
            blocks.append((alias, block))
    yield
    for alias, block in reversed(blocks):
        transaction.set_rollback(True, using=alias)
        block.__exit__(None, None, None)


def names(alias: str = "replica1") -> list[str]:
    """Return the names of the tags that an alias shows."""
    return [tag.name for tag in Tag.objects.using(alias)]


def test_without_a_block_all_is_read_on_the_primary() -> None:
    """Nobody else sees what the test has written; and so it is again after a block."""
    Tag.objects.create(name="a")
    own = connections["replica1"]
    for _ in range(2):
        assert own is connections["replica1"]
        assert own in replicas_in_transaction
        assert keeps_reads(connection)
        assert names() == []
        with scope():
            assert Tag.objects.all().db == "default"
        with mirrors_are_replicas(), scope():
            assert Tag.objects.all().db in ("replica1", "replica2")
            assert names() == ["a"]


def test_a_block_of_the_code_keeps_its_reads() -> None:
    """And only as long as it is open, also where it has written."""
    with mirrors_are_replicas():
        for _ in range(2):
            with scope(), transaction.atomic(), assert_reads_from("primary", reason="IN_ATOMIC"):
                Tag.objects.first()
            with scope():
                with transaction.atomic():
                    Tag.objects.create(name=f"{Tag.objects.count()}")
                with assert_reads_from("primary", reason="WROTE"):
                    Tag.objects.first()
            with scope(), assert_reads_from("replica"):
                Tag.objects.first()


def test_a_task_before_the_commit_is_told_in_a_block_of_the_code_only() -> None:
    """The test case's own never ends in a commit."""

    @in_scope
    def publish() -> None:
        token_to_publish("shop.tasks.mail")

    assert "1. task_too_soon: " in told(stale_prone(), transaction.atomic(publish))
    with stale_prone():
        publish()


def test_a_replica_that_lags_shows_copies() -> None:
    """In a block of the code as well; nothing can be written there, and what fails there can be rolled back."""
    Tag.objects.create(name="early")
    with lagging_replicas() as replicas:
        Tag.objects.create(name="late")
        assert names() == names("replica2") == ["early"]
        for message, code in (
            ("in a read-only transaction", lambda: Tag.objects.using("replica1").create(name="b")),
            ("nowhere", lambda: Tag.objects.using("replica1").raw("SELECT * FROM nowhere")[0]),
        ):
            with pytest.raises(Error, match=message), transaction.atomic(using="replica1"):
                code()
        with transaction.atomic(using="replica1"):
            assert names() == ["early"]
        assert names("default") == ["early", "late"]
        replicas.catch_up()
        assert names() == ["early", "late"]
    assert names("default") == ["early", "late"]


def test_control_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the copies not looked for first, a replica would show what there is."""
    monkeypatch.setattr("django_replica_router.testing.moments._SCHEMA", "of_no_copies")
    with lagging_replicas():
        Tag.objects.create(name="late")
        with connection.cursor() as cursor:
            cursor.execute('DROP SCHEMA "of_no_copies" CASCADE')
        assert names() == ["late"]


def test_nothing_remains_of_copies() -> None:
    """Not in the test either, whose later statements find the tables as ever."""
    with lagging_replicas():
        names()
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regnamespace('replica_router_lagging'), current_schemas(false)")
        assert cursor.fetchone() == (None, ["public"])


def test_what_copies_cannot_do() -> None:
    """A table with its schema in front is read as it is."""
    with lagging_replicas():
        Tag.objects.create(name="late")
        found = Tag.objects.using("replica1").raw("SELECT * FROM public.notes_tag")
        assert [tag.name for tag in found] == ["late"]


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each view in a block, on a server that has not yet been asked for its isolation level."""
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(atomic_requests_of_views, "_default_levels", {})


@pytest.mark.usefixtures("atomic_requests")
def test_under_atomic_requests_a_view_reads_where_it_would_without(ann: User) -> None:
    """Until it writes; and so does the next one."""
    seen = []

    def write(request: HttpRequest) -> None:
        seen.append(Tag.objects.all().db)
        Tag.objects.create(name=f"{Tag.objects.count()}")
        with assert_reads_from("primary", reason="IN_ATOMIC"):
            Tag.objects.count()

    with mirrors_are_replicas():
        browser = sign_in(ann)
        for _ in range(2):
            visit(browser, write)
            with assert_reads_from("replica", of=Tag):
                visit(browser, lambda request: Tag.objects.count())
    assert all(alias.startswith("replica") for alias in seen)


@pytest.mark.usefixtures("atomic_requests")
def test_under_atomic_requests_who_writes_waits_for_replicas(ann: User) -> None:
    """As without the setting, though nothing is committed; and a block of the view's own keeps its reads."""

    def write(request: HttpRequest) -> None:
        Tag.objects.create(name="late")

    def read(request: HttpRequest) -> Any:
        return Tag.objects.count()

    with lagging_replicas() as replicas:
        browser = sign_in(ann)
        visit(browser, write, "post")
        with assert_reads_from("primary", reason="LAGGING", of=Tag):
            visit(browser, read)
        replicas.catch_up()
        with assert_reads_from("replica", of=Tag):
            visit(browser, read)
        with assert_reads_from("primary", reason="IN_ATOMIC", of=Tag):
            visit(browser, transaction.atomic(read))


@pytest.mark.usefixtures("atomic_requests")
def test_under_atomic_requests_what_would_break_is_found() -> None:
    """A view that saves what it reads, and a task that is published by a view."""
    Tag.objects.create(name="a")

    def count(request: HttpRequest) -> None:
        Tag.objects.get().save()

    def publish(request: HttpRequest) -> None:
        Tag.objects.create(name="b")
        token_to_publish("shop.tasks.mail")

    assert "1. saved_from_replica: " in told(stale_prone(), lambda: visit(Client(), count))
    assert "1. task_too_soon: " in told(stale_prone(), lambda: visit(Client(), publish))


@pytest.mark.usefixtures("atomic_requests")
def test_under_atomic_requests_nothing_is_asked_without_the_kit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The test case's block keeps the reads of the view's, whatever the level is."""
    visit(Client(), lambda request: Tag.objects.count())
    assert caplog.text == ""
    assert atomic_requests_of_views._default_levels == {}


@pytest.mark.parametrize("block", [stale_prone(), assert_reads_from("replica")])
def test_a_real_standby_in_a_test_case_is_refused(
    block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no row of the test, so that everything would be read on the primary, and nothing be found."""
    with monkeypatch.context() as patch:  # undone before the addresses are put back
        patch.setitem(connections["replica1"].settings_dict, "PORT", "1")
        with pytest.raises(
            ConfigurationError, match=r"another PORT. .* point_mirrors_to_primaries"
        ):
            block.__enter__()


def test_what_is_written_outside_of_the_block_binds_its_user(ann: User) -> None:
    """It lies in a transaction without an end: the page about testing says so."""

    def write(request: HttpRequest) -> None:
        Tag.objects.create(name=f"{Tag.objects.count()}")

    def read(request: HttpRequest) -> Any:
        return Tag.objects.count()

    with mirrors_are_replicas():
        browser = sign_in(ann)
        visit(browser, write, "post")
        with assert_reads_from("replica", of=Tag):
            visit(browser, read)
    visit(browser, write, "post")
    with assert_reads_from("primary", reason="UNRECORDED_WRITE", of=Tag):
        visit(browser, read)
