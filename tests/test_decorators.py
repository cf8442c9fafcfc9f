"""use_primary, use_replica and scope: as blocks and as decorators of everything that can be called."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import io
import math
import pickle
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import connections
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.test import RequestFactory
from django.views import View

from django_replica_router import current_scope, registry, scope, use_primary, use_replica
from django_replica_router.balancers import least_in_flight
from django_replica_router.conf import get_config
from django_replica_router.context import Override, WriteMark, current_frame
from django_replica_router.errors import ConfigurationError
from django_replica_router.keys import EVERYBODY, digest, store_key
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.monitor import Monitor
from django_replica_router.policy import ReplicaState
from django_replica_router.readings import Reading, Sample
from django_replica_router.reads import route_read
from django_replica_router.stores import LocMemStore, get_store
from django_replica_router.tokens import Position, Record
from django_replica_router.writes import finish_scope
from testproject.notes.models import Note

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
PRIMARY = Override(primary=True)
REPLICA = Override(primary=False)
REPORT = Override(primary=False, max_lag=300.0)

ROUTES: list[tuple[Callable[[], Any], Override]] = [
    (use_primary, PRIMARY),
    (use_replica, REPLICA),
    (lambda: use_replica(max_lag=300.0), REPORT),
]
routes = pytest.mark.parametrize(
    ("route", "expected"), ROUTES, ids=["primary", "replica", "report"]
)


def seen() -> Override | None:
    """Return what the calling code is routed by."""
    return current_frame.get().override


def template(text: str = "{{ seen.primary }}") -> Any:
    """Return a template that shows how it is routed."""
    return engines["django"].from_string(text)


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """After each test the routing is what it was before."""
    before = current_frame.get()
    yield
    assert current_frame.get() is before


# Blocks


@routes
def test_block_routes_what_is_inside(route: Callable[[], Any], expected: Override) -> None:
    """Inside a block its override holds, and behind it none."""
    with route():
        assert seen() == expected
    assert seen() is None


def test_blocks_nest_and_put_back_the_one_before() -> None:
    """Each block holds until its end, and what was before holds again then."""
    with use_primary():
        with use_replica(max_lag=300.0):
            with use_primary():
                assert seen() == PRIMARY
            assert seen() == REPORT
        assert seen() == PRIMARY
    assert seen() is None


def test_block_puts_back_the_one_before_after_an_error() -> None:
    """An exception leaves the block as it is, and its override behind."""
    error = ValueError("inside")
    with use_replica():
        with pytest.raises(ValueError, match=r"^inside$") as caught, use_primary():
            raise error
        assert caught.value is error
        assert seen() == REPLICA


def test_one_object_serves_for_several_blocks() -> None:
    """A block may be entered again, also inside itself."""
    block = use_primary()
    with block:
        with use_replica(), block:
            assert seen() == PRIMARY
        assert seen() == PRIMARY
    with block:
        assert seen() == PRIMARY


def test_one_object_serves_for_tasks_at_the_same_time() -> None:
    """A block that a module keeps may be entered by tasks whose blocks overlap."""
    block = use_primary()

    async def work(inside: asyncio.Event, leave: asyncio.Event) -> Override | None:
        with block:
            inside.set()
            await leave.wait()
            assert seen() == PRIMARY
        return seen()

    async def main() -> list[Override | None]:
        events = [asyncio.Event() for _ in range(4)]
        first = asyncio.create_task(work(events[0], events[1]))
        second = asyncio.create_task(work(events[2], events[3]))
        await events[0].wait()
        await events[2].wait()
        events[1].set()  # the one that came first leaves first
        result = [await first]
        events[3].set()
        return [*result, await second]

    assert asyncio.run(main()) == [None, None]


def test_block_keeps_the_scope() -> None:
    """A block inside a scope changes the route and not the scope."""
    with scope() as outer:
        for route, _ in ROUTES:
            with route():
                assert current_scope() is outer


def test_replica_block_outside_a_scope_opens_one() -> None:
    """use_replica has a scope to remember what is written; use_primary needs none."""
    with use_primary():
        assert current_scope() is None
    with use_replica():
        first = current_scope()
        assert first is not None
        assert first.identity.users() == ()
        with use_primary():
            assert current_scope() is first
    assert current_scope() is None


@pytest.fixture
def _counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count scopes in flight from nought."""
    monkeypatch.setattr(least_in_flight, "_counts", {})


