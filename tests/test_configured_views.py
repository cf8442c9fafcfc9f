"""Views and models that the settings send to the primary or to replicas, where their code cannot be touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client
from django.urls import include, path
from django.views import View

from django_replica_router.conf import get_config
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until_known
from tests.helpers import Served
from tests.site import Action, arun, avisit, run, visit

pytestmark = pytest.mark.usefixtures("note")


class Page(View):
    """A view that is a class."""

    def get(self, request: HttpRequest) -> HttpResponse:
        """Read something."""
        return run(request)  # type: ignore[return-value]

    post = get


nested = ([path("page/", login_not_required(Page.as_view()), name="page")], "shop")
urlpatterns = [
    path("run/", run, name="run"),
    path("arun/", arun, name="arun"),
    path("shop/", include(nested)),
]


@pytest.fixture(autouse=True)
def _site(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.test_configured_views"


def route(settings: Any, **values: list[str]) -> None:
    """Add to the package's settings."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **values}


def read(request: HttpRequest) -> int:
    """Read something."""
    return Note.objects.count()


@pytest.mark.parametrize(
    "name", ["run", "r*", "tests.site.run", "tests.site.*"], ids=["url", "urls", "view", "module"]
)
def test_a_view_reads_from_the_primary(settings: Any, served: Served, name: str) -> None:
    """Named by its URL, or by where it is. Without the setting a replica serves it."""
    visit(Client(), read)
    assert served.only_replicas("notes_note")
    served.clear()
    route(settings, PRIMARY_VIEWS=[name])
    visit(Client(), read)
    assert served.only_primary("notes_note")


@pytest.mark.parametrize("name", ["shop:page", "shop:*", "tests.test_configured_views.Page"])
def test_a_view_that_is_posted_to_reads_from_a_replica(
    settings: Any, served: Served, name: str
) -> None:
    """As a search, or a GraphQL query. Without the setting the primary serves it."""
    Action.present = staticmethod(read)
    Client().post("/shop/page/")
    assert served.only_primary("notes_note")
    served.clear()
    route(settings, REPLICA_VIEWS=[name])
    Client().post("/shop/page/")
    assert served.only_replicas("notes_note")


def test_such_a_view_sees_what_it_has_written(
    settings: Any, served: Served, lagging: Cluster
) -> None:
    """It is one of use_replica: what the request itself wrote must be there."""
    route(settings, REPLICA_VIEWS=["run"])

    def write_and_read(request: HttpRequest) -> str:
        Note.objects.update(title="second")
        return Note.objects.get().title

    assert visit(Client(), write_and_read, method="post") == "second"


def test_the_primary_wins_where_both_name_a_view(settings: Any, served: Served) -> None:
    """The safe one of two."""
    route(settings, REPLICA_VIEWS=["*"], PRIMARY_VIEWS=["run"])
    visit(Client(), read)
    assert served.only_primary("notes_note")


def test_it_holds_for_a_stream(settings: Any, served: Served) -> None:
    """Which is read when the view has long returned."""
    route(settings, PRIMARY_VIEWS=["run"])

    def body() -> Iterator[str]:
        yield str(Note.objects.count())

    response = visit(Client(), lambda request: StreamingHttpResponse(body()))
    assert response.getvalue() == b"1"
    assert served.only_primary("notes_note")


def test_it_holds_in_an_event_loop(settings: Any, served: Served) -> None:
    """Where Django awaits the middleware."""

    async def look(name: str) -> None:
        async def action(request: HttpRequest) -> int:
            return await Note.objects.acount()

        route(settings, PRIMARY_VIEWS=[name])
        await avisit(AsyncClient(), action)

    async_to_sync(look)("elsewhere")
    assert served.only_replicas("notes_note")
    served.clear()
    async_to_sync(look)("arun")
    assert served.only_primary("notes_note")


def test_it_ends_with_the_request(settings: Any, served: Served) -> None:
    """The next one on the same thread is not routed."""
    route(settings, PRIMARY_VIEWS=["run"])
    client = Client()
    visit(client, read)
    served.clear()
    Action.present = staticmethod(read)
    client.get("/shop/page/")
    assert served.only_replicas("notes_note")


def test_a_model_is_read_from_replicas_whatever_the_request_does(
    settings: Any, served: Served
) -> None:
    """As a catalogue that nobody writes to. Of another model, the primary serves."""

    def action(request: HttpRequest) -> None:
        for _ in range(2):
            Tag.objects.count()
            Note.objects.count()

    route(settings, REPLICA_MODELS=["notes.Tag"])
    visit(Client(), action, method="post")
    assert served.only_replicas("notes_tag")
    assert served.only_primary("notes_note")
    route(settings, REPLICA_MODELS=[])
    served.clear()
    visit(Client(), action, method="post")
    assert served.only_primary("notes_tag")


def test_such_a_model_shows_what_was_written(
    settings: Any, served: Served, cluster: Cluster
) -> None:
    """A replica that lacks it does not serve; and in a transaction reads stay where it is."""
    route(settings, REPLICA_MODELS=["notes"])
    for replica in cluster.replicas:
        replica.pause()

    def action(request: HttpRequest) -> list[int]:
        before = Tag.objects.count()
        Tag.objects.create(name="new")
        counts = [before, Tag.objects.count()]
        with transaction.atomic():
            Tag.objects.create(name="newer")
            counts.append(Tag.objects.count())
        return counts

    assert visit(Client(), action, method="post") == [0, 1, 2]
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    served.clear()
    visit(Client(), lambda request: Tag.objects.count(), method="post")
    assert served.only_replicas("notes_tag")


def test_a_model_that_is_listed_twice_is_the_primarys(settings: Any) -> None:
    """PRIMARY_ONLY is a promise, the other a wish."""
    route(settings, REPLICA_MODELS=["notes"], PRIMARY_ONLY=["notes.Tag"])
    assert get_config().is_primary_only(Tag)
    assert not get_config().is_primary_only(Note)
