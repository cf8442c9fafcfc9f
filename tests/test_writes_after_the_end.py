"""Writes by threads and tasks that go on in a scope which has ended: its user sees them as any other."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.cache.backends.db import DatabaseCache
from django.db import connection, connections, transaction
from django.http import HttpRequest, StreamingHttpResponse
from django.test import AsyncClient, Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.connections import connection as connection_class
from django_replica_router.connections import cursors, on_primary
from django_replica_router.recording import finishing, floors
from django_replica_router.scopes.identity import user_key
from django_replica_router.scopes.scope import Scope
from django_replica_router.stores.store import GenericStore
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.backend import DJANGO, OWN, engine
from tests.conftest import TIMEOUT, stand_still
from tests.controls import fail_without
from tests.site import PASSWORD, avisit, visit
from tests.written import note, record_of, signed_in, wrote  # noqa: F401 - fixtures

Patch = pytest.MonkeyPatch

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture(params=[DJANGO, OWN], ids=["Django's backend", "the package's backend"])
def _each_engine(request: pytest.FixtureRequest, cluster: Cluster) -> Iterator[None]:
    """Each kind of connection notices a write in its own way."""
    with engine(request.param):
        yield


class Later:
    """Work that a thread does in the scope in which it was begun, when it is told to."""

    def __init__(self, work: Callable[[], Any], *, at_once: bool = False) -> None:
        self._work = work
        self._may_go_on = threading.Event()
        if at_once:
            self._may_go_on.set()
        run = contextvars.copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run,))
        self._thread.start()

    def _run(self) -> None:
        try:
            assert self._may_go_on.wait(TIMEOUT)
            self._work()
        finally:
            connections.close_all()

    def go_on(self) -> None:
        """Have it done now."""
        self._may_go_on.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()


def update() -> None:
    """Write outside a transaction."""
    Note.objects.update(title="second")


def update_in_block() -> None:
    """Write inside a transaction."""
    with transaction.atomic():
        update()


def copy() -> None:
    """Write by what runs no wrapper of statements."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        change = "UPDATE notes_note SET title = 'second' RETURNING id"
        with cursor.copy(f"COPY ({change}) TO STDOUT") as rows:
            list(rows)


WAYS = {"statement": update, "transaction": update_in_block, "copy": copy}


def ask_nothing(request: HttpRequest) -> None:
    """Answer without a query."""


def ask(request: HttpRequest) -> None:
    """Find out who reads, and read."""
    assert request.user.is_authenticated
    assert Note.objects.get().title == "first"


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    return Note.objects.get().title


@pytest.mark.usefixtures("_each_engine")
@pytest.mark.parametrize("view", [ask_nothing, ask])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_a_thread_writes_after_the_response_is_seen(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    way: Any,
    view: Any,
) -> None:
    """Whether or not the view itself has asked the database for anything."""
    begun: list[Later] = []

    def action(request: HttpRequest) -> None:
        view(request)
        begun.append(Later(way))

    stand_still(cluster)
    visit(signed_in, action)
    begun[0].go_on()
    wrote(ann)
    assert visit(signed_in, title) == "second"