def enter_a_replica() -> None:
    """Have the present scope counted as one that works with replica1."""
    current = current_scope()
    assert current is not None
    least_in_flight.enter("replica1")
    current.cluster("default").entered.append("replica1")


@pytest.mark.usefixtures("_counts")
def test_scope_of_a_replica_block_gives_back_what_it_holds() -> None:
    """A block that has opened a scope ends it, so that no replica looks busy for ever."""
    with use_replica():
        enter_a_replica()
    assert least_in_flight._counts == {"replica1": 0}


@pytest.mark.usefixtures("_counts")
def test_replica_block_inside_a_scope_leaves_that_open() -> None:
    """A block ends no scope but its own."""
    with scope():
        with use_replica():
            enter_a_replica()
        assert least_in_flight._counts == {"replica1": 1}
    assert least_in_flight._counts == {"replica1": 0}


# What use_replica does not weaken


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Monitor:
    """Return a monitor without threads at second 1000, of a primary that stands at 500."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": ["replica1"]}, "WAIT": 0, "TOKEN_TTL": 60}
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": uuid.uuid4().hex}}
    monitor = Monitor("default", ["replica1"], 1.0, clock=lambda: 1000.0)
    monkeypatch.setitem(registry._registry.monitors, "default", monitor)
    monkeypatch.setattr(connections["replica1"], "ensure_connection", lambda: None)
    monkeypatch.setattr("django_replica_router.writes.locate", lambda *args: Position(1, 500))
    monkeypatch.setattr(LocMemStore, "may_forget", lambda self: False)
    get_store("default").merge(
        {store_key("default", EVERYBODY): Record(Position(1, 1), 1 << 47)},
        {store_key("default", EVERYBODY): 60.0},
    )
    return monitor


def publish(monitor: Monitor, age: float) -> None:
    """Let the replica have replayed up to 100, and its data be of that age."""
    monitor.publish_sample(Sample(1000.0 - age, Position(1, 100)))
    reading = Reading(ReplicaState.STREAMING, watermark=100, read_at=1000.0)
    monitor.publish_reading("replica1", reading)


def read() -> str:
    """Return the alias that a read of the present code goes to."""
    return route_read("default", Note, get_config(), current_frame.get())[0]


def test_replica_serves_whom_it_may(monitor: Monitor) -> None:
    """Without any write a read inside a scope goes to the replica, and so does one that asks for it."""
    publish(monitor, age=0.0)
    with scope(user=5):
        assert read() == "replica1"
        with use_primary():
            assert read() == "default"
    with use_replica():
        assert read() == "replica1"


@pytest.mark.parametrize("is_stored", [False, True])
def test_replica_must_have_what_the_scope_wrote(monitor: Monitor, is_stored: bool) -> None:
    """use_replica after a write does not read what was before it, nor once the token is stored."""
    publish(monitor, age=0.0)
    with scope(user=5) as current:
        assert read() == "replica1"
        current.cluster("default").add_write(WriteMark())
        if is_stored:
            finish_scope(current)  # as before a streaming response leaves
        with use_replica():
            assert read() == "default"


def test_larger_lag_does_not_outlive_tokens(monitor: Monitor) -> None:
    """A replica that lags more than a token lives may lack an expired write: it does not serve."""
    written_ms = round(time.time() * 1000) - 100_000
    key = store_key("default", digest("user", "5"))
    get_store("default").merge({key: Record(Position(1, 500), written_ms + 60_000)}, {key: 60.0})
    publish(monitor, age=200.0)
    with scope(user=5), use_replica(max_lag=300.0):
        assert read() == "default"


def test_larger_lag_admits_a_replica_that_lags_more(monitor: Monitor) -> None:
    """A lag between the setting and the life of a token is granted."""
    publish(monitor, age=30.0)
    with scope(user=5):
        assert read() == "default"
    with scope(user=6), use_replica(max_lag=40.0):
        assert read() == "replica1"


# Functions


@routes
def test_function_is_routed(route: Callable[[], Any], expected: Override) -> None:
    """A decorated function is routed while it runs, with its arguments and its result."""

    @route()
    def function(*args: int, **kwargs: int) -> tuple[Any, ...]:
        return seen(), args, kwargs

    assert function(1, 2, a=3) == (expected, (1, 2), {"a": 3})
    assert seen() is None


@pytest.mark.parametrize(
    ("decorator", "expected"), [(use_primary, PRIMARY), (use_replica, REPLICA)]
)
def test_parentheses_may_be_left_out(decorator: Any, expected: Override) -> None:
    """The decorator works bare on a function, coroutine function, generator and async generator."""

    @decorator
    def function() -> Any:
        return seen()

    @decorator
    async def coroutine() -> Any:
        return seen()

    @decorator
    def generator() -> Any:
        yield seen()

    @decorator
    async def async_generator() -> Any:
        yield seen()

    async def main() -> list[Any]:
        return [await coroutine(), *[item async for item in async_generator()]]

    assert [function(), *generator(), *asyncio.run(main())] == [expected] * 4


def test_function_keeps_its_looks() -> None:
    """Name, docstring, and the marks that Django puts on views, are kept."""

    def view() -> None:
        """Show."""

    view.csrf_exempt = True  # type: ignore[attr-defined]
    decorated: Any = use_primary(view)
    assert (decorated.__name__, decorated.__doc__, decorated.csrf_exempt) == ("view", "Show.", True)
    assert decorated.__wrapped__ is view


def test_error_of_a_function_passes_unchanged() -> None:
    """What a decorated function raises is raised, and the route put back."""
    error = ValueError("inside")

    @use_primary
    def function() -> None:
        raise error

    with use_replica():
        with pytest.raises(ValueError, match=r"^inside$") as caught:
            function()
        assert caught.value is error
        assert seen() == REPLICA


def test_innermost_decorator_wins() -> None:
    """Of two decorators the one next to the function holds, and so does one of a callee."""

    @use_replica
    @use_primary
    def both() -> Any:
        return seen()

    @use_replica
    def caller() -> Any:
        return seen(), both(), seen()

    assert both() == PRIMARY
    assert caller() == (REPLICA, PRIMARY, REPLICA)


def test_function_may_call_itself() -> None:
    """Recursion enters and leaves in order."""

    @use_primary
    def countdown(number: int) -> list[Any]:
        return [seen(), *(countdown(number - 1) if number else []), seen()]

    assert countdown(3) == [PRIMARY] * 8


def test_methods_are_routed() -> None:
    """Methods of every kind may be decorated."""

    class Thing:
        @use_primary
        def plain(self) -> Any:
            return type(self).__name__, seen()

        @classmethod
        @use_replica
        def of_class(cls) -> Any:
            return cls.__name__, seen()

        @staticmethod
        @use_primary()
        def static() -> Any:
            return "Thing", seen()

        @property
        @use_replica(max_lag=300.0)
        def value(self) -> Any:
            return type(self).__name__, seen()

        @use_primary
        def __call__(self) -> Any:
            return type(self).__name__, seen()

    thing = Thing()
    assert [thing.plain(), thing.of_class(), thing.static(), thing.value, thing()] == [
        ("Thing", route) for route in (PRIMARY, REPLICA, PRIMARY, REPORT, PRIMARY)
    ]


def test_other_callables_are_routed() -> None:
    """A partial function, an object that can be called, and a built-in may be decorated."""

    class SyncCallable:
        def __call__(self) -> Any:
            return seen()

    class AsyncCallable:
        async def __call__(self) -> Any:
            await asyncio.sleep(0)
            return seen()

    assert use_primary(functools.partial(lambda _: seen(), 1))() == PRIMARY
    assert use_primary(SyncCallable())() == PRIMARY
    assert use_primary(len)("abc") == 3

    async def main() -> Any:
        return await use_primary(AsyncCallable())()

    assert asyncio.run(main()) == PRIMARY


def test_threads_do_not_disturb_one_another() -> None:
    """A decorated function that runs in many threads at once is routed in each, and leaves none."""
    barrier = threading.Barrier(8)
    found: list[Any] = []

    @use_primary
    def function() -> Any:
        barrier.wait()
        inside = seen()
        barrier.wait()
        return inside

    def work(decorated: bool) -> None:
        before = seen()
        inside = function() if decorated else (barrier.wait(), barrier.wait(), seen())[2]
        found.append((decorated, before, inside, seen()))

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(8)]
    with use_replica():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen() == REPLICA
    assert sorted(found, key=str) == sorted(
        [(True, None, PRIMARY, None)] * 4 + [(False, None, None, None)] * 4, key=str
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
        assert least_in_flight._counts == {"replica1": 1}
        steps.close() if end == "closed" else next(steps)

    async def run_async() -> None:
        steps = async_generator()
        await anext(steps)
        assert least_in_flight._counts == {"replica1": 1}
        await (steps.aclose() if end == "closed" else anext(steps))

    errors = {"exhausted": (StopIteration, StopAsyncIteration), "failed": (ValueError,)}
    with pytest.raises(errors[end]) if end in errors else nullcontext():
        asyncio.run(run_async()) if is_async else run_sync()
    assert least_in_flight._counts == {"replica1": 0}


# Views


@pytest.fixture
def request_() -> Any:
    """Return a request."""
    return RequestFactory().get("/")


def test_class_based_view_is_routed(request_: Any) -> None:
    """Every handler of a decorated view class is routed, and the class it inherits from is not."""

    class Base(View):
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    @use_primary
    class Decorated(Base):
        pass

    class Further(Decorated):
        def get(self, request: Any) -> Any:
            return HttpResponse(f"further {seen()!r}")

    assert Decorated.as_view()(request_).content.decode() == repr(PRIMARY)
    assert Further.as_view()(request_).content.decode() == f"further {PRIMARY!r}"
    assert Base.as_view()(request_).content.decode() == "None"
    assert "dispatch" not in vars(Base)


def test_async_class_based_view_is_routed(request_: Any) -> None:
    """Async handlers of a decorated view class are routed when they are awaited."""

    @use_primary()
    class Decorated(View):
        async def get(self, request: Any) -> Any:
            await asyncio.sleep(0)
            return HttpResponse(repr(seen()))

    view = Decorated.as_view()
    assert iscoroutinefunction(view)

    async def main() -> Any:
        waiting = view(request_)
        assert seen() is None
        return await waiting

    assert asyncio.run(main()).content.decode() == repr(PRIMARY)


@pytest.mark.parametrize("is_async", [False, True])
def test_result_of_as_view_is_routed(is_async: bool, request_: Any) -> None:
    """What as_view() returns may be decorated in the URL configuration, sync and async."""

    class Sync(View):
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    class Async(View):
        async def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    view = use_primary((Async if is_async else Sync).as_view())
    assert iscoroutinefunction(view) is is_async
    response: Any = view(request_)
    if is_async:

        async def main(waiting: Any) -> Any:
            return await waiting

        response = asyncio.run(main(response))
    assert response.content.decode() == repr(PRIMARY)


def test_handler_of_a_view_class_is_routed(request_: Any) -> None:
    """A single handler may be decorated, inside a class that is not."""

    class Plain(View):
        @use_primary
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

        def head(self, request: Any) -> Any:
            return HttpResponse(headers={"Seen": repr(seen())})

    assert Plain.as_view()(request_).content.decode() == repr(PRIMARY)
    assert Plain.as_view()(RequestFactory().head("/"))["Seen"] == "None"


@pytest.mark.parametrize(
    "decorate", [use_primary, use_replica, use_primary(), use_replica(max_lag=3)]
)
def test_other_class_is_refused(decorate: Any) -> None:
    """A class that is no view raises a sentence that names it and says what to do."""

    class Thing:
        pass

    message = (
        f"{Thing!r} cannot be decorated: expected a function, or a class-based view with a method "
        f"dispatch(). Decorate its methods."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        decorate(Thing)


# Responses that are evaluated later


@pytest.mark.parametrize("kind", [SimpleTemplateResponse, TemplateResponse])
def test_template_response_is_rendered_in_the_route(kind: Any, request_: Any) -> None:
    """A template is rendered after the view has returned, in the view's route."""

    @use_primary
    def view(request: Any) -> Any:
        args = (template(), {"seen": seen_by_template})
        return kind(*args) if kind is SimpleTemplateResponse else kind(request, *args)

    response = view(request_)
    response.add_post_render_callback(lambda response: after.append(seen()))
    after: list[Any] = []
    with use_replica():
        assert response.render() is response
        assert seen() == REPLICA
    assert response.content == b"True"
    assert after == [PRIMARY]


