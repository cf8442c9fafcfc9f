"""Times requests by the CPU time of their thread; runs in a process with a contender's settings."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.test import RequestFactory

_WARM_UP = 30
_READY_SECONDS = 20.0


def warm_up(path: str, session: str | None) -> None:
    """Open all connections, and go on until reads are routed as they will be.

    That to the primary, too: Django looks at each open one at both ends of a request.
    """
    for connection in connections.all():
        connection.ensure_connection()
    serve = server_of(path, session)
    for _ in range(_WARM_UP):
        serve()
    if "django_replica_router" in settings.INSTALLED_APPS:
        _wait_for_replicas(serve)


def cpu_us(path: str, session: str | None, requests: int) -> float:
    """Return the microseconds of CPU time that the thread takes to serve the median request of a page.

    The mean is moved by the few that the machine was slow for: it may differ threefold from turn to turn.
    """
    serve = server_of(path, session)
    serve()  # what other processes have left in the processor's caches costs this one nothing
    return median(_measure(serve) for _ in range(requests)) * 1e6


def _measure(serve: Callable[[], None]) -> float:
    began = time.thread_time()
    serve()
    return time.thread_time() - began


def memory_mb() -> float:
    """Return the megabytes of memory that this process shares with no other."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    known = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    return (known["Private_Clean"] + known["Private_Dirty"]) / 1024


@functools.cache
def _handler() -> Any:
    return WSGIHandler()


@functools.cache
def server_of(path: str, session: str | None) -> Callable[[], None]:
    """Return what serves a request of a page, and raises where that fails."""
    factory = RequestFactory()
    if session is not None:
        factory.cookies[settings.SESSION_COOKIE_NAME] = session
    environ = factory.get(path).environ

    def serve() -> None:
        status: list[str] = []
        response = _handler()(
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
    message = f"No read has gone to a replica within {_READY_SECONDS:.0f} s."
    raise RuntimeError(message)
