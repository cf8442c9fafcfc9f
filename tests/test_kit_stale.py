"""A test fails where its code would break under lag, and passes where it would not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import connections, transaction
from django.db.models import F
from django.http import HttpRequest
from django.test import Client, override_settings

from django_replica_router import scope, use_primary
from django_replica_router.contrib.background import token_to_publish
from django_replica_router.errors import ConfigurationError, StaleSaveError
from django_replica_router.testing import lagging_replicas, stale_prone
from testproject.notes.models import Note, Tag
from tests.mirrored import addresses, in_scope, mirrored, told
from tests.site import sign_in, visit

__all__ = ["addresses", "mirrored"]

pytestmark = pytest.mark.usefixtures("mirrored", "test_site")

HERE = str(Path(__file__).relative_to(Path.cwd()))


def line_of(text: str) -> str:
    """Return the line of this file that ends with a text, as a report tells it."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(text)]
    return f"{HERE}:{number}"


@pytest.fixture
def note(ann: User) -> Note:
    """A note of Ann's."""
    return Note.objects.create(owner=ann, title="first")


def test_a_replica_named_by_hand_after_a_write(ann: User) -> None:
    """With the line that reads, and the one that has written; in another request, too."""
    browser = sign_in(ann)

    def code() -> None:
        visit(browser, lambda request: Tag.objects.create(name="a") and None, "post")  # writes
        visit(browser, lambda request: Tag.objects.using("replica1").count())  # reads

    assert told(stale_prone(), code) == (
        "This would break where replicas lag:\n\n"
        "1. read_after_write: notes_tag is read from 'replica1', which the code names, after it was "
        f"written in {line_of('# writes')}.\n"
        f"   {line_of('# reads')}\n"
        "   To mend: leave the alias out, and the router finds a server that has the write; or read in "
        "use_primary.\n\n"
        'Where one is meant to be so: stale_prone(ignore=["read_after_write"]).'
    )


@pytest.mark.parametrize(
    "read",
    [
        lambda: Tag.objects.using("replica1").filter(name="a").update(name="b"),
        lambda: list(Note.objects.using("replica1")),
        lambda: list(Tag.objects.all()),
        lambda: str(Tag.objects.using("replica1").query),
    ],
    ids=["a write", "another table", "the router", "no query"],
)
def test_what_is_no_read_after_write(read: Any) -> None:
    """Another table, and what the router decides."""
    with scope(), stale_prone():
        Tag.objects.create(name="a")
        read()


def test_a_cursor_and_raw_sql_are_told(ann: User) -> None:
    """Whoever runs the statement."""

    def read(request: HttpRequest) -> None:
        with connections["replica2"].cursor() as cursor:
            cursor.execute("SELECT name FROM notes_tag")

    def code() -> None:
        visit(Client(), lambda request: Tag.objects.create(name="a") and None, "post")
        visit(Client(), read)

    assert "notes_tag is read from 'replica2'" in told(stale_prone(), code)


def test_a_named_replica_is_told_where_the_router_has_read_there_before(cluster: Any) -> None:
    """What it decided then is not what the code asks for now."""
    with scope(), stale_prone() as watch:
        list(Note.objects.all())
        served = watch.queries[0].alias
        Tag.objects.create(name="a")
        Tag.objects.using(served).count()
        assert [finding.kind for finding in watch.findings] == ["read_after_write"]
        watch.findings.clear()


def test_what_the_test_itself_sets_up_was_there_before() -> None:
    """Only what is written in a request, a task or a scope binds its reader."""
    with stale_prone():
        Tag.objects.create(name="a")
        visit(Client(), lambda request: Tag.objects.using("replica1").count())


def test_a_save_of_what_a_replica_has_shown(note: Note) -> None:
    """Each time, in each test: no view is learned meanwhile, and none is afterwards."""

    def save(request: HttpRequest) -> None:
        found = Note.objects.get(pk=note.pk)
        found.version += 1
        found.save()  # saves

    for _ in range(2):
        text = told(stale_prone(), lambda: visit(Client(), save))
        assert "1. saved_from_replica: an object that was read from a replica" in text
        assert line_of("# saves") in text
        assert "2. " not in text


def test_sound_writes_are_not_told(note: Note) -> None:
    """An update by the database, and an object that was read on the primary."""

    def write(request: HttpRequest) -> None:
        Note.objects.filter(pk=note.pk).update(version=F("version") + 1)
        with transaction.atomic():
            found = Note.objects.select_for_update().get(pk=note.pk)
            found.title = "second"
            found.save()

    with stale_prone():
        visit(Client(), write)


@override_settings(REPLICA_ROUTER={"STALE_SAVES": "raise"})
def test_what_the_settings_make_an_error_stays_one(note: Note) -> None:
    """It has the finding as a note."""

    def save(request: HttpRequest) -> None:
        Note.objects.get(pk=note.pk).save()

    with pytest.raises(StaleSaveError) as caught, stale_prone():
        visit(Client(), save)
    assert "1. saved_from_replica: " in caught.value.__notes__[0]


def test_a_task_that_is_published_before_the_commit() -> None:
    """And not one that is published when the transaction is over."""

    @in_scope
    @transaction.atomic
    def publish() -> None:
        Tag.objects.create(name="a")
        token_to_publish("shop.tasks.mail")  # publishes

    text = told(stale_prone(), publish)
    assert "1. task_too_soon: shop.tasks.mail is published before the commit" in text
    assert line_of("# publishes") in text
    with scope(), stale_prone(), transaction.atomic():
        Tag.objects.create(name="b")
        transaction.on_commit(lambda: token_to_publish("shop.tasks.mail") and None)


def test_a_session_that_is_read_before_its_token(ann: User) -> None:
    """In a scope that does not know whose it is; not where it knows the user, nor on the primary."""
    browser = sign_in(ann)
    key = browser.cookies["sessionid"].value

    def find() -> Session:
        return Session.objects.get(pk=key)  # finds

    text = told(stale_prone(), in_scope(find))
    assert re.search(r"1\. session_too_soon: a session is read from 'replica\d'", text)
    assert line_of("# finds") in text
    with stale_prone():
        with scope(user=ann):
            find()
        with scope(), use_primary():
            find()
        find()
        browser.get("/")


@in_scope
def leave_block() -> None:
    """Make a queryset in use_primary, and evaluate it outside."""
    with use_primary():
        tags = Tag.objects.all()
    list(tags)


def test_a_queryset_that_leaves_use_primary() -> None:
    """Where it is evaluated outside; not where it is evaluated inside."""
    assert "1. queryset_left_block: " in told(stale_prone(), leave_block)
    with scope(), stale_prone(), use_primary():
        list(Tag.objects.all())


def test_each_kind_can_be_switched_off_by_its_name() -> None:
    """A name that is none is refused."""
    with stale_prone(ignore=["queryset_left_block"]):
        leave_block()
    for ignore in (["queryset_left"], "queryset_left_block"):
        with pytest.raises(ConfigurationError, match="expects a list of names out of read_after_"):
            stale_prone(ignore=ignore).__enter__()


def test_it_finds_under_lag_what_it_finds_without() -> None:
    """Also in a block that is inside of it."""

    @in_scope
    def code() -> None:
        Tag.objects.create(name="a")
        with lagging_replicas():
            Tag.objects.using("replica1").count()

    assert "1. read_after_write: " in told(stale_prone(), code)