def seen_by_template() -> Override | None:
    """Return what the template is routed by, when it is rendered."""
    return seen()


def test_rendered_response_can_be_pickled() -> None:
    """A response is cached after it was rendered: nothing of the route is left in it."""
    response = use_primary(lambda: SimpleTemplateResponse(template("text")))()
    response.render()
    assert pickle.loads(pickle.dumps(response)).content == b"text"  # noqa: S301 - made here
    assert "render" not in vars(response)


def test_response_that_is_rendered_already_is_left_alone() -> None:
    """A response which the view has rendered itself is returned as it is."""

    @use_primary
    def view() -> Any:
        return SimpleTemplateResponse(template(), {"seen": seen_by_template}).render()

    response = view()
    assert response.content == b"True"
    assert "render" not in vars(response)


def test_innermost_decorator_wins_for_a_template_response(request_: Any) -> None:
    """Two decorators around one template response render it once, in the route of the inner one."""

    @use_replica
    class Decorated(View):
        @use_primary
        def get(self, request: Any) -> Any:
            return TemplateResponse(request, template(), {"seen": seen_by_template})

    assert Decorated.as_view()(request_).render().content == b"True"


def test_async_view_returns_a_template_response() -> None:
    """What an async view returns is rendered in its route, too, in the thread that Django uses."""

    @use_primary
    async def view() -> Any:
        return SimpleTemplateResponse(template(), {"seen": seen_by_template})

    async def main() -> Any:
        response = await view()
        return await sync_to_async(response.render)()

    assert asyncio.run(main()).content == b"True"


