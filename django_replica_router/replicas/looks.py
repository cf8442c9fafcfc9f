"""The looks at a server: what a poller lets others see of them, and what others ask of it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from django_replica_router.sql.answering import ServerIdentity

PATIENCE = 1.0
"""Seconds that a replica may take to answer before it is taken out."""

CONNECT_TIMEOUT = 2.0
"""Seconds after which a poller gives up connecting."""

MAX_CONNECTION_AGE = 60.0
"""Seconds after which a poller connects anew: the alias may mean another server by then."""


class Looks:
    """How the looks at one server go. Only its poller changes that; anybody may ask for one.

    Args:
        alias: leads to the server.
        key: by which what is known of the server goes.
        clock: a monotonic clock.
    """

    def __init__(self, alias: str, key: str, clock: Callable[[], float]) -> None:
        self.alias = alias
        self.key = key
        self.identity: ServerIdentity | None = None
        self.version = 0  # as the driver tells it: 180006 is 18.6
        self.busy_since: float | None = None
        self.failures = 0
        self.connected_at = -math.inf
        self.wake = threading.Event()
        self._clock = clock

    @property
    def busy_for(self) -> float:
        """Seconds since the present look began; 0 between two looks."""
        busy_since = self.busy_since
        return 0.0 if busy_since is None else self._clock() - busy_since

    @property
    def is_waiting(self) -> bool:
        """The present look waits for its answer for longer than a server may take."""
        return self.busy_for > PATIENCE

    def poke(self) -> None:
        """Have the next look taken now, unless the server is given time to recover."""
        if not self.failures:
            self.wake.set()

    def look_anew(self) -> None:
        """Have the server looked at now, on a new connection."""
        self.connected_at = -math.inf
        self.wake.set()
