"""What calls another service carries the token there and back, and to nobody else."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
import requests
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from requests.adapters import HTTPAdapter

from django_replica_router import Token, current_token, get_stats, scope
from django_replica_router.contrib import httpx as httpx_transports
from django_replica_router.contrib.httpx import AsyncTokenTransport, TokenTransport
from django_replica_router.contrib.requests import TokenAdapter, carry_tokens
from django_replica_router.errors import ConfigurationError
from testproject.cluster import Cluster
from testproject.notes.models import Note

NAME = "X-Replica-Token"


class Service:
    """A server that answers with a header, or sends elsewhere, and keeps what it was sent."""

    def __init__(self) -> None:
        self.tokens: list[str | None] = []
        self.bodies: list[bytes] = []
        self.answer = ""
        self.location = ""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                service.tokens.append(self.headers[NAME])
                service.bodies.append(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                self.send_response(307 if service.location else 204)
                if service.location:
                    self.send_header("Location", service.location)
                if service.answer:
                    self.send_header(NAME, service.answer)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                """Print nothing."""

        return Handler

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def start() -> Iterator[Callable[[], Service]]:
    """Starts a service, which is ended with the test."""
    services: list[Service] = []

    def begin() -> Service:
        services.append(Service())
        return services[-1]

    yield begin
    for service in services:
        service.stop()


def by_httpx(url: str, *known: str, **options: Any) -> None:
    """Post by a client of httpx that carries tokens to the known services."""
    mounts = {origin: TokenTransport(**options) for origin in known}
    with httpx.Client(mounts=mounts, follow_redirects=True) as client:
        response = client.post(url, content=b"body")
        assert NAME not in response.request.headers


def by_httpx_async(url: str, *known: str, **options: Any) -> None:
    """The same by an asynchronous one."""

    async def post() -> None:
        mounts = {origin: AsyncTokenTransport(**options) for origin in known}
        async with httpx.AsyncClient(mounts=mounts, follow_redirects=True) as client:
            await client.post(url, content=b"body")

    async_to_sync(post)()


def by_requests(url: str, *known: str, **options: Any) -> None:
    """The same by a session of requests."""
    with requests.Session() as session:
        carry_tokens(session, *known, **options)
        response = session.post(url, data=b"body", timeout=30)
        assert NAME not in response.request.headers


@pytest.fixture(params=[by_httpx, by_httpx_async, by_requests])
def post(request: pytest.FixtureRequest, settings: Any) -> Any:
    """Each way to post to a URL, with the origins that are to have the token."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": NAME}
    return request.param


@pytest.fixture
def written(note: Note, lagging: Cluster) -> str:
    """The token of a write that replicas lack."""
    with scope() as opened:
        Note.objects.update(title="second")
        return str(opened.token)


def test_what_was_written_goes_there_and_what_comes_back_is_seen(
    written: str, post: Any, start: Any
) -> None:
    """The scope reads by the token of the response from then on."""
    service = start()
    with scope() as opened:
        Note.objects.filter(title="none").update(title="third")
        Note.objects.create(title="other", owner_id=Note.objects.get().owner_id)
        sent = opened.token
        post(service.url, service.url)
        assert Token.read(service.tokens[0]) >= sent
    assert service.bodies == [b"body"]
    service.answer = written
    with scope():
        assert Note.objects.get().title == "first"
        post(service.url, service.url)
        assert Note.objects.get(title="second")
    assert service.tokens[1] is None  # who has nothing to tell sends none


def test_strangers_are_told_nothing(written: str, post: Any, start: Any) -> None:
    """Neither one that nobody named, nor one that a named one sends the client to; nor do they tell us anything."""
    service, stranger = start(), start()
    stranger.answer = written
    with scope(token=written):
        post(stranger.url, service.url)
    service.location = stranger.url
    with scope(token=written):
        post(service.url, service.url)
    with scope():
        post(stranger.url, service.url)
        assert Note.objects.get().title == "first"
    assert service.tokens == [written]
    assert stranger.tokens == [None, None, None]
    assert stranger.bodies[1] == b"body"