def test_stream_is_made_in_the_route() -> None:
    """The parts of a streaming response are made after the view has returned, in its route."""

    def parts() -> Iterator[str]:
        yield f"{seen() == PRIMARY} "
        yield f"{seen() == PRIMARY}"

    def view() -> Any:
        return StreamingHttpResponse(parts())

    found = []
    for part in use_primary(view)():
        found += [part, seen()]
    assert found == [b"True ", None, b"True", None]
    assert b"".join(view()) == b"False False"


def test_stream_of_any_iterable_is_made_in_the_route() -> None:
    """A list, a map or a class that iterates may be streamed, and its bytes are the same."""

    class Parts:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> str:
            if not (left := getattr(self, "left", 2)):
                raise StopIteration
            self.left = left - 1
            return f"{seen() == PRIMARY} "

    content: Any
    for content, expected in (
        (["a", b"b"], b"ab"),
        (map(str, [1, 2]), b"12"),
        (Parts(), b"True True "),
    ):
        response = use_primary(lambda content=content: StreamingHttpResponse(content))()
        assert b"".join(response) == expected


def test_closing_a_response_closes_its_stream() -> None:
    """A client that goes away ends the generator behind a routed stream, once."""
    closed = []

    def parts() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(seen())

    response = use_primary(lambda: StreamingHttpResponse(parts()))()
    assert next(iter(response)) == b"a"
    response.close()
    assert len(closed) == 1


