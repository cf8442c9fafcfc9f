"""Moments at which a process was not run: the machine was busy, and nothing of the package's."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable

PERIOD = 0.02
LATE = 0.1
"""Seconds by which a thread may wake late in a process that is not held up. Less is the turns that the threads
of one process take, which nobody need be excused for."""

KEPT = 2000

Span = tuple[float, float]
"""Beginning and end, by ``time.monotonic()``, which all processes of a machine share."""


class Heartbeat:
    """Sleeps for a moment, again and again, and notes when it woke up late."""

    def __init__(self) -> None:
        self._late: deque[Span] = deque(maxlen=KEPT)
        self._due = time.monotonic()

    def start(self) -> None:
        """Begin, in a thread that lives as long as the process."""
        self._due = time.monotonic()
        threading.Thread(target=self._run, name="torture-heartbeat", daemon=True).start()

    def _run(self) -> None:
        while True:
            self._due = time.monotonic() + PERIOD
            time.sleep(PERIOD)
            now = time.monotonic()
            if now - self._due > LATE:
                self._late.append((self._due, now))

    def stalls(self, start: float, end: float) -> list[Span]:
        """Return when the process was held up within a time."""
        due, now = self._due, time.monotonic()
        late = [*list(self._late), *([(due, now)] if now - due > LATE else [])]
        return [(since, until) for since, until in late if since < end and until > start]


heartbeat = Heartbeat()
"""Of this process, once it is started."""


def covered(start: float, end: float, spans: Iterable[Span]) -> float:
    """Return how many seconds of a time lie in any of these spans."""
    seconds, reached = 0.0, start
    for since, until in sorted(spans):
        since, until = max(since, reached), min(until, end)
        if until > since:
            seconds += until - since
            reached = until
    return seconds
