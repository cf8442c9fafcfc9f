"""The header Server-Timing: which servers a page has asked, for how long, and why."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, Client

from django_replica_router.contrib.server_timing import ServerTimingMiddleware, metrics_of
from django_replica_router.observations import Observation, Query, observers
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.reading import browser, note
from tests.site import avisit, visit

__all__ = ["browser", "note"]

TIMING = "django_replica_router.contrib.server_timing.ServerTimingMiddleware"

# The header's syntax: metrics with parameters, each value a token or a quoted string.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METRIC = rf'{_TOKEN}(?:;{_TOKEN}=(?:{_TOKEN}|"(?:[^"\\]|\\.)*"))*'
SYNTAX = re.compile(rf"{_METRIC}(?:, {_METRIC})*")


class ForStaff(ServerTimingMiddleware):
    """As the documents show it."""

    def is_for(self, request: HttpRequest) -> bool:
        return request.user.is_staff  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _timed(test_site: None, browser: Client, settings: Any) -> None:
    settings.DEBUG = True
    settings.MIDDLEWARE = [TIMING, *settings.MIDDLEWARE]
    browser.handler.load_middleware()  # of these settings


def read(request: HttpRequest) -> HttpResponse:
    """Read two tables, with a header of the view's own."""
    list(Note.objects.all())
    list(Tag.objects.all())
    return HttpResponse(headers={"Server-Timing": "cache;dur=1"})


def test_a_response_tells_its_servers(browser: Client) -> None:
    """Behind what others have said, in the header's syntax."""
    header = visit(browser, read).headers["Server-Timing"]
    assert SYNTAX.fullmatch(header)
    assert header.startswith("cache;dur=1, ")
    replica = re.search(r'(replica\d);desc="(\d) queries: CAUGHT_UP";dur=[\d.]+', header)
    assert replica
    assert int(replica[2]) >= 2
    assert 'routing;desc="deciding, with waiting";dur=' in header


def test_others_are_told_nothing(browser: Client, settings: Any, ann: User) -> None:
    """Without DEBUG nobody is, and nothing is observed; or nobody but whom a subclass names."""
    settings.DEBUG = False
    seen: list[bool] = []

    def look(request: HttpRequest) -> HttpResponse:
        seen.append(observers.present)
        return HttpResponse(str(Note.objects.count()))

    assert "Server-Timing" not in visit(browser, look).headers
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[1:], f"{__name__}.ForStaff"]
    browser.handler.load_middleware()
    assert "Server-Timing" not in visit(browser, look).headers
    User.objects.filter(pk=ann.pk).update(is_staff=True)
    assert "Server-Timing" in visit(browser, look).headers
    assert seen == [False, False, True]


def test_a_page_that_asks_no_server_has_no_header() -> None:
    """And loses none."""
    header = visit(Client(), lambda request: HttpResponse()).headers
    assert "Server-Timing" not in header
    given = HttpResponse(headers={"Server-Timing": "cache;dur=1"})
    assert visit(Client(), lambda request: given).headers["Server-Timing"] == "cache;dur=1"


def test_no_thread_is_asked_whether_there_is_a_header(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a subclass asks for more than DEBUG: an asynchronous site that has it off pays nothing for it."""
    settings.DEBUG = False
    given = HttpResponse()

    async def answer(request: HttpRequest) -> HttpResponse:
        return given

    async def serve(kind: type[ServerTimingMiddleware]) -> Any:
        response: Any = kind(answer)(HttpRequest())
        return await response

    def refuse(*args: object) -> None:
        pytest.fail("a thread was asked")

    monkeypatch.setattr("django_replica_router.contrib.server_timing.sync_to_async", refuse)
    assert asyncio.run(serve(ServerTimingMiddleware)) is given
    with pytest.raises(pytest.fail.Exception):
        asyncio.run(serve(ForStaff))


def test_an_asynchronous_stream_tells_what_came_before_it(cluster: Cluster) -> None:
    """The header leaves first."""

    async def body() -> AsyncIterator[str]:
        yield str(await Note.objects.acount())
        await sync_to_async(connections.close_all)()  # those of this thread

    async def stream(request: HttpRequest) -> StreamingHttpResponse:
        await sync_to_async(lambda: list(Tag.objects.all()))()
        return StreamingHttpResponse(body())

    async def take() -> tuple[str, list[bytes]]:
        response = await avisit(AsyncClient(), stream)
        return response.headers["Server-Timing"], [part async for part in response]

    header, parts = asyncio.run(take())
    assert '"1 query: ' in header
    assert parts == [b"0"]
    assert not observers.present


def test_what_is_no_token_is_replaced_and_what_ends_a_string_escaped() -> None:
    """So that no name can add anything to the header."""
    alias, reason = 'a b,"é', 'x"\\\r\n'
    query = Query("SELECT 1", alias, alias, reason, "", False, False, 0.5, 0.25, "", (), "", False)
    seen = Observation()
    seen.note_query(query)
    header = ", ".join(metrics_of(seen))
    assert SYNTAX.fullmatch(header)
    assert header.startswith(r'a_b___;desc="1 query: x\"\\??";dur=500.000, routing;')