def test_async_stream_is_made_in_the_route() -> None:
    """The parts of an async streaming response are made in the view's route."""

    async def parts() -> AsyncIterator[str]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield f"{seen() == PRIMARY} "

    class Parts:
        def __aiter__(self) -> Any:
            return parts()

    @use_primary
    async def view(content: Any) -> Any:
        return StreamingHttpResponse(content)

    async def main() -> None:
        for content in (parts(), Parts()):
            response = await view(content)
            assert response.is_async
            found = []
            async for part in response:
                found += [part, seen()]
            assert found == [b"True ", None] * 2

    asyncio.run(main())


def test_innermost_decorator_wins_for_a_stream() -> None:
    """Two decorators around one stream leave it in the route of the inner one."""

    def parts() -> Iterator[str]:
        yield f"{seen() == PRIMARY} "
        yield f"{seen() == PRIMARY}"

    view = use_replica(use_primary(lambda: StreamingHttpResponse(parts())))
    assert b"".join(view()) == b"True True"


def test_file_is_left_to_the_server() -> None:
    """A file response keeps its file, which a server may send by its own means."""
    file = io.BytesIO(b"content")
    response = use_primary(lambda: FileResponse(file))()
    assert response.file_to_stream is file
    assert b"".join(response) == b"content"


