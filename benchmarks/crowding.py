"""Many processes and many users; runs in a process with a contender's settings."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any

from django.db import router

from testproject.notes.models import Note

_ASK_SECONDS = 1.0


class _Crowd:
    """The processes forked from this one, and the pipe whose end stops them."""

    pids: list[int] = []  # noqa: RUF012 - one process, one crowd
    pipe: tuple[int, int] | None = None


def grow(count: int) -> int:
    """Fork until there are so many processes, each with a monitor of its own; return how many."""
    if _Crowd.pipe is None:
        _Crowd.pipe = os.pipe()
    reader, writer = _Crowd.pipe
    while len(_Crowd.pids) < count:
        pid = os.fork()
        if pid == 0:
            os.close(writer)
            _work_until_closed(reader)
        _Crowd.pids.append(pid)
    return len(_Crowd.pids)


def _work_until_closed(reader: int) -> None:
    """Decide once a second, as a worker that serves requests does, until the parent ends."""
    try:
        while True:
            decide("crowd")
            if select.select([reader], [], [], _ASK_SECONDS)[0]:
                break
    finally:
        os._exit(0)


def decide(user: str) -> str:
    """Return where a read of that user goes, asked in a scope of its own."""
    from django_replica_router import scope

    with scope(user=user):
        return router.db_for_read(Note)


def keep_deciding(seconds: float) -> None:
    """Decide again and again: the first decision may not get as far as to need the monitor."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        decide("somebody")
        time.sleep(seconds / 10)


def private_kb() -> float:
    """Return what a process of the crowd does not share with the others, in KB."""
    if not _Crowd.pids:
        return 0.0
    with open(f"/proc/{_Crowd.pids[-1]}/smaps_rollup") as file:
        lines = [line.split() for line in file if line.startswith("Private")]
    return float(sum(int(parts[1]) for parts in lines))


def shrink() -> None:
    """End the processes."""
    if _Crowd.pipe is not None:
        os.close(_Crowd.pipe[1])
        for pid in _Crowd.pids:
            os.waitpid(pid, 0)
        os.close(_Crowd.pipe[0])
    _Crowd.pids, _Crowd.pipe = [], None


def serve_users(first: int, last: int) -> dict[str, Any]:
    """Decide for each of so many users, and return what the process holds then."""
    began = time.perf_counter()
    for number in range(first, last):
        decide(f"user {number}")
    seconds = time.perf_counter() - began
    return {"us": 1e6 * seconds / max(1, last - first), **size()}


def size() -> dict[str, Any]:
    """Return how much memory this process holds, and how many threads."""
    with open("/proc/self/status") as file:
        known = dict(line.split(":", 1) for line in file)
    return {
        "rss_mb": int(known["VmRSS"].split()[0]) / 1024,
        "threads": int(known["Threads"]),
        "blocks": sys.getallocatedblocks(),
    }
