"""`use_primary`, `use_replica` and `scope` as blocks and around functions."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connections

from django_replica_router import current_scope, scope, use_primary, use_replica
from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import carrying
from django_replica_router.recording.finishing import finish_scope
from django_replica_router.recording.tracking import tracked_key
from django_replica_router.replicas import registry
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Reading, Sample
from django_replica_router.routing.balancers import least_in_flight
from django_replica_router.routing.reads import route_read
from django_replica_router.scopes.keys import EVERYBODY, digest, store_key
from django_replica_router.scopes.scope import Override, current_frame
from django_replica_router.scopes.signing import Token
from django_replica_router.scopes.written import WriteMark
from django_replica_router.stores.store import LocMemStore, get_store
from django_replica_router.values.carried import Entry
from django_replica_router.values.tokens import Position, Record
from testproject.notes.models import Note
from tests.decorating import (  # noqa: F401 - fixtures
    PRIMARY,
    REPLICA,
    REPORT,
    ROUTES,
    _counts,
    _leaves_nothing_behind,
    enter_a_replica,
    routes,
    seen,
)

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


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


@pytest.mark.usefixtures("_counts")
def test_scope_of_a_replica_block_gives_back_what_it_holds() -> None:
    """A block that has opened a scope ends it, so that no replica looks busy for ever."""
    with use_replica():
        enter_a_replica()
    assert least_in_flight.counts == {"replica1": 0}


@pytest.mark.usefixtures("_counts")
def test_replica_block_inside_a_scope_leaves_that_open() -> None:
    """A block ends no scope but its own."""
    with scope():
        with use_replica():
            enter_a_replica()
        assert least_in_flight.counts == {"replica1": 1}
    assert least_in_flight.counts == {"replica1": 0}


# What use_replica does not weaken


@pytest.fixture
def monitor(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Monitor:
    """Return a monitor without threads at second 1000, of a primary that stands at 500."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": ["replica1"]}, "WAIT": 0, "TOKEN_TTL": 60}
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": uuid.uuid4().hex}}
    monitor = Monitor("default", ["replica1"], 1.0, clock=lambda: 1000.0)
    monkeypatch.setitem(registry._registry.monitors, "default", monitor)
    monkeypatch.setitem(registry._registry.names, "default", None)
    monkeypatch.setattr(connections["replica1"], "ensure_connection", lambda: None)
    monkeypatch.setattr(
        "django_replica_router.recording.finishing.locate", lambda *args: Position(1, 500)
    )
    monkeypatch.setattr(LocMemStore, "may_forget", lambda self: False)
    get_store("default").merge(
        {store_key("default", EVERYBODY): Record(Position(1, 1), 1 << 47)},
        {store_key("default", EVERYBODY): 60.0},
    )
    return monitor


def publish(monitor: Monitor, age: float) -> None:
    """Let the replica have replayed up to 100, and its data be of that age."""
    monitor.answers.publish_sample(Sample(1000.0 - age, Position(1, 100)))
    reading = Reading(ReplicaState.STREAMING, watermark=100, read_at=1000.0)
    monitor.answers.publish_reading("replica1", reading)


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


def by_key(lsn: int) -> Any:
    """Return a scope that sees what was written under a key, whose record has expired."""
    block = scope()
    block.scope.see_key(tracked_key("order:7"))
    return block


def by_token(lsn: int) -> Any:
    """Return a scope that goes by a token of a position, which has expired."""
    record = Record(Position(1, lsn), round(time.time() * 1000) - 40_000)
    return scope(token=Token({SYSTEM: Entry(record)}))


def by_cookie(lsn: int) -> Any:
    """Return a scope of somebody without a session, whose cookie has expired."""
    return scope()


SYSTEM = 7


@pytest.mark.parametrize(
    "settings_of_lag", [{"FALLBACK_LAG": 300.0}, {}], ids=["fallback", "block"]
)
@pytest.mark.parametrize(
    ("block", "lsn", "expected"),
    [
        (by_key, 500, "default"),
        (by_token, 500, "default"),
        (by_token, 100, "replica1"),  # it has replayed that
        (by_cookie, 500, "default"),
    ],
)
def test_larger_lag_does_not_outlive_what_binds_nobody_in_particular(
    block: Any,
    lsn: int,
    expected: str,
    settings_of_lag: dict[str, float],
    monitor: Monitor,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key, a token that came along, and a cookie bind whose user nobody knows, too."""
    monkeypatch.setattr(carrying, "system_of", lambda primary: SYSTEM)
    own = {"COOKIE": block is by_cookie, **settings_of_lag}
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **own}
    max_lag = None if settings_of_lag else 300.0
    publish(monitor, age=200.0)
    with block(lsn), use_replica(max_lag=max_lag):
        assert read() == expected
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "COOKIE": False}
    with scope(), use_replica(max_lag=max_lag):
        assert read() == "replica1"  # nobody, of whom nothing was ever told


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
