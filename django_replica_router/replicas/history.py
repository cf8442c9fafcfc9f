"""The primary's present history: where it was at which moment, and what is waited for."""

from __future__ import annotations

import math
from collections import deque

from django_replica_router.replicas.readings import Sample, Wanted

UNFLUSHED = 0.25
"""Seconds after which a position that somebody waits for is flushed. The WAL writer is given its time: an
asynchronous commit usually takes it up to 0.2 s (``wal_writer_delay``)."""

_SAMPLES = 1024


class History:
    """Samples of the primary, all of one timeline.

    Whoever changes this holds the lock of what is known; it is read without any.
    """

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=_SAMPLES)
        self.baseline = -1
        """Where the timeline was first seen: what a replica replayed before that may be of another
        history, and does not count."""
        self.timeline: int | None = None
        """The primary's timeline as last seen, or None before the first sample."""
        self.wanted = Wanted()
        self.may_flush_at = -math.inf

    @property
    def sampled_at(self) -> float:
        """Moment of the last sample of the primary, or minus infinity before the first."""
        return self.samples[-1].at if self.samples else -math.inf

    def begin(self, sample: Sample) -> None:
        """Begin with the first sample of a timeline."""
        if self.samples:
            self.baseline = sample.position.lsn
        # Never emptied: others look at the last one without the lock.
        self.samples = deque([sample], maxlen=_SAMPLES)
        self.timeline = sample.position.timeline
        self.wanted = Wanted()

    def fresh_at(self, watermark: int, known: float, born_at: float) -> float:
        """Return the moment of the newest sample at or before a watermark: the known one, or a later one.

        A standby that was started anew, or has just been met, may show less than was shown before: nobody
        has seen more there, or anywhere, than the primary had at that moment.
        """
        for sample in reversed(self.samples):
            if sample.at <= max(known, born_at):
                break
            if sample.position.lsn <= watermark:
                return sample.at
        return known

    def must_flush(self, now: float) -> bool:
        """Tell whether somebody waits for what no replica can have got, and has for too long."""
        wanted = self.wanted
        is_flushed = not self.samples or wanted.lsn <= self.samples[-1].position.lsn
        is_overdue = not is_flushed and now - wanted.written_at >= UNFLUSHED
        return is_overdue and now >= self.may_flush_at
