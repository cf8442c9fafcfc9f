"""Times ``db_for_read`` inside requests; runs in a process with a contender's settings."""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from statistics import median
from typing import Any

import redis
from django.conf import settings
from django.db import router
from django.test import Client

from benchmarks.contenders import PRIMARY
from benchmarks.probe import inside_request
from django_replica_router.stores.redis import RedisServer
from testproject.notes.models import Note

_CHUNKS = 25
_READY_SECONDS = 20.0


def _client(session: str | None) -> Client:
    client = Client()
    if session is not None:
        client.cookies[settings.SESSION_COOKIE_NAME] = session
    return client


class _Browsers:
    """One browser for each case, kept over the rounds as a visitor keeps his cookies."""

    by_case: dict[str, Client] = {}  # noqa: RUF012 - one process, one set


def browser(case: str, session: str | None) -> Client:
    """Return the browser of a case, made on first use."""
    if case not in _Browsers.by_case:
        _Browsers.by_case[case] = _client(session)
    return _Browsers.by_case[case]


def prepare(case: str, session: str | None, *, writes: bool) -> str:
    """Bring the browser of a case to where it can be measured, and return where its reads go."""
    client = browser(case, session)
    if writes:
        client.post("/bench/write/")
    if "django_replica_router" not in settings.INSTALLED_APPS:
        return str(inside_request(client, _ask_django))
    deadline = time.monotonic() + _READY_SECONDS
    while True:
        alias = str(inside_request(client, _ask_django))
        if alias != PRIMARY or time.monotonic() > deadline:
            return alias
        time.sleep(0.02)


def _ask_django() -> str:
    return router.db_for_read(Note)


def _callables(with_instance: bool) -> dict[str, Callable[[], Any]]:
    """Return what is timed: Django's way of asking, and the router's own method."""
    found: dict[str, Callable[[], Any]] = {}
    note = Note(pk=1)
    note._state.db = PRIMARY
    hints = {"instance": note} if with_instance else {}
    ask = router.db_for_read
    found["django"] = lambda: ask(Note, **hints)
    if router.routers:
        method = router.routers[0].db_for_read
        found["method"] = lambda: method(Note, **hints)
    return found


def repeat_ns(case: str, session: str | None, seconds: float, *, instance: bool) -> dict[str, Any]:
    """Return nanoseconds of a decision after the first of a request, and what it allocates.

    What the loop and the lambda cost is taken off.
    """

    def measure() -> dict[str, Any]:
        calls = _callables(instance)
        next(iter(calls.values()))()
        empty = _time_call(lambda: None, seconds / 4)
        timed = {name: _time_call(call, seconds) - empty for name, call in calls.items()}
        return {**timed, **_allocations(calls["django"])}

    found: dict[str, Any] = inside_request(browser(case, session), measure)
    return found


def _time_call(call: Callable[[], Any], seconds: float) -> float:
    """Return the best of many short chunks of calls, in nanoseconds a call.

    The best, since whatever else runs on the machine can only add.
    """
    count = 16
    while _time_chunk(call, count) < seconds * 1e9 / _CHUNKS / 2:
        count *= 2
    return min(_time_chunk(call, count) / count for _ in range(_CHUNKS))


def _time_chunk(call: Callable[[], Any], count: int) -> int:
    gc.disable()  # as timeit does: what other objects there are is not the call's affair
    try:
        began = time.perf_counter_ns()
        for _ in repeat(None, count):
            call()
        return time.perf_counter_ns() - began
    finally:
        gc.enable()


def _allocations(call: Callable[[], Any]) -> dict[str, float]:
    """Return the bytes that a call needs for a moment, and the memory blocks that it keeps."""
    calls = 200
    peaks = []
    gc.collect()
    gc.disable()
    before = sys.getallocatedblocks()
    for _ in repeat(None, calls):
        call()
    kept = (sys.getallocatedblocks() - before) / calls
    tracemalloc.start()
    try:
        for _ in range(calls):
            tracemalloc.reset_peak()
            current, _peak = tracemalloc.get_traced_memory()
            call()
            peaks.append(tracemalloc.get_traced_memory()[1] - current)
    finally:
        tracemalloc.stop()
        gc.enable()
    return {"bytes": median(peaks), "kept": max(0.0, round(kept, 2))}


class CacheTime:
    """Time spent in the cache's client since the last reset, and its commands."""

    spent = 0
    commands = 0


def watch_cache() -> None:
    """Have every command to the cache counted and timed: redis-py's, and those past its client."""
    for owner, name in ((redis.Redis, "execute_command"), (RedisServer, "mget")):
        send = getattr(owner, name)
        if not hasattr(send, "is_watched"):
            setattr(owner, name, _watched(send))


def _watched(send: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **options: Any) -> Any:
        began = time.perf_counter_ns()
        try:
            return send(*args, **options)
        finally:
            CacheTime.spent += time.perf_counter_ns() - began
            CacheTime.commands += 1

    ask.is_watched = True  # type: ignore[attr-defined]
    return ask


def first_ns(case: str, session: str | None, requests: int) -> dict[str, float]:
    """Return the median nanoseconds of the first decision of a request, asked before any read.

    And of that, the time in the cache's client, and the rest.
    """
    watch_cache()

    def measure() -> tuple[int, int, int]:
        CacheTime.spent = CacheTime.commands = 0
        began = time.perf_counter_ns()
        router.db_for_read(Note)
        return time.perf_counter_ns() - began, CacheTime.spent, CacheTime.commands

    client = browser(case, session)
    taken = [inside_request(client, measure, early=True) for _ in range(requests)]
    return {
        "django": median(total for total, _, _ in taken),
        "cache": median(spent for _, spent, _ in taken),
        "rest": median(total - spent for total, spent, _ in taken),
        "commands": sum(commands for *_, commands in taken) / len(taken),
    }
