"""How many reads may go to the primary that it should be spared, where no replica can serve them."""

from __future__ import annotations

import time
from collections.abc import Callable

from django_replica_router.forking import make_lock

_WINDOW = 10.0
# So that a site with few visitors is not refused its first one.
_FREE = 20


class Budget:
    """Counts decisions of this process, and grants the primary to a share of them.

    Args:
        clock: a monotonic clock.
        free: so many are granted whatever the share.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, free: int = _FREE) -> None:
        self._clock = clock
        self._free = free
        self._lock = make_lock()
        self._began = clock()
        self._decisions = 0
        self._granted = 0

    def note_decision(self) -> None:
        """Count a decision."""
        if self._clock() - self._began > _WINDOW:
            with self._lock:
                self._renew()
        # Without the lock: of a share it does no harm where one of two at the same moment is lost.
        self._decisions += 1

    def grant(self, share: float) -> bool:
        """Tell whether one more decision may be for the primary, and count it if so."""
        with self._lock:
            self._renew()
            if self._granted >= self._free and self._granted >= share * self._decisions:
                return False
            self._granted += 1
            return True

    def _renew(self) -> None:
        now = self._clock()
        if now - self._began > _WINDOW:
            self._began = now
            # Half of what was counts on, so that a window's beginning grants no burst.
            self._decisions //= 2
            self._granted //= 2


primary_budget = Budget()
"""Of reads that no replica may serve: the setting ``PRIMARY_SHARE``."""

monotonic_budget = Budget()
"""Of reads that a replica may not serve for what their reader has seen: ``MONOTONIC_SHARE``."""
