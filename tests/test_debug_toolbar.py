"""The panel of django-debug-toolbar: which server has answered each query of a page, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, override_settings
from django.utils.module_loading import import_string

from django_replica_router import ignore_writes, use_primary
from django_replica_router.checks import check_settings
from django_replica_router.conf import parsed
from django_replica_router.connections.observed import Observed
from django_replica_router.observations import observers
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import stand_still, wait_until_known
from tests.reading import browser, note
from tests.site import avisit, visit

__all__ = ["browser", "note"]

PANEL = "django_replica_router.contrib.debug_toolbar.ReplicaPanel"
TOOLBAR = "debug_toolbar.middleware.DebugToolbarMiddleware"


@pytest.fixture(autouse=True)
def _toolbar(test_site: None, browser: Client, settings: Any) -> Iterator[None]:
    """A site that shows the toolbar to everybody; the browser has signed in before."""
    settings.DEBUG, settings.INTERNAL_IPS = True, ["127.0.0.1"]
    settings.MIDDLEWARE = [TOOLBAR, *settings.MIDDLEWARE]
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "debug_toolbar"]):
        # Only now: where another test has imported the toolbar's settings, that loads its models.
        settings.DEBUG_TOOLBAR_PANELS = [
            "debug_toolbar.panels.timer.TimerPanel",
            PANEL,
            "debug_toolbar.panels.sql.SQLPanel",
        ]
        settings.ROOT_URLCONF = "tests.toolbar_site"
        store().clear()
        browser.handler.load_middleware()  # of these settings
        yield


def store() -> Any:
    """Return where the toolbar keeps what its panels have recorded."""
    return import_string("debug_toolbar.store.MemoryStore")


def page(action: Any) -> Any:
    """Return an action that does the same and answers with a page."""

    def run(request: HttpRequest) -> HttpResponse:
        action(request)
        return HttpResponse("<html><body>a page</body></html>")

    return run


def recorded() -> Any:
    """Return what the panel has recorded of the last request."""
    return store().panel(list(store().request_ids())[-1], "ReplicaPanel")


def findings(client: Client, action: Any, method: str = "get") -> list[str]:
    """Return what the panel finds in a page."""
    visit(client, page(action), method)
    return [finding["name"] for finding in recorded()["findings"]]


def read(request: HttpRequest) -> None:
    """Read two tables."""
    list(Note.objects.all())
    list(Tag.objects.all())


def test_a_page_tells_its_servers(browser: Client) -> None:
    """At a glance, each query with its reason and line; also when the panel is asked for afterwards."""
    response = visit(browser, page(read))
    assert b"on replicas" in response.content
    stats = recorded()
    notes, tags = stats["queries"][-2:]
    assert notes["alias"] == tags["alias"] != "default"
    assert notes["reason"] == "CAUGHT_UP"
    assert "replayed the token" in notes["sentence"]
    assert notes["place"].startswith("tests/test_debug_toolbar.py:")
    answered = len([query for query in stats["queries"] if query["alias"] != "default"])
    assert stats["summary"].startswith(f"{answered} on replicas, ")
    assert not stats["findings"]
    [request_id] = store().request_ids()
    shown = browser.get(
        "/__debug__/render_panel/", {"request_id": request_id, "panel_id": "ReplicaPanel"}
    ).json()["content"]
    assert all(text in shown for text in (notes["alias"], "CAUGHT_UP", notes["place"]))
    assert "To look at" not in shown
    assert "desc=" in response.headers["Server-Timing"]


@pytest.mark.parametrize("is_outside", [True, False], ids=["in front", "behind"])
def test_the_toolbar_may_stand_on_either_side(
    browser: Client, settings: Any, *, is_outside: bool
) -> None:
    """In front of the package's middleware, or behind it."""
    router, *rest = [name for name in settings.MIDDLEWARE if name != TOOLBAR]
    first = [TOOLBAR, router] if is_outside else [router, TOOLBAR]
    settings.MIDDLEWARE = [*first, *rest]
    browser.handler.load_middleware()
    assert not [m for m in check_settings() if str(m.id).endswith("W007")]
    visit(browser, page(read))
    assert [query["reason"] for query in recorded()["queries"][-2:]] == ["CAUGHT_UP"] * 2


