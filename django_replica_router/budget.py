"""How many reads may fall back to the primary where no replica can serve them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

_WINDOW = 10.0
# So that a site with few visitors is not refused its first fallback.
_FREE = 20


class FallbackBudget:
    """Counts decisions of this process, and grants fallbacks up to a share of them.

    Args:
        clock: a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self._decisions = 0
        self._fallbacks = 0

    def note_decision(self) -> None:
        """Count a decision."""
        with self._lock:
            self._renew()
            self._decisions += 1

    def grant_fallback(self, share: float) -> bool:
        """Tell whether one more decision may fall back, and count it if so."""
        with self._lock:
            self._renew()
            if self._fallbacks >= _FREE and self._fallbacks >= share * self._decisions:
                return False
            self._fallbacks += 1
            return True

    def _renew(self) -> None:
        now = self._clock()
        if now - self._began > _WINDOW:
            self._began = now
            # Half of what was counts on, so that a window's beginning grants no burst.
            self._decisions //= 2
            self._fallbacks //= 2


budget = FallbackBudget()
if hasattr(os, "register_at_fork"):
    # Whoever holds the lock does not exist in the child.
    os.register_at_fork(after_in_child=budget._lock._at_fork_reinit)  # type: ignore[attr-defined]
