"""Asynchronous pages, which go into tasks and threads, and streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context

from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from testproject.notes.models import Note, Tag
from tests.examples import load_example

streams = load_example("http.md", "live/views.py")


def read() -> str:
    """Return the title of the note."""
    return Note.objects.get().title


async def aread() -> str:
    """Return the title of the note."""
    return (await Note.objects.aget()).title


def in_its_thread(work: Callable[[], str | None]) -> str | None:
    """Do something, and leave no connection of the thread behind."""
    try:
        return work()
    finally:
        connections.close_all()


def in_a_bare_thread() -> str | None:
    """Read in a thread that knows nothing of the request."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(in_its_thread(read)))
    thread.start()
    thread.join()
    return found[0]


async def everywhere(request: HttpRequest) -> JsonResponse:
    """Answer with the title as each way to read it gives it."""
    run = asyncio.get_running_loop().run_in_executor
    user = await request.auser()
    return JsonResponse(
        {
            "user": user.get_username(),
            "gather": await asyncio.gather(aread(), aread(), sync_to_async(read)()),
            "task": await asyncio.create_task(aread()),
            "sync_to_async": await sync_to_async(read)(),
            "own thread": await sync_to_async(in_its_thread, thread_sensitive=False)(read),
            "to_thread": await asyncio.to_thread(in_its_thread, read),
            "executor": await run(None, copy_context().run, in_its_thread, read),
            "bare thread": await sync_to_async(in_a_bare_thread)(),
        }
    )


@csrf_exempt
async def change(request: HttpRequest, title: str, way: str) -> HttpResponse:
    """Give the note another title, from where it says."""

    def write() -> None:
        Note.objects.update(title=title)

    ways = {
        "view": lambda: Note.objects.aupdate(title=title),
        "gather": lambda: asyncio.gather(Note.objects.aupdate(title=title), aread()),
        "sync": sync_to_async(write),
        "thread": lambda: asyncio.to_thread(in_its_thread, write),
    }
    await request.auser()
    await ways[way]()
    return HttpResponse(await aread())


async def stream(request: HttpRequest, title: str) -> StreamingHttpResponse:
    """Answer with the title before and after the body has given another one."""

    async def body() -> AsyncIterator[str]:
        yield await aread()
        await Note.objects.aupdate(title=title)
        yield f" {await aread()}"

    await request.auser()
    return StreamingHttpResponse(body())


async def one_scope(request: HttpRequest) -> StreamingHttpResponse:
    """Tell of each change, all in the scope of the request: the control of the documents' example."""

    async def body() -> AsyncIterator[str]:
        try:
            async for _ in streams.changes():
                yield f"data: {await aread()}\n\n"
        finally:
            await Tag.objects.acreate(name=f"left {id(request)}")

    await request.auser()
    return StreamingHttpResponse(body(), content_type="text/event-stream")


@csrf_exempt
async def tell(request: HttpRequest) -> HttpResponse:
    """Tell all streams of a change."""
    for queue in streams.listeners:
        queue.put_nowait(None)
    return HttpResponse()


urlpatterns = [
    path("everywhere/", everywhere),
    path("change/<title>/<way>/", change),
    path("stream/<title>/", stream),
    path("events/", streams.events),
    path("one_scope/", one_scope),
    path("tell/", tell),
]
