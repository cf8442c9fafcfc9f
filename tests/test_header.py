"""The header by which clients without cookies carry their token."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client

from django_replica_router import Token, get_stats, scope, see
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until_known
from tests.helpers import Served
from tests.site import avisit, visit

pytestmark = pytest.mark.usefixtures("test_site", "note")

NAME = "X-Replica-Token"


@pytest.fixture
def _header(settings: Any) -> None:
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": NAME}


def show(request: HttpRequest) -> HttpResponse:
    """Answer with the title of the note."""
    return HttpResponse(Note.objects.get().title)


def change(request: HttpRequest) -> HttpResponse:
    """Give the note another title."""
    Note.objects.update(title="second")
    return HttpResponse("changed")


def headers(response: Any) -> dict[str, str]:
    """Return what a client sends with its next request."""
    return {NAME: response.headers[NAME]}


@pytest.mark.usefixtures("_header")
def test_a_client_without_cookies_sees_what_it_wrote(lagging: Cluster) -> None:
    """And one that does not send the header is shown what a replica has."""
    response = visit(Client(), change, method="post")
    assert visit(Client(), show).content == b"first"
    assert visit(Client(), show, headers=headers(response)).content == b"second"


@pytest.mark.usefixtures("_header")
def test_a_replica_serves_it_once_it_has_that(cluster: Cluster, served: Served) -> None:
    """The header names a position, not the primary."""
    response = visit(Client(), change, method="post")
    wait_until_known(cluster)
    served.clear()
    visit(Client(), show, headers=headers(response))
    assert served.only_replicas("notes_note")


@pytest.mark.usefixtures("_header")
def test_it_never_falls(lagging: Cluster) -> None:
    """A client that keeps the latest one it got keeps what it knew before."""
    first = Token.read(visit(Client(), change, method="post").headers[NAME])
    second = visit(Client(), change, method="post", headers={NAME: str(first)}).headers[NAME]
    assert Token.read(second) >= first


@pytest.mark.usefixtures("_header")
def test_what_says_nothing_new_is_not_sent(lagging: Cluster) -> None:
    """Neither to who has it, nor to who has written nothing."""
    given = headers(visit(Client(), change, method="post"))
    lagging.replicas[0].resume()
    lagging.replicas[1].resume()
    wait_until_known(lagging)
    assert NAME not in visit(Client(), show, headers=given).headers
    assert NAME not in visit(Client(), show).headers


@pytest.mark.usefixtures("_header")
def test_what_the_view_was_told_meanwhile_reaches_the_client(lagging: Cluster) -> None:
    """As by the answer of another service: the client did not know it, though the scope does."""
    with scope() as opened:
        Note.objects.update(title="second")
        token = opened.token

    def learn(request: HttpRequest) -> HttpResponse:
        see(token)
        return show(request)

    response = visit(Client(), learn)
    assert response.content == b"second"
    assert visit(Client(), show, headers=headers(response)).content == b"second"
    assert NAME not in visit(Client(), learn, headers=headers(response)).headers


@pytest.mark.usefixtures("_header")
def test_caches_are_told_of_a_stream_before_it_reads(lagging: Cluster) -> None:
    """Its body depends on the header as any other does, though its headers are made first."""

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(note.title for note in Note.objects.iterator())

    response = visit(Client(), stream)
    assert response.getvalue() == b"first"
    assert NAME in response.headers["Vary"]
    assert NAME not in response.headers


@pytest.mark.usefixtures("_header")
@pytest.mark.parametrize("text", ["nonsense", "1AAAA:forged", "1" * 5000])
def test_a_forged_one_is_ignored_and_counted(lagging: Cluster, text: str) -> None:
    """It neither fails the request nor sends it to the primary."""
    visit(Client(), change, method="post")
    before = get_stats().get("tokens_refused", 0)
    assert visit(Client(), show, headers={NAME: text}).content == b"first"
    assert get_stats()["tokens_refused"] == before + 1


def test_it_is_off_by_default(lagging: Cluster, settings: Any) -> None:
    """No header is sent, and none is read."""
    assert NAME not in visit(Client(), change, method="post").headers
    with_it = {**settings.REPLICA_ROUTER, "HEADER": NAME}
    settings.REPLICA_ROUTER, before = with_it, settings.REPLICA_ROUTER
    given = headers(visit(Client(), change, method="post"))
    settings.REPLICA_ROUTER = before
    assert visit(Client(), show, headers=given).content == b"first"


@pytest.mark.usefixtures("_header")
def test_caches_are_told(lagging: Cluster) -> None:
    """What a response shows depends on the header; one that hands it out is nobody else's."""
    response = visit(Client(), change, method="post")
    assert NAME in response.headers["Vary"]
    assert "private" in response.headers["Cache-Control"]
    response = visit(Client(), show)
    assert NAME in response.headers["Vary"]
    assert "Cache-Control" not in response.headers
    response = visit(Client(), lambda request: HttpResponse("nothing"))
    assert NAME not in response.headers.get("Vary", "")


@pytest.mark.usefixtures("_header")
def test_it_works_in_an_event_loop(lagging: Cluster) -> None:
    """Without blocking it."""

    async def work() -> tuple[bytes, bytes]:
        async def achange(request: HttpRequest) -> HttpResponse:
            await Note.objects.aupdate(title="second")
            return HttpResponse("changed")

        async def ashow(request: HttpRequest) -> HttpResponse:
            return HttpResponse((await Note.objects.aget()).title)

        response = await avisit(AsyncClient(), achange, method="post")
        without = await avisit(AsyncClient(), ashow)
        with_it = await avisit(AsyncClient(), ashow, headers=headers(response))
        return without.content, with_it.content

    assert async_to_sync(work)() == (b"first", b"second")