@pytest.mark.usefixtures("_each_engine")
def test_what_a_thread_commits_after_the_response_is_seen(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Of a transaction that has written before, a token of the response would say too little."""
    has_written, may_commit = threading.Event(), threading.Event()
    begun: list[Later] = []

    def work() -> None:
        with transaction.atomic():
            update()
            has_written.set()
            assert may_commit.wait(TIMEOUT)

    def action(request: HttpRequest) -> None:
        ask(request)
        begun.append(Later(work, at_once=True))
        assert has_written.wait(TIMEOUT)

    stand_still(cluster)
    visit(signed_in, action)
    for replica in cluster.replicas:
        replica.resume()
    stand_still(cluster)  # with all that the response's own token could say
    may_commit.set()
    begun[0].go_on()
    wrote(ann)
    assert visit(signed_in, title) == "second"


def test_what_a_task_writes_after_the_response_is_seen(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """A view may begin one, and answer."""

    async def main() -> str:
        client, may_go_on = AsyncClient(), asyncio.Event()
        await client.post("/login/", {"username": "ann", "password": PASSWORD})
        await sync_to_async(stand_still)(cluster)
        begun: list[asyncio.Task[None]] = []

        async def later() -> None:
            await may_go_on.wait()
            await Note.objects.aupdate(title="second")

        async def action(request: HttpRequest) -> None:
            begun.append(asyncio.create_task(later()))

        try:
            await avisit(client, action)
            may_go_on.set()
            await begun[0]
            found: str = await avisit(client, title, url="/run/")
        finally:
            await sync_to_async(connections.close_all)()
        return found

    assert asyncio.run(main()) == "second"
    wrote(ann)


def test_what_a_thread_writes_after_its_block_is_seen(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """The block may be entered anew: what is written inside is stored at its end, and once."""
    stand_still(cluster)
    block = scope(user=ann)
    with block:
        later = Later(update_in_block)
    later.go_on()
    wrote(ann)
    pop_stats()
    with block:
        update()
        update()
        assert "tokens_stored" not in get_stats()
    assert get_stats()["tokens_stored"] == 1


def test_the_token_stands_before_the_code_is_told_of_the_commit(ann: User, note: Note) -> None:
    """Who is told by it that the work is done may read at once."""
    found: list[Any] = []

    def work() -> None:
        with transaction.atomic():
            update()
            transaction.on_commit(lambda: found.append(record_of(ann)))
            assert record_of(ann) is None

    with scope(user=ann):
        later = Later(work)
    later.go_on()
    assert found == [wrote(ann)]


def test_what_a_stream_writes_is_stored_at_its_end(
    signed_in: Client, ann: User, note: Note
) -> None:
    """And not with each part, as if it had ended with its response."""

    def body() -> Iterator[bytes]:
        for _ in range(2):
            update()
            yield str(get_stats().get("tokens_stored", 0)).encode()

    parts = visit(signed_in, lambda request: StreamingHttpResponse(body())).streaming_content
    pop_stats()
    assert list(parts) == [b"0", b"0"]
    wrote(ann)


def test_a_cache_in_the_database_writes_for_nobody(ann: User, note: Note) -> None:
    """What it writes to keep a token would else be a write whose token is to be kept."""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE cached (cache_key text PRIMARY KEY, value text, expires timestamptz)"
        )
    store = GenericStore(DatabaseCache("cached", {}))
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finishing, "get_store", lambda alias: store)
            patch.setattr(floors, "get_store", lambda alias: store)
            with scope(user=ann) as opened:
                update()
        assert store.load([f"rr:default:{user_key(ann)}"])[0] is not None
        assert get_stats()["tokens_stored"] == 1
        assert not opened.cluster("default").has_pending
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE cached")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_what_a_forked_process_writes_is_seen(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """It has a copy of the scope that it was forked in, and nobody else is told what it writes there."""

    def action(request: HttpRequest) -> int:
        ask(request)
        connections.close_all()  # they are the parent's
        pid = os.fork()
        if pid == 0:
            try:
                update_in_block()
                os._exit(0)
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    stand_still(cluster)
    assert visit(signed_in, action) == 0
    wrote(ann)
    assert visit(signed_in, title) == "second"


def store_nothing_late(patch: Patch) -> None:
    for module in (on_primary, cursors, connection_class):
        patch.setattr(module, "finish_late", lambda connection: None)


def take_all_transactions(patch: Patch) -> None:
    patch.setattr(finishing, "has_begun", lambda raw: False)


def end_at_once(patch: Patch) -> None:
    patch.setattr(Scope, "has_ended", property(lambda self: True, lambda self, value: None))


def store_inside(patch: Patch) -> None:
    stays = SimpleNamespace(set=lambda frame: None, reset=lambda token: None)
    patch.setattr(finishing, "current_frame", stays)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("take_out", "test"),
    [
        (store_nothing_late, test_what_a_task_writes_after_the_response_is_seen),
        (store_nothing_late, test_what_a_thread_writes_after_its_block_is_seen),
        (store_nothing_late, test_what_a_forked_process_writes_is_seen),
        (store_nothing_late, test_the_token_stands_before_the_code_is_told_of_the_commit),
        (take_all_transactions, test_what_a_thread_commits_after_the_response_is_seen),
        (end_at_once, test_what_a_thread_writes_after_its_block_is_seen),
        (end_at_once, test_what_a_stream_writes_is_stored_at_its_end),
        (store_inside, test_a_cache_in_the_database_writes_for_nobody),
    ],
)
def test_without_its_rule_it_fails(
    take_out: Callable[[Patch], None],
    test: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    """Control: each test is about what is taken out."""
    fail_without(take_out, test, {}, request, AssertionError)


@pytest.mark.usefixtures("_each_engine")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_without_storing_it_a_late_write_is_not_seen(
    signed_in: Client, ann: User, note: Note, cluster: Cluster, way: Any
) -> None:
    """Control: no other rule has it seen."""
    with Patch.context() as patch:
        store_nothing_late(patch)
        with pytest.raises(AssertionError):
            test_what_a_thread_writes_after_the_response_is_seen(
                signed_in, ann, note, cluster, way, ask
            )