def test_an_asynchronous_page_is_told(ann: User, cluster: Cluster) -> None:
    """Under ASGI, what runs in threads included."""

    async def run(request: HttpRequest) -> HttpResponse:
        await sync_to_async(read)(request)
        await Tag.objects.acount()
        await sync_to_async(connections.close_all)()  # those of this thread
        return HttpResponse("<html><body>a page</body></html>")

    asyncio.run(avisit(AsyncClient(), run))
    assert len(recorded()["queries"]) == 3
    assert not observers.present


def test_a_page_that_writes_is_told_of(browser: Client) -> None:
    """Where it should only read, and somebody has to see it: not in a POST, nor in ignore_writes."""

    def write(request: HttpRequest) -> None:
        Tag.objects.create(name=request.method)

    def write_freely(request: HttpRequest) -> None:
        with ignore_writes():
            Tag.objects.create(name="of nobody")

    def save_session(request: HttpRequest) -> None:
        request.session["a"] = 1

    assert findings(browser, write) == ["wrote_in_safe_request"]
    assert findings(browser, write, "post") == []
    assert findings(browser, write_freely) == []
    assert findings(browser, save_session) == ["saved_session"]


def test_the_sessions_write_is_no_matter_where_it_binds_nobody(
    browser: Client, settings: Any
) -> None:
    """With the setting that the warning names."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_ONLY": ["sessions"]}

    def save_session(request: HttpRequest) -> None:
        request.session["a"] = 1

    assert findings(browser, save_session) == []


def test_what_overwrites_and_what_leaves_its_block_is_told_of(browser: Client, note: Note) -> None:
    """A save of what a replica has shown, and a queryset that is run outside of use_primary."""

    def save(request: HttpRequest) -> None:
        Note.objects.get(pk=note.pk).save()

    def leave(request: HttpRequest) -> None:
        with use_primary():
            left = Tag.objects.filter(name="a")
        list(left)

    assert findings(browser, save, "get") == ["wrote_in_safe_request", "saved_from_replica"]
    assert recorded()["findings"][1]["detail"] == "notes.Note"
    assert findings(browser, leave) == ["queryset_left_block"]


def test_a_join_that_is_kept_on_the_primary_is_told_of(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """With the table; not where the listed model itself is read, or nothing is listed."""

    def join(request: HttpRequest) -> None:
        list(Note.objects.filter(tags__name="red"))

    assert findings(browser, join) == []
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_ONLY": ["notes.Tag"]}
    wait_until_known(cluster)
    assert findings(browser, join) == ["names_primary_table"]
    stats = recorded()
    assert stats["findings"][0]["detail"] == "notes_tag"
    assert stats["queries"][-1]["alias"] == "default"
    assert stats["queries"][-1]["asked"].startswith("replica")
    assert findings(browser, lambda request: list(Tag.objects.all())) == []


def test_a_replica_that_is_named_in_spite_of_a_write_is_told_of(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """In the request that has written, and in the next ones while replicas are behind; not otherwise."""

    def name(request: HttpRequest) -> None:
        Tag.objects.count()
        Note.objects.using("replica1").count()

    def write_and_name(request: HttpRequest) -> None:
        Tag.objects.create(name="a")
        Note.objects.using("replica1").count()

    assert findings(browser, name) == []
    stand_still(cluster)
    assert findings(browser, write_and_name, "post") == ["named_behind"]
    assert recorded()["findings"][0]["detail"] == "replica1"
    assert findings(browser, name) == ["named_behind"]


def test_a_statement_that_was_run_twice_is_told_of(browser: Client, note: Note) -> None:
    """With what has happened."""

    def touch(request: HttpRequest) -> None:
        list(Note.objects.raw("SELECT notes_note.*, notes_touch(id) FROM notes_note"))

    assert findings(browser, touch) == ["wrote_in_safe_request", "run_twice"]
    assert "has refused that" in recorded()["findings"][1]["detail"]


def test_nothing_is_observed_where_the_toolbar_is_not_shown(browser: Client, settings: Any) -> None:
    """And all is while it is."""
    found: list[bool] = []

    def look(request: HttpRequest) -> None:
        list(Note.objects.all())
        around = [one.around for one in connections.all(initialized_only=True)]
        present = [one for one in around if one.edition is parsed.edition]
        found.append(observers.present or any(isinstance(one, Observed) for one in present))

    visit(browser, page(look))
    settings.INTERNAL_IPS = []
    visit(browser, page(look))
    visit(browser, page(look))
    assert found == [True, False, False]
    assert len(store().request_ids()) == 1
