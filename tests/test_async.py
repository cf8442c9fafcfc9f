"""The guarantees under ASGI: async views, async ORM, gather and threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.db import connections, transaction
from django.http import HttpRequest, StreamingHttpResponse
from django.test import AsyncClient

from django_replica_router import current_scope, scope, use_primary, use_replica
from django_replica_router.scopes.identity import user_key
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import NOWHERE, Record
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import TIMEOUT, wait_until_known
from tests.site import PASSWORD, Action, avisit

pytestmark = pytest.mark.usefixtures("test_site")


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run in a new event loop, and close the connections that its thread leaves behind."""

    async def and_close() -> Any:
        try:
            return await main()
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(and_close())


def record_of(user: User) -> Record | None:
    """Return what the token store knows of the user."""
    return get_store("default").load([f"rr:default:{user_key(user)}"])[0]


async def sign_in() -> AsyncClient:
    """Return a client that has signed in as Ann."""
    client = AsyncClient()
    response = await client.post("/login/", {"username": "ann", "password": PASSWORD})
    assert response.status_code == 302
    return client


async def database(note: Note) -> str:
    """Return where a note is read from."""
    return str((await Note.objects.aget(pk=note.pk))._state.db)


def test_async_views_read_from_a_replica(note: Note) -> None:
    """The async ORM asks the router inside its threads."""
    assert run(lambda: avisit(AsyncClient(), lambda request: database(note))).startswith("replica")


def test_sync_views_under_asgi_read_from_a_replica(note: Note) -> None:
    """The scope travels into the thread of a sync view."""

    def action(request: HttpRequest) -> str:
        return str(Note.objects.get(pk=note.pk)._state.db)

    assert run(lambda: avisit(AsyncClient(), action, url="/run/")).startswith("replica")


@pytest.mark.parametrize("url", ["/arun/", "/run/"])
def test_login_and_a_write_are_seen_under_lag(
    ann: User, note: Note, cluster: Cluster, url: str
) -> None:
    """Sign in, write, read back: all while replicas show the past."""
    for replica in cluster.replicas:
        replica.pause()

    def write(request: HttpRequest) -> None:
        Note.objects.filter(pk=note.pk).update(title="second")

    async def awrite(request: HttpRequest) -> None:
        await Note.objects.filter(pk=note.pk).aupdate(title="second")

    async def main() -> tuple[str, str]:
        client = await sign_in()
        me = (await client.get("/api/me/")).json()["username"]
        await avisit(client, awrite if url == "/arun/" else write, "post", url)
        page = await client.get(f"/api/notes/{note.pk}/")
        return me, page.json()["title"]

    assert run(main) == ("ann", "second")


def test_a_write_in_one_task_is_known_to_the_others(note: Note) -> None:
    """What a task of asyncio.gather writes makes the whole request read from the primary."""

    async def action(request: HttpRequest) -> list[str]:
        before = await database(note)
        await asyncio.gather(
            Tag.objects.acreate(name="red"), sync_to_async(Tag.objects.create)(name="blue")
        )
        after = await asyncio.gather(database(note), database(note))
        return [before, *after]

    before, *after = run(lambda: avisit(AsyncClient(), action))
    assert before.startswith("replica")
    assert after == ["default", "default"]


def test_tasks_of_one_request_read_from_one_replica(note: Note) -> None:
    """Whichever task asks first."""

    async def action(request: HttpRequest) -> list[str]:
        return await asyncio.gather(*[database(note) for _ in range(8)])

    assert len(set(run(lambda: avisit(AsyncClient(), action)))) == 1


def test_use_primary_in_one_task_does_not_leak(note: Note) -> None:
    """A sibling keeps its own route."""

    async def forced() -> str:
        with use_primary():
            await asyncio.sleep(0)
            return await database(note)

    @use_primary
    async def decorated() -> str:
        return await database(note)

    async def action(request: HttpRequest) -> list[str]:
        return await asyncio.gather(forced(), database(note), decorated(), database(note))

    first, second, third, fourth = run(lambda: avisit(AsyncClient(), action))
    assert (first, third) == ("default", "default")
    assert second == fourth
    assert second.startswith("replica")


def test_iterating_asynchronously_reads_from_a_replica(note: Note) -> None:
    """The router is asked in the event loop, too, and must not block it."""

    async def action(request: HttpRequest) -> list[str]:
        return [str(n._state.db) async for n in Note.objects.all()]

    (found,) = run(lambda: avisit(AsyncClient(), action))
    assert found.startswith("replica")


