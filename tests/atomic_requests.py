"""What tests of `ATOMIC_REQUESTS` have in common."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, router, transaction
from django.http import HttpRequest, JsonResponse
from django.test import Client
from psycopg import IsolationLevel

from django_replica_router import note_write
from django_replica_router.routers import ReplicaRouter
from django_replica_router.transactions import atomic_requests
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import stand_still
from tests.site import visit

HERE = "tests.atomic_requests"
Patch = pytest.MonkeyPatch


@pytest.fixture
def atomic(cluster: Cluster, test_site: None, monkeypatch: Patch) -> None:
    """A site with ``ATOMIC_REQUESTS`` on its primary."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


@pytest.fixture
def edited(note: Note, cluster: Cluster) -> Note:
    """A note that somebody else has edited since all replicas stand still: they show "first"."""
    stand_still(cluster)
    edit(cluster)
    return note


def edit(cluster: Cluster, title: str = "NEW") -> None:
    """Change the note as somebody else does, past this process."""
    cluster.primary.execute("UPDATE notes_note SET title = %s", [title], dbname="app")


def title() -> str:
    """Read the note: a replica shows "first", and the primary "NEW"."""
    return Note.objects.get().title


def in_block(action: Callable[[], Any]) -> Callable[[HttpRequest], Any]:
    """Return a view that runs in the handler's block, and in no other."""

    def view(request: HttpRequest) -> Any:
        assert len(connection.atomic_blocks) == 1
        return action()

    return view


def show(action: Callable[[], Any], client: Client | None = None, **extra: Any) -> Any:
    """Visit a view that runs in the handler's block."""
    return visit(client or Client(), in_block(action), **extra)


def execute(statement: str, params: Any = None) -> None:
    """Run a statement on the primary, past the ORM."""
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


def follow() -> str:
    """Ask the router, and make sure that the answer comes from a shortcut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaRouter, "_route", refuse)
        return router.db_for_read(Note)


def refuse(*args: Any) -> str:
    """Take the place of the long way, which must not be gone."""
    pytest.fail("there was no shortcut")


def write_by_hand() -> None:
    connection.ensure_connection()
    connection.connection.execute("UPDATE notes_note SET title = 'mine'")
    note_write()


def copy() -> None:
    with connection.cursor() as cursor, cursor.copy("COPY notes_tag TO STDOUT") as found:
        assert list(found) == []


UNNOTICED = {"by hand": (write_by_hand, "mine"), "copy": (copy, "NEW")}

TAKING: dict[str, str | Callable[[], Any]] = {
    "select for update": lambda: Note.objects.select_for_update().get(),
    "no key update": lambda: Note.objects.select_for_update(no_key=True).get(),
    "for share": "SELECT id FROM notes_note FOR SHARE",
    "for key share": "SELECT id FROM notes_note FOR KEY SHARE",
    "lock table": "LOCK TABLE notes_tag IN SHARE MODE",
    "advisory lock": "SELECT pg_advisory_xact_lock(7)",
    "set local": "SET LOCAL app.tenant = '7'",
    "set_config": "SELECT set_config('app.tenant', '7', true)",
    "isolation": "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "begins anew": "COMMIT",
    "cursor": "DECLARE mine CURSOR FOR SELECT 1",
}


def is_open() -> bool:
    """Tell whether this thread is connected to the primary."""
    return connection.connection is not None


@pytest.fixture
def closed(atomic: None, edited: Note) -> Iterator[None]:
    """No connection to the primary, whose isolation level is known."""
    show(title)
    connections["default"].close()
    yield
    connections["default"].close()


def own_block(action: Callable[[], str]) -> str:
    with transaction.atomic():
        return action()


BLOCKS: dict[str, Callable[[], str]] = {
    "a savepoint": lambda: own_block(title),
    "of a savepoint": lambda: own_block(lambda: own_block(title)),
    "no savepoint": lambda: transaction.atomic(savepoint=False)(title)(),
    "a decorator": transaction.atomic(title),
}


class RouteAround:
    """Middleware that asks the router before the view and after it, and answers with all three."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        before = router.db_for_read(Note)
        inside = json.loads(self.get_response(request).content)["result"]
        return JsonResponse({"result": f"{before} {inside} {follow()}"})


class BlockAround:
    """Middleware that opens a block around all that is inside it."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        with transaction.atomic():
            return self.get_response(request)


class BlockBefore:
    """Middleware that opens a block before the view, and closes it with the response."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        response = self.get_response(request)
        transaction.get_connection().atomic_blocks[0].__exit__(None, None, None)
        return response

    def process_view(self, request: HttpRequest, *args: Any) -> None:
        transaction.atomic().__enter__()


class BlockInstead:
    """Middleware that calls the view itself, in a block of its own."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        with transaction.atomic():
            return view(request, *args, **kwargs)


class BlockThatEnds(BlockInstead):
    """Middleware that reads in a block of its own before the view."""

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        with transaction.atomic():
            request.META["seen"] = title()


@pytest.fixture
def reconnecting(atomic: None, edited: Note) -> Iterator[None]:
    """Connections to the primary are opened anew, and what they are like is asked anew."""
    connections["default"].close()
    atomic_requests._default_levels.clear()
    yield
    connections["default"].close()
    atomic_requests._default_levels.clear()


ABOVE = [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
SESSION = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ"


def run(main: Callable[[], Any]) -> Any:
    """Run in a new event loop, and close the connections that its thread leaves behind."""

    async def and_close() -> Any:
        try:
            return await main()
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(and_close())


Control = tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]
