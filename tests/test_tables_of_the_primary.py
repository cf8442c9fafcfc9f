"""Tables that are read on the primary, by whatever names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import django
import pytest
from django.contrib.auth.models import User
from django.db import connections, models
from django.db.models.signals import post_save
from django.http import HttpRequest
from django.test import Client
from django.test.utils import isolate_apps
from psycopg import sql

from django_replica_router import ignore_writes
from django_replica_router.conf import Config
from django_replica_router.connections import on_replica
from django_replica_router.receivers import _is_ignored
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.values import statements
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import DJANGO
from tests.conftest import PATIENT, wait_until, wait_until_reachable
from tests.controls import fail_without
from tests.ignoring import Patch, _router, backend, browser, is_bound, where  # noqa: F401 - fixtures
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# Tables of the primary ---------------------------------------------------------------------------------


class Word(Tag):
    """The same table as that of tags, under another name."""

    class Meta:
        proxy = True
        app_label = "elsewhere"


@pytest.fixture
def tags_of_primary(browser: Client, settings: Any) -> Client:
    """Ann's browser, on a site that reads tags on the primary only."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_ONLY": ["notes.Tag"]}
    visit(browser, where)
    return browser


def by_its_model() -> list[str]:
    return [tag.name for tag in Tag.objects.all()]


def by_a_join() -> list[str]:
    return list(Note.objects.order_by("tags__name").values_list("tags__name", flat=True))


def by_a_subquery() -> list[str]:
    tags = Tag.objects.filter(name="blue").values("name")
    return list(Note.objects.annotate(found=models.Subquery(tags)).values_list("found", flat=True))


def by_a_proxy() -> list[str]:
    return [word.name for word in Word.objects.all()]


def by_raw_models() -> list[str]:
    query = "SELECT id, (SELECT max(name) FROM NOTES_TAG) AS found FROM notes_note"
    return [note.found for note in Note.objects.raw(query)]


def by_a_cursor() -> list[str]:
    from django.db import router

    with connections[router.db_for_read(Note)].cursor() as cursor:
        cursor.execute("SELECT name FROM notes_tag")
        return [name for (name,) in cursor.fetchall()]


def by_iterating() -> list[str]:
    return [
        str(name)
        for name in Note.objects.order_by("tags__name")
        .values_list("tags__name", flat=True)
        .iterator(1)
    ]


READS = [
    by_its_model,
    by_a_join,
    by_a_subquery,
    by_a_proxy,
    by_raw_models,
    by_a_cursor,
    by_iterating,
]
EVERY_READ = pytest.mark.parametrize("look", READS, ids=lambda look: look.__name__)


@EVERY_READ
def test_a_table_of_the_primary_is_read_there_by_whatever_names_it(
    tags_of_primary: Client, look: Callable[[], list[str]]
) -> None:
    """In a join, too: no token tells of what was written to it."""

    def write(request: HttpRequest) -> str:
        with ignore_writes():  # the row between
            Note.objects.get().tags.set(Tag.objects.all())
        Tag.objects.update(name="blue")
        return where(request)

    assert visit(tags_of_primary, write) != "default"

    def read(request: HttpRequest) -> list[Any]:
        return [where(request), look()]

    first, found = visit(tags_of_primary, read)
    assert first != "default"
    assert found == ["blue"]


@EVERY_READ
def test_a_replica_would_show_what_was_before(
    request: pytest.FixtureRequest, look: Callable[[], list[str]]
) -> None:
    """Control: with tables not looked for, the test above fails."""

    def take_out(patch: Patch) -> None:
        describe = on_replica.describe
        for name in ("describe", "describe_text"):
            patch.setattr(on_replica, name, lambda sql, tables: describe(sql, frozenset()))
        original = Config.is_primary_only
        patch.setattr(
            Config,
            "is_primary_only",
            lambda self, model: model not in {Tag, Word} and original(self, model),
        )

    test: Any = test_a_table_of_the_primary_is_read_there_by_whatever_names_it
    fail_without(take_out, test, {"look": look}, request)