def test_a_queryset_asked_for_its_database_in_the_loop_does_no_io(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Undecided, the answer in the event loop is the primary, and binds nobody."""
    from django_replica_router.recording import floors

    def forbidden(*args: object) -> None:
        pytest.fail("asked the token store in the event loop")

    async def main() -> list[str]:
        async with scope():
            with monkeypatch.context() as patch:
                patch.setattr(floors, "get_store", forbidden)
                undecided = Note.objects.all().db
            return [undecided, await database(note), Note.objects.all().db]

    undecided, first, then = run(main)
    assert undecided == "default"
    assert first.startswith("replica")
    assert then == first


def test_an_async_stream_stores_its_token_at_its_end(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Each part is made inside the scope; the token stands when the body is finished."""

    async def body(request: HttpRequest) -> AsyncIterator[bytes]:
        yield (await database(note)).encode()
        await Note.objects.filter(pk=note.pk).aupdate(title="second")
        yield (await database(note)).encode()

    async def action(request: HttpRequest) -> StreamingHttpResponse:
        assert (await request.auser()).is_authenticated
        return StreamingHttpResponse(body(request))

    async def main() -> list[bytes]:
        client = await sign_in()
        await sync_to_async(get_store("default")._cache.clear)()
        # Known again, and bound by nothing that replicas lack.
        await client.get("/api/me/")
        await sync_to_async(wait_until_known)(cluster)
        response = await avisit(client, action)
        return [part async for part in response.streaming_content]

    before, after = run(main)
    assert before.startswith(b"replica")
    assert after == b"default"
    record = record_of(ann)
    assert record is not None
    assert record.position != NOWHERE


def test_what_an_async_stream_writes_when_its_client_hangs_up_is_behind_its_token(
    ann: User, note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Its body is closed with the response, inside the scope, and not by the garbage collector."""
    for database in settings.DATABASES.values():
        # The server runs each request in a thread of its own, which leaves nothing open then.
        monkeypatch.setitem(database, "CONN_MAX_AGE", 0)

    before: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"begin"
            yield b"never"
        finally:
            before.append(await sync_to_async(cluster.primary.insert_lsn)())
            await Note.objects.filter(pk=note.pk).aupdate(title="second")

    async def action(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(body())

    async def main() -> None:
        client = await sign_in()
        await sync_to_async(get_store("default")._cache.clear)()
        Action.present = staticmethod(action)
        cookie = f"sessionid={client.cookies['sessionid'].value}"
        server = ApplicationCommunicator(
            ASGIHandler(),
            {
                "type": "http",
                "method": "GET",
                "path": "/arun/",
                "headers": [(b"host", b"testserver"), (b"cookie", cookie.encode())],
            },
        )
        send, arrived, is_gone = server.output_queue.put, asyncio.Event(), asyncio.Event()

        async def hold(message: Any) -> None:
            await send(message)
            if message.get("body"):
                arrived.set()
                await is_gone.wait()  # the client reads no more, and what is sent waits

        server.output_queue.put = hold
        await server.send_input({"type": "http.request"})
        await arrived.wait()
        await server.send_input({"type": "http.disconnect"})
        await server.wait(TIMEOUT)

    run(main)
    assert Note.objects.using("default").get(pk=note.pk).title == "second"
    record = record_of(ann)
    assert record is not None
    assert record.position.lsn > before[0]


def test_inside_atomic_in_a_thread_the_primary_serves(note: Note) -> None:
    """A transaction lives in its thread, and so does what it forces."""

    @sync_to_async
    def in_transaction() -> str:
        with transaction.atomic():
            return str(Note.objects.get(pk=note.pk)._state.db)

    async def action(request: HttpRequest) -> list[str]:
        return [await in_transaction(), await database(note)]

    inside, outside = run(lambda: avisit(AsyncClient(), action))
    assert inside == "default"
    assert outside.startswith("replica")


def test_an_async_scope_stores_its_token(ann: User, note: Note, cluster: Cluster) -> None:
    """A consumer that writes for a user, and the user's next request."""
    for replica in cluster.replicas:
        replica.pause()

    async def main() -> str:
        async with scope(user=ann):
            await Note.objects.filter(pk=note.pk).aupdate(title="second")
        async with scope(user=ann):
            return (await Note.objects.aget(pk=note.pk)).title

    assert run(main) == "second"


def test_use_replica_in_async_code_outside_a_request(note: Note) -> None:
    """An async command may ask for a replica."""

    async def main() -> str:
        with use_replica():
            return await database(note)

    assert run(main).startswith("replica")


def test_an_exception_in_an_async_view_leaves_the_token_behind(ann: User, note: Note) -> None:
    """What was written before the view raised is remembered."""

    async def action(request: HttpRequest) -> None:
        await request.auser()
        await Note.objects.filter(pk=note.pk).aupdate(title="second")
        raise RuntimeError

    async def main() -> int:
        client = await sign_in()
        await sync_to_async(get_store("default")._cache.clear)()
        client.raise_request_exception = False
        return int((await avisit(client, action, "post")).status_code)

    assert run(main) == 500
    record = record_of(ann)
    assert record is not None
    assert record.position != NOWHERE


def test_scopes_of_concurrent_requests_do_not_mix(note: Note) -> None:
    """One writes, the other reads from a replica at the same time, in the same loop."""
    gate = asyncio.Event()

    async def writer(request: HttpRequest) -> str:
        await Tag.objects.acreate(name="red")
        gate.set()
        return await database(note)

    async def reader(request: HttpRequest) -> str:
        await gate.wait()
        mine = current_scope()
        assert mine is not None
        return await database(note)

    async def dispatch(request: HttpRequest) -> str:
        return await (writer if request.GET.get("write") else reader)(request)

    async def main() -> list[str]:
        return await asyncio.gather(
            avisit(AsyncClient(), dispatch, url="/arun/"),
            avisit(AsyncClient(), dispatch, url="/arun/?write=1"),
        )

    read, wrote = run(main)
    assert read.startswith("replica")
    assert wrote == "default"
