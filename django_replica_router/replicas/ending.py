"""Threads that work until they are ended."""

from __future__ import annotations

import random
import threading

# Not the state that the process shares: tests seed that, and Hypothesis watches over it.
_draw = random.SystemRandom()


def jittered(seconds: float) -> float:
    """Return a little less than those seconds, so that many processes do not ask at the same moment."""
    return seconds * _draw.uniform(0.8, 1.0)


class EndingThread(threading.Thread):
    """A daemon that works until ``_ended`` is set.

    Args:
        name: of the thread.
    """

    patience = 1.0
    """Seconds for which whoever ends the thread waits for its end, at most."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._ended = threading.Event()

    def end(self) -> None:
        """Have the thread end."""
        self._ended.set()
        if self.patience and self.is_alive():
            self.join(self.patience)
