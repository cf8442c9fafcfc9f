"""A thread that is waited for, a little, where it is stopped."""

from __future__ import annotations

import threading


class EndingThread(threading.Thread):
    """A daemon that works until ``_ended`` is set.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._ended = threading.Event()

    def end(self, timeout: float = 1.0) -> None:
        """Stop the thread, and wait at most ``timeout`` seconds for it."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout)
