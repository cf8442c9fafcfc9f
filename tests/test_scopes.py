"""`scope` as a block."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Generator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.http import StreamingHttpResponse

from django_replica_router import current_scope, scope
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.routing.balancers import least_in_flight
from django_replica_router.scopes.keys import digest
from django_replica_router.scopes.scope import current_frame
from django_replica_router.scopes.written import WriteMark
from tests.decorating import _counts, _leaves_nothing_behind, enter_a_replica, request_  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# Scopes


def test_scope_is_there_inside_its_block() -> None:
    """Inside scope() there is a scope, behind it none, nested or after an error."""
    with scope() as outer:
        assert current_scope() is outer
        with scope() as inner:
            assert current_scope() is inner
        assert current_scope() is outer
        with pytest.raises(ValueError, match="inside"), scope():
            raise ValueError("inside")
        assert current_scope() is outer
    assert current_scope() is None


def test_async_scope_is_there_inside_its_block() -> None:
    """``async with`` opens the same scope, which tasks and threads inside share."""

    async def main() -> None:
        async with scope() as outer:
            assert await asyncio.gather(sync_to_async(current_scope)(), child()) == [outer, outer]
            async with scope() as inner:
                assert current_scope() is inner
            assert current_scope() is outer
        assert current_scope() is None

    async def child() -> Any:
        return current_scope()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ({}, []),
        ({"user": None}, []),
        ({"user": 5}, ["5"]),
        ({"user": 0}, ["0"]),
        ({"user": SimpleNamespace(pk=5)}, ["5"]),
        ({"user": SimpleNamespace(pk=None)}, []),
        ({"users": [5, SimpleNamespace(pk=6)]}, ["5", "6"]),
        ({"user": "a", "users": iter(["b"])}, ["a", "b"]),
    ],
    ids=range(8),
)
def test_scope_works_for_whom_it_names(arguments: Any, keys: list[str]) -> None:
    """Users are named by object or primary key, one or several; an anonymous one is nobody."""
    with scope(**arguments) as opened:
        assert opened.identity.users() == tuple(digest("user", key) for key in keys)
        assert opened.identity.session() is None
        assert opened.identity.credential() is None


def test_writes_of_an_inner_scope_are_the_outer_ones_too() -> None:
    """What was written inside counts as written outside, with its transactions."""
    transaction = object()
    with scope() as outer:
        with scope() as inner:
            inner.cluster("default").add_write(WriteMark([transaction], uncertain=True))
            inner.cluster("other").reader.floor = None
        state = outer.cluster("default")
        assert state.wrote
        assert state.pending is not None
        assert state.pending.transactions == [transaction]
        assert state.pending.uncertain
        assert not outer.cluster("other").wrote


def test_inner_scope_counts_the_writes_of_the_outer_one_as_its_own() -> None:
    """It reads what was written, and leaves it to the outer scope to store a token for that."""
    with scope() as outer:
        outer.cluster("default").add_write(WriteMark())
        outer.cluster("other").reader.floor = None
        with scope() as inner:
            assert inner.cluster("default").wrote
            assert not inner.cluster("default").has_pending
            assert not inner.cluster("other").wrote


@pytest.mark.usefixtures("_counts")
def test_scope_may_be_left_in_another_context() -> None:
    """As where a generator that was left half-way is closed by somebody else."""

    def steps() -> Generator[int, None, None]:
        with scope():
            enter_a_replica()
            yield 1

    generator = steps()
    before = current_frame.get()
    contextvars.copy_context().run(next, generator)
    generator.close()
    assert current_frame.get() is before
    assert least_in_flight.counts == {"replica1": 0}


@pytest.mark.usefixtures("_counts")
@pytest.mark.parametrize("is_async", [False, True])
def test_scope_gives_back_what_it_holds(is_async: bool) -> None:
    """At its end, and after an error, a scope is not counted as in flight any more."""

    def run_sync() -> None:
        with scope():
            enter_a_replica()
            raise ValueError("inside")

    async def run_async() -> None:
        async with scope():
            enter_a_replica()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        asyncio.run(run_async()) if is_async else run_sync()
    assert least_in_flight.counts == {"replica1": 0}


@pytest.mark.usefixtures("_counts")
@pytest.mark.parametrize("is_async", [False, True])
def test_stream_that_nobody_reads_gives_back_what_its_scope_holds(
    is_async: bool, request_: Any
) -> None:
    """Where the client has hung up before the first part, the response is closed, and that is all."""

    async def parts() -> AsyncGenerator[str, None]:
        yield "part"

    def view(request: Any) -> StreamingHttpResponse:
        enter_a_replica()
        return StreamingHttpResponse(parts() if is_async else iter(["part"]))

    response: Any = ReplicaRouterMiddleware(view)(request_)
    assert least_in_flight.counts == {"replica1": 1}
    response.close()
    assert least_in_flight.counts == {"replica1": 0}