@pytest.mark.parametrize(
    "result", [None, 0, "text", HttpResponse("x"), SimpleNamespace(a=1)], ids=repr
)
def test_other_results_are_returned_as_they_are(result: Any) -> None:
    """A result that is complete is handed on, the very object."""
    assert use_primary(lambda: result)() is result


# Arguments


@pytest.mark.parametrize(
    "max_lag", [-1, -0.001, math.nan, math.inf, -math.inf, "5", True, False, 1j, [5]], ids=repr
)
def test_lag_that_is_no_number_of_seconds_is_refused(max_lag: Any) -> None:
    """A wrong max_lag raises a sentence with the value, when it is written and not when it is used."""
    message = f"max_lag should be a number of seconds, 0 or more, or None, not {max_lag!r}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        use_replica(max_lag=max_lag)


@pytest.mark.parametrize("max_lag", [0, 0.0, 2, 2.5, 1e9, None])
def test_lag_reaches_the_code_inside(max_lag: float | None) -> None:
    """The allowed lag is what the block or function is routed by."""
    with use_replica(max_lag=max_lag):
        assert seen() == Override(primary=False, max_lag=max_lag)
    assert use_replica(max_lag=max_lag)(seen)() == Override(primary=False, max_lag=max_lag)


@pytest.mark.parametrize("target", [30, 2.5, "replica1"], ids=repr)
def test_something_that_cannot_be_called_is_refused(target: Any) -> None:
    """A lag that is passed by position raises an error at once, and not a puzzle later."""
    for decorator in (use_primary, use_replica):
        with pytest.raises(ConfigurationError, match=re.escape(repr(target))):
            decorator(target)


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
            inner.cluster("other").floor = None
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
        outer.cluster("other").floor = None
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
    assert least_in_flight._counts == {"replica1": 0}


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
    assert least_in_flight._counts == {"replica1": 0}


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
    assert least_in_flight._counts == {"replica1": 1}
    response.close()
    assert least_in_flight._counts == {"replica1": 0}
