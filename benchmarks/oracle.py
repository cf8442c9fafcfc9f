"""A router that knows all: how many reads could replicas have served, with nobody shown old data?

It is computed afterwards, from what a contender's users did and when, and from where every server
stood at every moment. For each read, in the order in which they were asked, it tells whether some
replica could have served it *at the moment it was asked*. It never waits, so a router that waits a
little for a replica may do better than it.

There are two, since there are two promises:

- `WRITTEN`: a user must see what the same user has written.
- `SHOWN`: that, and nothing older than what the same user was shown before. It plays its own game:
  what a user was shown is what *its* choices would have shown, not those of the contender. Of the
  replicas that may serve it takes the one that shows the least, which leaves it most freedom later.

What it knows, and where it errs. Positions come from looks at each server, about every
millisecond, each with the moment it began and the moment its answer was there. Between two looks
nothing is known, and each doubt favours the oracle: a replica counts as standing where the *next*
look finds it, and what is shown to a user where the *last* look found it. A write counts as the
end of its commit record, as the primary's WAL tells afterwards: a replica that stands anywhere
before it, as one that delays commits does for all of the delay, does not show it. The longest pause between two looks is reported beside the results: by so much the oracle may know the
future.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

PRIMARY = "default"
BEYOND = 1 << 64
"""A position behind all others: where a server stands of which nothing is known any more."""


class Promise(enum.Enum):
    """What a user may not be shown."""

    WRITTEN = "nothing older than what they have written"
    SHOWN = "nothing older than what they have written or were shown"


class Look(NamedTuple):
    """One look at a server. Moments are those of the machine's monotonic clock, in seconds."""

    began: float
    ended: float
    position: int


class Track:
    """Where one server stood, moment by moment.

    Args:
        looks: the looks at it, in order.
    """

    def __init__(self, looks: Sequence[Look]) -> None:
        self._began = [look.began for look in looks]
        self._ended = [look.ended for look in looks]
        self._positions = [look.position for look in looks]

    def at_most(self, moment: float) -> int:
        """Return a position that the server had surely not passed at that moment."""
        index = bisect_left(self._began, moment)
        return self._positions[index] if index < len(self._positions) else BEYOND

    def at_least(self, moment: float) -> int:
        """Return a position that the server had surely reached at that moment."""
        index = bisect_right(self._ended, moment)
        return self._positions[index - 1] if index else 0

    def reached(self, position: int) -> float:
        """Return the earliest moment at which the server can have reached a position."""
        index = bisect_left(self._positions, position)
        return self._began[index - 1] if index else 0.0

    def pauses(self) -> list[float]:
        """Return the seconds from each look to the end of the next one."""
        return [
            ended - began for began, ended in zip(self._began[:-1], self._ended[1:], strict=True)
        ]


class Write(NamedTuple):
    """A write that was acknowledged to its user.

    Args:
        user: who wrote.
        moment: when it was acknowledged.
        position: the lowest that a server which has the write can stand at.
        transaction: its number.
    """

    user: int
    moment: float
    position: int
    transaction: int = 0


class Read(NamedTuple):
    """A read of a contender.

    Args:
        user: who reads.
        moment: when it was asked for.
        alias: who served it.
        reason: why, as far as the contender tells.
    """

    user: int
    moment: float
    alias: str
    reason: str = ""


@dataclass(slots=True)
class Verdict:
    """What the oracle says of a contender's reads.

    Args:
        reads: how many there were.
        by_oracle: how many of them the oracle serves from replicas.
        by_contender: how many the contender has served from replicas.
        missed: those that the oracle serves from a replica and the contender did not, by reason.
        gained: how many the contender has served from a replica and the oracle would not.
    """

    reads: int = 0
    by_oracle: int = 0
    by_contender: int = 0
    missed: Counter[str] = field(default_factory=Counter)
    gained: int = 0

    @property
    def ratio(self) -> float | None:
        """The contender's share in that of the oracle; None where that one serves nothing."""
        return self.by_contender / self.by_oracle if self.by_oracle else None

    def add(self, other: Verdict) -> None:
        """Add another verdict's counts."""
        self.reads += other.reads
        self.by_oracle += other.by_oracle
        self.by_contender += other.by_contender
        self.missed += other.missed
        self.gained += other.gained


class Oracle:
    """Judges a history.

    Args:
        primary: where the primary stood.
        replicas: where each replica stood, by alias.
        promise: what it keeps to.
    """

    def __init__(self, primary: Track, replicas: Mapping[str, Track], promise: Promise) -> None:
        self._primary = primary
        self._replicas = replicas
        self._promise = promise

    def judge(
        self, history: Iterable[Read | Write], floors: dict[int, int] | None = None
    ) -> Verdict:
        """Return what could have been served by replicas.

        Args:
            history: reads and writes, in any order.
            floors: what each user must see, from earlier histories; it is brought up to date.
        """
        verdict = Verdict()
        floors = {} if floors is None else floors
        for event in sorted(history, key=attrgetter("moment")):
            floor = floors.get(event.user, 0)
            if isinstance(event, Write):
                floors[event.user] = max(floor, event.position)
                continue
            shown = self._serve(event.moment, floor)
            _count(verdict, event, could=shown is not None)
            if self._promise is Promise.SHOWN:
                if shown is None:
                    shown = self._primary.at_least(event.moment)
                floors[event.user] = max(floor, shown)
        return verdict

    def _serve(self, moment: float, floor: int) -> int | None:
        """Return what the best replica shows at that moment, or None where none has the floor."""
        able = [
            track.at_least(moment)
            for track in self._replicas.values()
            if track.at_most(moment) >= floor
        ]
        return min(able, default=None)


def _count(verdict: Verdict, read: Read, *, could: bool) -> None:
    is_on_replica = read.alias != PRIMARY
    verdict.reads += 1
    verdict.by_oracle += could
    verdict.by_contender += is_on_replica
    if could and not is_on_replica:
        verdict.missed[read.reason] += 1
    if is_on_replica and not could:
        verdict.gained += 1
