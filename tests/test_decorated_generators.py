"""`use_primary` and `use_replica` around coroutines and generators."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async

from django_replica_router import current_scope, use_primary, use_replica
from django_replica_router.routing.balancers import least_in_flight
from django_replica_router.scopes.scope import Override, current_frame
from tests.decorating import (  # noqa: F401 - fixtures
    PRIMARY,
    REPLICA,
    REPORT,
    _counts,
    _leaves_nothing_behind,
    enter_a_replica,
    routes,
    seen,
)

# Coroutines


@routes
def test_coroutine_is_routed(route: Callable[[], Any], expected: Override) -> None:
    """An async function is routed across its awaits and in the threads that it calls."""

    @route()
    async def coroutine(value: int) -> list[Any]:
        before = seen()
        await asyncio.sleep(0)
        return [before, seen(), await sync_to_async(seen)(), value]

    async def main() -> None:
        assert await coroutine(5) == [expected, expected, expected, 5]
        assert seen() is None

    assert iscoroutinefunction(coroutine)
    asyncio.run(main())


def test_coroutine_is_routed_when_it_runs() -> None:
    """Calling an async function routes nothing yet: where it is awaited does not matter."""

    @use_primary
    async def coroutine() -> Any:
        return seen()

    async def main() -> None:
        waiting = coroutine()
        assert seen() is None
        with use_replica():
            assert await waiting == PRIMARY
            assert seen() == REPLICA

    asyncio.run(main())


def test_error_and_cancellation_of_a_coroutine_put_the_route_back() -> None:
    """A coroutine that fails or is cancelled leaves no route in its task."""

    @use_primary
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("inside")

    @use_primary
    async def hang() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        with pytest.raises(ValueError, match="inside"):
            await fail()
        assert seen() is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(hang(), 0.001)
        assert seen() is None

    asyncio.run(main())


def test_tasks_do_not_disturb_one_another() -> None:
    """Of coroutines gathered together each has its own route, and one without has none."""

    async def plain() -> list[Any]:
        found = []
        for _ in range(3):
            found.append(seen())
            await asyncio.sleep(0)
        return found

    async def main() -> None:
        work = [
            use_primary(plain)(),
            plain(),
            use_replica(plain)(),
            use_replica(max_lag=300)(plain)(),
        ]
        assert await asyncio.gather(*work) == [
            [PRIMARY] * 3,
            [None] * 3,
            [REPLICA] * 3,
            [REPORT] * 3,
        ]
        assert seen() is None

    asyncio.run(main())


def test_tasks_inherit_the_route_they_were_made_in() -> None:
    """gather() inside a block is routed as the block, and a nested route stays in its own task."""

    async def plain() -> Any:
        await asyncio.sleep(0)
        return seen()

    async def main() -> None:
        with use_primary():
            assert await asyncio.gather(plain(), use_replica(plain)(), plain()) == [
                PRIMARY,
                REPLICA,
                PRIMARY,
            ]
            assert seen() == PRIMARY

    asyncio.run(main())


# Generators


@routes
def test_generator_is_routed_step_by_step(route: Callable[[], Any], expected: Override) -> None:
    """Each step of a generator is routed, and what uses it between the steps is not."""

    @route()
    def generator(count: int) -> Iterator[Any]:
        for _ in range(count):
            yield seen()
        assert seen() == expected

    found = []
    for item in generator(3):
        found += [item, seen()]
    assert found == [expected, None] * 3


def test_generator_is_not_started_by_the_call() -> None:
    """Nothing of the generator runs before the first step."""
    began = []

    @use_primary
    def generator() -> Iterator[int]:
        began.append(True)
        yield 1

    iterator = generator()
    assert began == []
    assert next(iterator) == 1


def test_generator_takes_what_is_sent_and_returns() -> None:
    """send() reaches the generator in its route, and its return value reaches yield from."""

    @use_primary
    def generator() -> Generator[Any, Any, str]:
        got = [(yield seen()), (yield seen()), (yield seen())]
        return f"{got} {seen() == PRIMARY}"

    def outer() -> Generator[Any, Any, Any]:
        return (yield from generator())

    steps = outer()
    assert next(steps) == PRIMARY
    assert steps.send("a") == PRIMARY
    assert seen() is None
    assert steps.send("b") == PRIMARY
    with pytest.raises(StopIteration) as stop:
        steps.send("c")
    assert stop.value.value == "['a', 'b', 'c'] True"


def test_generator_is_thrown_into() -> None:
    """throw() reaches the generator in its route, which may go on or let the error out."""
    error = ValueError("thrown")

    @use_primary
    def generator() -> Generator[Any, Any, None]:
        try:
            yield 1
        except ValueError as caught:
            yield caught, seen()
        yield 2

    steps = generator()
    next(steps)
    assert steps.throw(error) == (error, PRIMARY)
    with pytest.raises(KeyError, match="let out"):
        steps.throw(KeyError("let out"))
    assert seen() is None
    with pytest.raises(StopIteration):
        next(steps)


def test_generator_is_closed_in_its_route() -> None:
    """close() lets the generator clean up, routed, and once; so does dropping it."""
    closed = []

    @use_primary
    def generator() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(seen())

    steps: Any = generator()
    next(steps)
    with use_replica():
        steps.close()
        assert seen() == REPLICA
    steps.close()
    assert closed == [PRIMARY]

    steps = generator()
    next(steps)
    del steps
    gc.collect()
    assert closed == [PRIMARY] * 2

    generator().close()  # type: ignore[attr-defined]
    assert closed == [PRIMARY] * 2


def test_error_of_a_generator_passes_unchanged() -> None:
    """What a generator raises is raised, and the route put back."""

    @use_primary
    def generator() -> Iterator[int]:
        yield 1
        raise ValueError("inside")

    steps = generator()
    next(steps)
    with pytest.raises(ValueError, match=r"^inside$"):
        next(steps)
    assert seen() is None


def test_generators_that_take_turns_keep_their_routes() -> None:
    """Generators of different routes, used in turn, each stay in their own."""

    def steps() -> Iterator[Any]:
        for _ in range(3):
            yield seen()

    turns = zip(use_primary(steps)(), steps(), use_replica(steps)(), strict=True)
    assert list(turns) == [(PRIMARY, None, REPLICA)] * 3


def test_generator_may_be_stepped_in_other_contexts() -> None:
    """A server may take each step in another thread or context."""

    @use_primary
    def generator() -> Iterator[Any]:
        while True:
            yield seen()

    steps = generator()
    assert [contextvars.copy_context().run(next, steps) for _ in range(3)] == [PRIMARY] * 3
    found: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append((next(steps), seen())))
        thread.start()
        thread.join()
    assert found == [(PRIMARY, None)] * 2


def test_steps_of_a_generator_share_one_scope() -> None:
    """What one step has written the next one knows, also where use_replica has opened the scope."""

    @use_replica
    def generator() -> Iterator[Any]:
        for _ in range(3):
            yield current_scope()

    first, *others = generator()
    assert first is not None
    assert [other is first for other in others] == [True, True]


# Async generators


@routes
def test_async_generator_is_routed_step_by_step(
    route: Callable[[], Any], expected: Override
) -> None:
    """Each step of an async generator is routed across its awaits, and what is between is not."""

    @route()
    async def generator(count: int) -> AsyncIterator[Any]:
        for _ in range(count):
            await asyncio.sleep(0)
            yield seen()
        assert seen() == expected

    async def main() -> list[Any]:
        found = []
        async for item in generator(3):
            found += [item, seen()]
        return found

    assert asyncio.run(main()) == [expected, None] * 3


def test_async_generator_takes_what_is_sent_and_thrown() -> None:
    """asend() and athrow() reach the generator in its route."""
    error = ValueError("thrown")

    @use_primary
    async def generator() -> AsyncGenerator[Any, Any]:
        got = yield seen()
        try:
            yield got, seen()
        except ValueError as caught:
            yield caught, seen()
        yield 2

    async def main() -> None:
        steps = generator()
        assert await anext(steps) == PRIMARY
        assert await steps.asend("a") == ("a", PRIMARY)
        assert await steps.athrow(error) == (error, PRIMARY)
        assert seen() is None
        with pytest.raises(KeyError, match="let out"):
            await steps.athrow(KeyError("let out"))
        with pytest.raises(StopAsyncIteration):
            await anext(steps)

    asyncio.run(main())


def test_async_generator_is_closed_in_its_route() -> None:
    """aclose() lets the generator clean up, routed, and once."""
    closed = []

    @use_primary
    async def generator() -> AsyncGenerator[int, None]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(seen())

    async def main() -> None:
        steps = generator()
        await anext(steps)
        with use_replica():
            await steps.aclose()
            assert seen() == REPLICA
        await steps.aclose()

    asyncio.run(main())
    assert closed == [PRIMARY]


def test_async_generator_may_be_stepped_by_other_tasks() -> None:
    """Each step may be taken by another task, which keeps no route of it."""

    @use_primary
    async def generator() -> AsyncIterator[Any]:
        while True:
            await asyncio.sleep(0)
            yield seen()

    async def main() -> list[Any]:
        steps = generator()

        async def step() -> Any:
            return await anext(steps), seen()

        found = [await asyncio.create_task(step()) for _ in range(3)]
        await steps.aclose()  # type: ignore[attr-defined]
        return found

    assert asyncio.run(main()) == [(PRIMARY, None)] * 3


def test_steps_of_an_async_generator_share_one_scope() -> None:
    """What one step has written the next one knows, also where use_replica has opened the scope."""

    @use_replica
    async def generator() -> AsyncIterator[Any]:
        for _ in range(3):
            yield current_scope()

    async def main() -> list[Any]:
        return [found async for found in generator()]

    first, *others = asyncio.run(main())
    assert first is not None
    assert [other is first for other in others] == [True, True]


@pytest.mark.usefixtures("_counts")
@pytest.mark.parametrize("end", ["exhausted", "closed", "failed"])
@pytest.mark.parametrize("is_async", [False, True])
def test_generator_gives_back_what_its_scope_holds(end: str, is_async: bool) -> None:
    """However a generator ends whose scope use_replica has opened, no replica looks busy for ever."""

    @use_replica
    def generator() -> Iterator[int]:
        enter_a_replica()
        yield 1
        if end == "failed":
            raise ValueError("inside")

    @use_replica
    async def async_generator() -> AsyncGenerator[int, None]:
        enter_a_replica()
        yield 1
        if end == "failed":
            raise ValueError("inside")

    def run_sync() -> None:
        steps: Any = generator()
        next(steps)
        assert least_in_flight.counts == {"replica1": 1}
        steps.close() if end == "closed" else next(steps)

    async def run_async() -> None:
        steps = async_generator()
        await anext(steps)
        assert least_in_flight.counts == {"replica1": 1}
        await (steps.aclose() if end == "closed" else anext(steps))

    errors = {"exhausted": (StopIteration, StopAsyncIteration), "failed": (ValueError,)}
    with pytest.raises(errors[end]) if end in errors else nullcontext():
        asyncio.run(run_async()) if is_async else run_sync()
    assert least_in_flight.counts == {"replica1": 0}


@pytest.mark.parametrize("block", [use_primary, use_primary(), use_replica(max_lag=5.0)])
@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_what_belongs_to_a_class_may_be_decorated_from_outside(block: Any, kind: Any) -> None:
    """It stays what it is."""

    class Handler:
        work = block(kind(lambda *args: (args, current_frame.get().override)))

    args, override = Handler().work()
    assert args == ((Handler,) if kind is classmethod else ())
    assert override is not None
