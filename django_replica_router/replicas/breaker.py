"""Which replicas requests may open a new connection to: one that refuses is not tried by each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from django_replica_router.logs import fields, logger
from django_replica_router.stats import count

FIRST_PAUSE = 1.0
"""Seconds without an attempt after the first failure. Each further failure doubles them."""

LAST_PAUSE = 15.0
"""Seconds that a pause lasts at most."""


class _Open(NamedTuple):
    pause: float
    until: float


class Breaker:
    """The circuit breakers of a cluster's replicas, in one process.

    A server may refuse new sessions while those that are open live, the monitor's among them: that the
    monitor reads it proves nothing here. Only a connection that a request has opened closes a breaker, or
    a new life of the server.

    Args:
        clock: a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # Frozen values, put in under the lock and read without it.
        self._open: dict[str, _Open] = {}

    def begin(self, alias: str, timeout: float) -> float | None:
        """Return the pause after which a connection may be opened now, or None where it may not.

        After a pause one attempt at a time is granted. Who is granted it tells how it has ended by
        ``fail`` or ``close``; of one that tells nothing the end is waited for.

        Args:
            alias: alias of the replica.
            timeout: seconds that the attempt may take.
        """
        if alias not in self._open:
            return 0.0
        if self.is_open(alias):
            return None
        with self._lock:
            present = self._open.get(alias)
            if present is None:
                return 0.0
            now = self._clock()
            if now < present.until:
                return None  # another thread was first
            self._open[alias] = present._replace(until=now + timeout + present.pause)
            return present.pause

    def is_open(self, alias: str) -> bool:
        """Tell whether no connection to the replica may be opened now."""
        present = self._open.get(alias)
        return present is not None and self._clock() < present.until

    def open_aliases(self) -> list[str]:
        """Return the replicas to which no connection may be opened now."""
        return [alias for alias in list(self._open) if self.is_open(alias)]

    def fail(self, alias: str, pause: float, error: Exception) -> bool:
        """Count an attempt that has failed; tell whether it has opened the breaker.

        Args:
            alias: alias of the replica.
            pause: what ``begin`` has returned.
            error: what the attempt has raised.
        """
        count("connects_failed")
        with self._lock:
            present = self._open.get(alias)
            if pause != (0.0 if present is None else present.pause):
                return False  # one of several at the same time, of which another is counted already
            longer = min(max(FIRST_PAUSE, 2 * pause), LAST_PAUSE)
            self._open[alias] = _Open(longer, self._clock() + longer)
        if present is None:
            logger.warning(
                "Replica %r refuses new connections: %s. One is tried again in %g s, and then ever "
                "less often, every %g s at last.",
                alias,
                error,
                FIRST_PAUSE,
                LAST_PAUSE,
                extra=fields("connects_refused", error, alias=alias),
            )
        return present is None

    def forget(self, alias: str) -> None:
        """Forget a replica that is gone."""
        with self._lock:
            self._open.pop(alias, None)

    def close(self, alias: str) -> None:
        """Have connections to the replica opened as they are needed."""
        if alias not in self._open:
            return
        with self._lock:
            was_open = self._open.pop(alias, None)
        if was_open is not None:
            logger.info(
                "New connections to replica %r are opened again.",
                alias,
                extra=fields("connects_accepted", alias=alias),
            )
