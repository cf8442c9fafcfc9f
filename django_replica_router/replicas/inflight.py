"""Statements that wait for a server's answer, and how to end the waiting of those that hang."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django_replica_router.forking import after_fork

T = TypeVar("T")

# Servers of which it is kept when they answered last: they come and go. The oldest are forgotten.
_ANSWERED_KEPT = 256


class Waiter:
    """Somebody who may wait for a server's answer: one of Django's connections, as a rule.

    Attributes:
        key: of the server.
        raw: the driver's connection.
        since: moment at which it has begun to wait, also where it has ended.
        is_ended: the waiting was ended, so that what it comes back with is no answer.
    """

    __slots__ = ("is_ended", "key", "raw", "since")

    def __init__(self) -> None:
        self.key = ""
        self.raw: Any = None
        self.since = 0.0
        self.is_ended = False


class InFlight:
    """The statements that this process has sent to replicas and that are not answered yet.

    A client waits for a server that hangs until TCP gives up, which takes minutes. What ends the
    waiting is that the socket is shut down under it: the driver then reports a lost connection,
    and the statement is run elsewhere.
    """

    def __init__(self) -> None:
        # Taken where a waiting is ended, and by the one that was: it keeps a socket from being closed, and
        # its number from being given to another one, between the choice to shut it down and doing so.
        self._ending = threading.Lock()
        # No lock: to put something into a set is one step, and who looks takes a copy in one.
        self._waiting: set[Waiter] = set()
        self._answered_at: dict[str, float] = {}

    def ask(self, waiter: Waiter, key: str, raw: Any, call: Callable[..., T], *args: Any) -> T:
        """Call what waits for the answer of a server, and return what that returns.

        Args:
            waiter: who waits.
            key: of the server.
            raw: the driver's connection to it.
            call: sends something there, and waits.
            args: its arguments.
        """
        return self.run(waiter, key, raw, lambda *_: call(*args), None, None, False, None)

    def run(
        self,
        waiter: Waiter,
        key: str,
        raw: Any,
        execute: Callable[..., T],
        sql: Any,
        params: Any,
        many: bool,
        executor: Any,
    ) -> T:
        """Do the same with a statement: ``execute`` takes the last four. Without a call that can be spared."""
        waiting = self._waiting
        if waiter in waiting:  # within a statement another one is run, as by a site's wrapper
            waiter = Waiter()
        waiter.key, waiter.raw, waiter.since = key, raw, time.monotonic()
        waiting.add(waiter)
        try:
            return execute(sql, params, many, executor)
        finally:
            # As ``_finish`` does.
            waiting.discard(waiter)
            if waiter.is_ended:
                self._note_end(waiter)
            else:
                self._answered_at[key] = time.monotonic()
                if len(self._answered_at) > _ANSWERED_KEPT:
                    self._forget_the_oldest()

    def _finish(self, waiter: Waiter) -> None:
        # First this, then the question: ``end`` does the same in the other order.
        self._waiting.discard(waiter)
        if waiter.is_ended:
            self._note_end(waiter)
        else:
            self._answered_at[waiter.key] = time.monotonic()
            if len(self._answered_at) > _ANSWERED_KEPT:
                self._forget_the_oldest()

    def _forget_the_oldest(self) -> None:
        known = list(self._answered_at.items())  # in one step, since others go on
        oldest, _ = min(known, key=lambda item: item[1])
        self._answered_at.pop(oldest, None)

    def _note_end(self, waiter: Waiter) -> None:
        with self._ending:
            waiter.is_ended = False

    @contextlib.contextmanager
    def waiting(self, key: str, raw: Any) -> Iterator[None]:
        """Note, for the length of the block, that it waits for an answer of that server."""
        waiter = Waiter()
        waiter.key, waiter.raw, waiter.since = key, raw, time.monotonic()
        self._waiting.add(waiter)
        try:
            yield
        finally:
            self._finish(waiter)

    def shortest_wait(self, key: str, least: float) -> float | None:
        """Return how long one has waited for that server that has waited longer than ``least``.

        The shortest such time, in seconds: of the statement that was sent last. None where there
        is none.
        """
        return min((seconds for seconds in self._waits(key) if seconds > least), default=None)

    def longest_wait(self, key: str) -> float:
        """Return how long somebody has waited for that server, in seconds; 0 where nobody does."""
        return max(self._waits(key), default=0.0)

    def _waits(self, key: str) -> list[float]:
        now = time.monotonic()
        return [now - waiter.since for waiter in list(self._waiting) if waiter.key == key]

    def is_mute(self, key: str, seconds: float) -> bool:
        """Tell whether a server that used to answer has answered nothing for so long."""
        now = time.monotonic()
        return now - self._answered_at.get(key, now) > seconds

    def end(self, key: str, patience: float) -> int:
        """End the waiting for that server of all that have waited so long; return how many."""
        limit = time.monotonic() - patience
        hanging = [w for w in list(self._waiting) if w.key == key and w.since <= limit]
        with self._ending:
            return sum(self._end(waiter, limit) for waiter in hanging)

    def _end(self, waiter: Waiter, limit: float) -> bool:
        raw, waiter.is_ended = waiter.raw, True
        # From here on, whoever has been answered does not go on before the lock is free.
        if waiter not in self._waiting or waiter.since > limit:
            waiter.is_ended = False
            return False
        shut_down(raw)
        return True


def shut_down(raw: Any) -> None:
    """End all waiting for the server of a driver's connection."""
    # A driver's connection that is closed already has no socket any more.
    with contextlib.suppress(Exception), socket.socket(fileno=os.dup(raw.pgconn.socket)) as line:
        line.shutdown(socket.SHUT_RDWR)


in_flight = InFlight()


@after_fork
def _begin_anew() -> None:
    # The threads that wait, and whoever holds the lock, do not exist in the child.
    in_flight.__init__()  # type: ignore[misc]