def test_the_test_of_strangers_fails_where_the_request_itself_is_changed(
    written: str, start: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows a redirect is made of its headers, by both libraries."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": NAME}

    def change(request: httpx.Request, name: str, token: Token) -> httpx.Request:
        request.headers[name] = str(token)
        return request

    monkeypatch.setattr(httpx_transports, "_bearing", change)
    monkeypatch.setattr(
        TokenAdapter,
        "send",
        lambda self, request, *args, **options: HTTPAdapter.send(
            self, change(request, NAME, current_token()), *args, **options
        ),
    )
    for post in (by_httpx, by_requests):
        service, stranger = start(), start()
        service.location = stranger.url
        with scope(token=written), suppress(AssertionError):
            post(service.url, service.url)
        assert stranger.tokens == [written]


def test_a_forged_answer_is_ignored_and_counted(written: str, post: Any, start: Any) -> None:
    """It neither fails the call nor sends the reads to the primary."""
    service = start()
    service.answer = written[:-3] + "xyz"
    before = get_stats().get("tokens_refused", 0)
    with scope():
        post(service.url, service.url)
        assert Note.objects.get().title == "first"
    assert get_stats()["tokens_refused"] == before + 1


def test_outside_of_a_scope_nothing_is_sent(written: str, post: Any, start: Any) -> None:
    """And what comes back is seen by nobody."""
    service = start()
    service.answer = written
    post(service.url, service.url)
    assert service.tokens == [None]


def test_the_header_may_be_another_one(written: str, post: Any, start: Any, settings: Any) -> None:
    """Of a service whose settings are not ours; but one must be named."""
    service = start()
    with scope(token=written):
        post(service.url, service.url, header="X-Other")
        assert service.tokens == [None]
        settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": None}
        post(service.url, service.url, header=NAME)
        assert service.tokens[1] == written
        with pytest.raises(ConfigurationError, match=r"set REPLICA_ROUTER\['HEADER'\]"):
            post(service.url, service.url)


def test_what_the_caller_sends_is_kept(written: str, settings: Any, start: Any) -> None:
    """A token that he has put there himself, beside what the scope has to tell."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": NAME}
    service = start()
    with httpx.Client(mounts={service.url: TokenTransport()}) as client:
        client.post(service.url, headers={NAME: written})
    with requests.Session() as session:
        carry_tokens(session, service.url)
        session.post(service.url, headers={NAME: written}, timeout=30)
    assert service.tokens == [written, written]


def test_a_call_that_would_block_an_event_loop_is_refused(settings: Any, start: Any) -> None:
    """As Django refuses its own queries there."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": NAME}
    service = start()

    async def call() -> None:
        by_httpx(service.url, service.url)

    with pytest.raises(SynchronousOnlyOperation, match="acurrent_token"):
        async_to_sync(call)()


def test_a_host_whose_name_begins_alike_is_another_one() -> None:
    """For requests, a prefix without a slash at its end would do."""
    session = requests.Session()
    carry_tokens(session, "https://orders.internal", "https://stock.internal:8000/")
    for url, carries in {
        "https://orders.internal/": True,
        "https://orders.internal/place?x=1": True,
        "https://stock.internal:8000/": True,
        "https://orders.internal.example.com/": False,
        "https://orders.internal@example.com/": False,
        "https://orders.internal:8000/": False,
        "https://stock.internal:80001/": False,
        "http://orders.internal/": False,
    }.items():
        assert isinstance(session.get_adapter(url), TokenAdapter) == carries, url


@pytest.mark.parametrize("origin", ["orders.internal", "ftp://orders.internal", "https://", ""])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    """It would be mounted nowhere, or everywhere."""
    with pytest.raises(ConfigurationError, match="takes origins such as"):
        carry_tokens(requests.Session(), origin)


def test_an_adapter_can_be_pickled() -> None:
    """As a session of requests can, into a cache or another process."""
    adapter = pickle.loads(pickle.dumps(TokenAdapter(header="X-Other")))  # noqa: S301
    assert adapter._header == "X-Other"
