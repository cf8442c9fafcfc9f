"""Counts what visitors saw, and sums it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

PRIMARY = "default"
MAX_EXAMPLES = 5


@dataclass(slots=True)
class Tally:
    """What one visitor, or all of a cell, met with.

    Reads are GET requests. Served reads are the SELECT statements of those requests by the alias
    they ran on, as the project's own meter reports it; quiet ones are those of users who had
    written nothing for longer than the lag.
    """

    served: Counter[str] = field(default_factory=Counter)
    served_quiet: Counter[str] = field(default_factory=Counter)
    read_seconds: list[float] = field(default_factory=list)
    write_seconds: list[float] = field(default_factory=list)
    stale: Counter[str] = field(default_factory=Counter)
    logouts: int = 0
    errors: int = 0
    examples: list[str] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)

    def note_example(self, sentence: str) -> None:
        """Keep the first few things that went wrong, for whoever looks for the cause."""
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(sentence)

    def add(self, other: Tally) -> None:
        """Add another visitor's."""
        self.served += other.served
        self.served_quiet += other.served_quiet
        self.read_seconds += other.read_seconds
        self.write_seconds += other.write_seconds
        self.stale += other.stale
        self.logouts += other.logouts
        self.errors += other.errors
        self.workers |= other.workers
        for sentence in other.examples:
            self.note_example(sentence)


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum."""
    result = Tally()
    for tally in tallies:
        result.add(tally)
    return result


def replica_share(served: Counter[str]) -> float | None:
    """Return which part of the reads ran on replicas; None where there were none."""
    everything = served.total()
    return (everything - served[PRIMARY]) / everything if everything else None


def percentile_ms(seconds: list[float], percent: int) -> float | None:
    """Return the percentile in milliseconds; None of nothing."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    return round(1000 * ranked[min(len(ranked) - 1, len(ranked) * percent // 100)], 1)
