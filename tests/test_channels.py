"""Consumers of Channels: a scope for each message, for the user of the connection."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.testing import WebsocketCommunicator
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.test import Client
from websockets.sync.client import connect

from django_replica_router import scope
from testproject.cluster import Cluster
from testproject.cluster.server import free_port
from testproject.notes.models import Note
from tests.channels_site import CONSUMERS, sockets
from tests.conftest import TIMEOUT, stand_still, wait_until_known
from tests.helpers import Served
from tests.servers import daphne, running
from tests.site import PASSWORD, sign_in, visit
from tests.test_processes import environment

pytestmark = pytest.mark.usefixtures("test_site", "_layer")


@pytest.fixture
def _layer(settings: Any) -> None:
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


@pytest.fixture
def bob(cluster: Cluster) -> User:
    """Another user."""
    return User.objects.create_user("bob", password=PASSWORD)


@asynccontextmanager
async def connected(name: str, user: Any) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Connect a user with a consumer; yield what sends a message, where one is given, and receives the answer."""
    socket = WebsocketCommunicator(CONSUMERS[name].as_asgi(), f"/{name}/")
    socket.scope["user"] = user
    assert (await socket.connect(timeout=TIMEOUT))[0]

    async def ask(**message: Any) -> Any:
        if message:
            await socket.send_json_to(message)
        return await socket.receive_json_from(timeout=TIMEOUT)

    yield ask
    await socket.disconnect(timeout=TIMEOUT)


def title(request: HttpRequest) -> str:
    """Return the title that a page shows to its user."""
    assert request.user.is_authenticated
    return Note.objects.get().title


@pytest.fixture
def browser(note: Note, cluster: Cluster) -> Client:
    """A browser of Ann's, known, whose session is on each replica."""
    client = sign_in(note.owner)
    visit(client, title)
    wait_until_known(cluster)
    return client


@pytest.mark.parametrize(
    ("name", "seen"), [("notes", "second"), ("sync", "second"), ("plain", "first")]
)
def test_what_a_message_writes_its_user_sees(
    name: str, seen: str, browser: Client, note: Note, cluster: Cluster
) -> None:
    """In the browser, by HTTP; and with a consumer that has no scope, not."""
    stand_still(cluster)

    async def work() -> None:
        async with connected(name, note.owner) as ask:
            assert await ask(title="second") == {"title": "second"}

    async_to_sync(work)()
    assert visit(browser, title) == seen


@pytest.mark.parametrize("name", ["notes", "sync"])
def test_a_message_sees_what_its_user_wrote_meanwhile(
    name: str, note: Note, bob: User, cluster: Cluster
) -> None:
    """And reads from a replica before: another user's connection goes on doing so."""

    def write() -> None:
        with scope(user=note.owner):
            Note.objects.update(title="second")

    async def work() -> None:
        async with connected(name, note.owner) as anns, connected(name, bob) as bobs:
            await sync_to_async(stand_still)(cluster)
            assert [await ask(go=1) for ask in (anns, bobs)] == [{"title": "first"}] * 2
            await sync_to_async(write)()
            assert [await ask(go=1) for ask in (anns, bobs)] == [
                {"title": "second"},
                {"title": "first"},
            ]

    async_to_sync(work)()


@pytest.mark.parametrize(
    ("name", "by_replicas"), [("notes", True), ("sync", True), ("plain", False)]
)
def test_a_message_is_read_from_a_replica(
    name: str, by_replicas: bool, note: Note, cluster: Cluster, served: Served
) -> None:
    """Without a scope, from the primary."""

    async def work() -> None:
        async with connected(name, note.owner) as ask:
            await sync_to_async(wait_until_known)(cluster)
            served.clear()
            await ask(go=1)

    async_to_sync(work)()
    assert served.only_replicas("notes_note") == by_replicas
    assert served.only_primary("notes_note") != by_replicas


@pytest.mark.parametrize(("name", "told"), [("notes", "second"), ("untold", "first")])
def test_who_is_told_of_a_change_sees_it(
    name: str, told: str, note: Note, bob: User, cluster: Cluster
) -> None:
    """By the token in the message; without it, a replica shows what was before."""

    async def work() -> None:
        async with connected(name, note.owner) as anns, connected(name, bob) as bobs:
            await sync_to_async(stand_still)(cluster)
            assert await anns(title="second") == {"title": "second"}
            assert await bobs() == {"title": told}

    async_to_sync(work)()


def test_what_a_visitor_writes_is_seen_in_the_session(
    note: Note, bob: User, cluster: Cluster
) -> None:
    """By the cookie alone; and who signs in with a message, as somebody else, sees it by another session."""
    browser, other = Client(), sign_in(note.owner)
    visit(browser, lambda request: request.session.update({"basket": 1}))
    for client in (browser, other):
        visit(client, lambda request: dict(request.session))
    wait_until_known(cluster)
    cookie = f"sessionid={browser.cookies['sessionid'].value}".encode()

    def show(request: HttpRequest) -> str:
        dict(request.session)
        return Note.objects.get().title

    async def work() -> None:
        socket = WebsocketCommunicator(sockets, "/visitor/", headers=[(b"cookie", cookie)])
        assert (await socket.connect(timeout=TIMEOUT))[0]
        await sync_to_async(stand_still)(cluster)
        for name in ("bob", "ann"):
            await socket.send_json_to({"name": name})
            await socket.receive_json_from(timeout=TIMEOUT)
        await socket.disconnect(timeout=TIMEOUT)

    async_to_sync(work)()
    assert visit(browser, show) == "second"
    assert visit(other, show) == "second"
    assert visit(Client(), show) == "first"


def test_who_saves_what_it_has_read_is_known_by_its_own_code(note: Note, cluster: Cluster) -> None:
    """And reads from the primary from then on; other consumers do not."""

    async def origins() -> list[str]:
        found = []
        async with connected("saving", AnonymousUser()) as ask:
            for _ in range(2):
                await sync_to_async(wait_until_known)(cluster)
                found.append((await ask(go=1))["origin"])
        return found

    first, second = async_to_sync(origins)()
    assert first.startswith("replica")
    assert second == "default"
    with Served() as served:

        async def work() -> None:
            async with connected("notes", AnonymousUser()) as ask:
                await sync_to_async(wait_until_known)(cluster)
                served.clear()
                await ask(go=1)

        async_to_sync(work)()
        assert served.only_replicas("notes_note")


def test_it_works_under_daphne(
    browser: Client, note: Note, cluster: Cluster, tmp_path: Path
) -> None:
    """With a real client, and the session of a browser."""
    port = free_port()
    variables = environment(cluster, settings="tests.channels_settings")
    command = daphne("tests.channels_asgi:application", port)
    session = f"sessionid={browser.cookies['sessionid'].value}"

    def say(socket: Any, **message: Any) -> str:
        socket.send(json.dumps(message))
        return str(json.loads(socket.recv(TIMEOUT))["title"])

    with running(command, port, tmp_path / "log", variables) as server:
        server.wait_until_it_answers()
        with connect(
            f"ws://127.0.0.1:{port}/notes/", additional_headers={"Cookie": session}
        ) as socket:
            assert say(socket, go=1) == "first"
            stand_still(cluster)
            assert say(socket, title="second") == "second"
            assert visit(browser, title) == "second"
            assert visit(Client(), lambda request: Note.objects.get().title) == "first"
