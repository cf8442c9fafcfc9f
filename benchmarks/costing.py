"""Times requests with the package and without it in one process; runs in one that has its settings.

Two processes are never alike to within a few per cent, and the machine's own work is as much. Here
the same process serves the same page in turns, a few requests at a time, so that what disturbs the
one disturbs the other.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import contextmanager
from statistics import median
from typing import Any

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections, router
from django.test import RequestFactory, override_settings

from django_replica_router.observers import StatementObserver
from testproject.routing.random import RandomReplicaRouter

_WARM_UP = 30
_READY_SECONDS = 20.0
_REQUESTS = 5
_PACKAGE = "django_replica_router"


def added_us(path: str, session: str | None, pairs: int) -> dict[str, float]:
    """Return microseconds of CPU time of the thread that serves a request, as medians.

    Args:
        path: of the page.
        session: the session cookie, or None.
        pairs: how many times both are measured.

    Returns:
        ``without``: by a random router; ``added``: what the package adds to that.
    """
    with_it = _server(WSGIHandler(), path, session)
    own = [name for name in settings.MIDDLEWARE if not name.startswith(_PACKAGE)]
    with override_settings(MIDDLEWARE=own):
        without_it = _server(WSGIHandler(), path, session)
    for _ in range(_WARM_UP):
        with_it()
    _wait_for_replicas(with_it)
    with _package_off():
        for _ in range(_WARM_UP):
            without_it()
    without, added = [], []
    for _ in range(pairs):
        # There and back, so that a machine that slows down meanwhile slows down both.
        first, first_without = _time(with_it), _time_without(without_it)
        second_without, second = _time_without(without_it), _time(with_it)
        least = min(first_without, second_without)
        without.append(least)
        added.append(min(first, second) - least)
    return {"without": median(without), "added": median(added)}


def _server(handler: Any, path: str, session: str | None) -> Callable[[], None]:
    factory = RequestFactory()
    if session is not None:
        factory.cookies[settings.SESSION_COOKIE_NAME] = session
    environ = factory.get(path).environ

    def serve() -> None:
        status: list[str] = []
        response = handler(
            {**environ, "wsgi.input": io.BytesIO()}, lambda line, headers: status.append(line)
        )
        try:
            b"".join(response)
        finally:
            response.close()
        if not status[0].startswith("200"):
            message = f"{path} has answered {status[0]}."
            raise RuntimeError(message)

    return serve


def _wait_for_replicas(serve: Callable[[], None]) -> None:
    from django_replica_router import pop_stats

    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        pop_stats()
        serve()
        if {"reads_caught_up", "reads_no_token"} & pop_stats().keys():
            return
        time.sleep(0.02)


def _time(serve: Callable[[], None]) -> float:
    serve()  # what the other one has left in the processor's caches costs this one nothing
    began = time.thread_time()
    for _ in range(_REQUESTS):
        serve()
    return (time.thread_time() - began) / _REQUESTS * 1e6


def _time_without(serve: Callable[[], None]) -> float:
    with _package_off():
        return _time(serve)


@contextmanager
def _package_off() -> Any:
    """Have reads routed by a random router, and nothing of the package around a statement."""
    routers = router.routers
    taken = [(connection, _take_off(connection)) for connection in connections.all()]
    # Not by a changed setting, for that makes the package work everything out anew.
    router.__dict__["routers"] = [RandomReplicaRouter()]
    try:
        yield
    finally:
        router.__dict__["routers"] = routers
        for connection, (observers, opening) in taken:
            connection.execute_wrappers[:0] = observers
            if opening is not None:
                connection.__dict__["_cursor"] = opening


def _take_off(connection: Any) -> tuple[list[Any], Any]:
    wrappers = connection.execute_wrappers
    observers = [wrapper for wrapper in wrappers if isinstance(wrapper, StatementObserver)]
    for observer in observers:
        wrappers.remove(observer)
    return observers, connection.__dict__.pop("_cursor", None)