@pytest.mark.parametrize("backend", [DJANGO], indirect=True)
def test_with_the_primary_down_such_a_table_is_read_on_a_replica(
    tags_of_primary: Client, cluster: Cluster, settings: Any
) -> None:
    """Where the site has chosen to be read then."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_DOWN": "replicas"}
    tags_of_primary.raise_request_exception = False

    def look(request: HttpRequest) -> list[Any]:
        return [Note.objects.filter(tags__name="none").count(), Tag.objects.count()]

    cluster.primary.stop()
    try:
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
        assert visit(tags_of_primary, look) == [0, 1]
    finally:
        cluster.primary.start()
        wait_until_reachable("default")
    wait_until(lambda: not monitor.known.primary_is_down, "the primary to be back")
    connections["default"].close_if_unusable_or_obsolete()


def test_a_write_by_a_proxy_of_such_a_table_is_ignored(tags_of_primary: Client) -> None:
    """It is the table that counts."""

    def write(request: HttpRequest) -> str:
        Word.objects.create(name="blue")
        return where(request)

    assert visit(tags_of_primary, write) != "default"
    assert not is_bound(tags_of_primary)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('SELECT 1 FROM "notes_tag"', True),
        ("select 1 from NOTES_TAG", True),
        ('SELECT 1 FROM "s"."notes_tag" T', True),
        ('SELECT "notes_tags"."id", notes_tag_id FROM "my_notes_tag"', False),
        ('SELECT 1 FROM "notes_note" ORDER BY "notes_note"."id"', False),
        ('SELECT 1 FROM "order"', True),
        ("SELECT 1 FROM things", True),
        (b"SELECT 1 FROM notes_tag", True),
        (sql.SQL("TABLE {}").format(sql.Identifier("notes_tag")), True),
    ],
    ids=repr,
)
def test_names_of_tables_are_found(text: Any, expected: bool) -> None:
    """Quoted or not, in any case, and no part of a longer name. A table may be called "order"."""
    tables = frozenset(["notes_tag", "order", 'my"."things'])
    assert statements.names_table(text, tables) is expected
    assert not statements.names_table(text, frozenset())


def test_models_of_the_setting_are_known_by_their_tables() -> None:
    """And sessions that a cache keeps, for which there is no need of one."""
    config = Config(PRIMARY_ONLY=["notes.tag"])
    assert config.primary_tables == {"notes_tag"}
    assert config.is_primary_only(Word)
    assert config.ignores_writes(Tag)
    assert config.ignores_writes(Word)
    assert not config.ignores_writes(Note)
    assert not config.ignores_writes(None)
    assert not config.ignores_writes(Note.tags.through)
    assert Config(PRIMARY_ONLY=["notes"]).ignores_writes(Note.tags.through)
    assert not Config(PRIMARY_ONLY=["contenttypes"]).ignores_writes(User)


def test_nothing_is_ignored_before_the_models_are_there(monkeypatch: Patch) -> None:
    """What a module reads while it is imported must not end in an error."""
    from django.apps import apps

    monkeypatch.setattr(apps, "models_ready", False)
    config = Config(PRIMARY_ONLY=["notes.Tag"])
    assert config.is_primary_only(Tag)
    assert not config.ignores_writes(Tag)


@isolate_apps("testproject.notes")
def test_rows_in_two_tables_count_where_one_does() -> None:
    """A signal names the model of both."""

    class Link(Tag):
        class Meta:
            app_label = "notes"

    config = Config(IGNORED_WRITES=["notes.link", "notes.tag"])
    assert config.ignores_writes(Link)
    assert not _is_ignored(Link, config)
    assert _is_ignored(Tag, config)
    assert not _is_ignored(None, config)


@pytest.mark.skipif(django.VERSION < (6, 1), reason="DB_CASCADE is of Django 6.1")
@isolate_apps("testproject.notes")
def test_what_the_database_deletes_along_counts() -> None:
    """An ordinary table loses rows by a DELETE that does not name it."""

    class Owner(models.Model):  # noqa: DJ008
        class Meta:
            app_label = "notes"

    config = Config(IGNORED_WRITES=["notes.owner"])
    assert config.ignores_writes(Owner)

    class Thing(models.Model):  # noqa: DJ008
        owner = models.ForeignKey(Owner, models.DB_CASCADE, related_name="+")  # type: ignore[attr-defined]

        class Meta:
            app_label = "notes"

    assert not Config(IGNORED_WRITES=["notes.owner"]).ignores_writes(Owner)


def test_a_signal_that_is_sent_by_hand_counts_by_its_model(browser: Client) -> None:
    """As of a backend that runs statements past Django."""

    def send(request: HttpRequest, model: Any) -> str:
        first = where(request)
        assert first != "default"
        post_save.send(model, instance=None, created=True, using="default")
        return where(request)

    assert visit(browser, lambda request: send(request, Tag)) != "default"
    assert visit(browser, lambda request: send(request, Note)) == "default"
