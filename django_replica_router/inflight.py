"""Statements that wait for a server's answer, and how to end the waiting of those that hang."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple


class _Waiting(NamedTuple):
    alias: str
    raw: Any
    since: float
    is_ended: bool = False


class InFlight:
    """The statements that this process has sent to replicas and that are not answered yet.

    A client waits for a server that hangs until TCP gives up, which takes minutes. What ends the
    waiting is that the socket is shut down under it: the driver then reports a lost connection,
    and the statement is run elsewhere.
    """

    def __init__(self) -> None:
        # Held for moments only: it keeps a socket from being closed, and its number from being
        # given to another one, between the choice to shut it down and doing so.
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._answered_at: dict[str, float] = {}
        self._numbers = itertools.count()

    def enter(self, alias: str, raw: Any) -> int:
        """Note that a statement is about to be sent; return its number."""
        number = next(self._numbers)
        # No lock: to put something into a dict is one step, and who looks takes a copy in one.
        self._waiting[number] = _Waiting(alias, raw, time.monotonic())
        return number

    def began(self, number: int) -> float:
        """Return the moment at which the statement of that number was noted."""
        return self._waiting[number].since

    def leave(self, number: int) -> None:
        """Note that the statement is answered, or has failed."""
        now = time.monotonic()
        with self._lock:
            waiting = self._waiting.pop(number)
            if not waiting.is_ended:  # else what it came back with is no answer
                self._answered_at[waiting.alias] = now

    @contextlib.contextmanager
    def waiting(self, alias: str, raw: Any) -> Iterator[None]:
        """Note, for the length of the block, that it waits for an answer of that server."""
        number = self.enter(alias, raw)
        try:
            yield
        finally:
            self.leave(number)

    def shortest_wait(self, alias: str, least: float) -> float | None:
        """Return how long one has waited for that server that has waited longer than ``least``.

        The shortest such time, in seconds: of the statement that was sent last. None where there
        is none.
        """
        now = time.monotonic()
        waits = [now - w.since for w in list(self._waiting.values()) if w.alias == alias]
        return min((seconds for seconds in waits if seconds > least), default=None)

    def is_mute(self, alias: str, seconds: float) -> bool:
        """Tell whether a server that used to answer has answered nothing for so long."""
        now = time.monotonic()
        return now - self._answered_at.get(alias, now) > seconds

    def end(self, alias: str, patience: float) -> int:
        """End the waiting for that server of all that have waited so long; return how many."""
        limit = time.monotonic() - patience
        with self._lock:
            hanging = [
                (number, waiting)
                for number, waiting in list(self._waiting.items())
                if waiting.alias == alias and waiting.since <= limit
            ]
            for number, waiting in hanging:
                self._waiting[number] = waiting._replace(is_ended=True)
                shut_down(waiting.raw)
        return len(hanging)


def shut_down(raw: Any) -> None:
    """End all waiting for the server of a driver's connection."""
    # A driver's connection that is closed already has no socket any more.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(raw.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


in_flight = InFlight()


def _after_fork() -> None:
    # The threads that wait, and whoever holds the lock, do not exist in the child.
    in_flight.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
