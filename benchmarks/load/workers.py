"""Processes in which the crowd of one contender lives, with a Django of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.load.crowd import Crowd, Habits, Log
from benchmarks.load.processes import PipedProcess

THREADS = 6
START_SECONDS = 60.0


class WorkerError(Exception):
    """A process could not do its work."""


class Worker(PipedProcess):
    """A process with the settings of one contender.

    Args:
        environ: names the settings and the servers.
        url: where the site is served; None to run it in the process itself.
        threads: how many requests can be under way.
        crowd: what its users do.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        url: str | None = None,
        threads: int = THREADS,
        crowd: type[Crowd] = Crowd,
    ) -> None:
        super().__init__(_serve, dict(environ), url, threads, crowd)

    def begin(self, habits: Habits, seconds: float) -> None:
        """Let a crowd live for some seconds; return at once."""
        self._pipe.send((habits, seconds))

    def result(self) -> Log:
        """Return what has happened, once it is over."""
        try:
            found = self._pipe.recv()
        except EOFError:
            message = f"A process of the benchmark has ended with {self._process.exitcode}."
            raise WorkerError(message) from None
        if isinstance(found, str):
            raise WorkerError(found)
        log: Log = found
        return log


def _serve(
    pipe: Any, environ: dict[str, str], url: str | None, threads: int, kind: type[Crowd]
) -> None:
    os.environ.clear()
    os.environ.update(environ)
    sender = _sender(url)
    crowds: dict[Habits, Crowd] = {}
    # Threads that live as long as the process: a new one would have to connect to all servers first,
    # at the same moment as those of all other contenders.
    pool = ThreadPoolExecutor(threads)
    while True:
        try:
            habits, seconds = pipe.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        crowd = crowds.setdefault(habits, kind(sender, habits))
        pipe.send(crowd.live(seconds, threads, pool))


def _sender(url: str | None) -> Any:
    from benchmarks.load.browsers import Here, Http

    if url is not None:
        return Http(url)
    import django

    django.setup()
    logging.disable(logging.CRITICAL)  # what contenders say of lag is no news here
    return Here()
