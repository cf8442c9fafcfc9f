"""Waiting until replicas have replayed what somebody must see."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.readings import Reading, Wanted

T = TypeVar("T")

AGAIN = 0.25
"""Seconds after which whoever waits for longer has replicas looked at closely anew."""


class Waiting:
    """What requests wait for."""

    def __init__(self, known: Known) -> None:
        self.known = known

    def want(self, lsn: int, age: float) -> float:
        """Have replicas looked at closely until they have replayed a position.

        Args:
            lsn: the position.
            age: seconds since it was written, as far as that is known.

        Returns:
            the same, as far as it is known here. A reader who is sent to the primary again and
            again has a token as young as the last time, and yet of the same position.
        """
        age = self.note_wanted(lsn, age)
        for key, looks in self.known.looks.items():
            if self.known.reading(key).watermark < lsn:
                looks.poke()
        return age

    def note_wanted(self, lsn: int, age: float) -> float:
        """Do the same, and have nobody look at once: a server tells itself when it is there."""
        history, now = self.known.history, self.known.clock()
        wanted = history.wanted
        if lsn > wanted.lsn:
            history.wanted = wanted = Wanted(lsn, now - age)
        # What lies at or before a position was written no later.
        return max(age, now - wanted.written_at)

    def expects(self, age: float, within: float, alias: str | None = None) -> bool:
        """Tell whether a position of that age should be replayed so soon.

        Args:
            age: seconds since it was written.
            within: seconds from now.
            alias: by that replica; by any of them when None.
        """
        return any(
            reading.state is ReplicaState.STREAMING and reading.catch_up - age <= within
            for key, reading in self.known.readings.items()
            if alias is None or alias == self.known.servers.alias_of(key)
        )

    def has_looked_since(self, moment: float, replicas: Iterable[Replica]) -> bool:
        """Tell whether those of the replicas that are in service were looked at since then."""
        return all(
            self.known.reading(key).read_at >= moment
            for replica in replicas
            if replica.state is ReplicaState.STREAMING
            for key in self.known.servers.keys(replica.alias)
            if key in self.known.looks and self.known.reading(key).state is ReplicaState.STREAMING
        )

    def wait_for(self, look: Callable[[], T | None], timeout: float) -> T | None:
        """Return what ``look`` finds, called after each new reading, or None after the time-out.

        The test comes before the first wait, and there is no wait after the last test.
        """
        found: list[T] = []

        def has_found() -> bool:
            result = look()
            if result is not None:
                found.append(result)
            return bool(found)

        with self.known.changed:
            self.known.changed.wait_for(has_found, timeout)
        return found[0] if found else None

    def wait_closely(
        self, lsn: int, max_lag: float, look: Callable[[], T | None], timeout: float
    ) -> T | None:
        """Do the same, with replicas looked at closely until they have a position, and lag so little.

        What takes longer is asked for again and again: see ``AGAIN``.

        Args:
            lsn: the position.
            max_lag: seconds.
            look: as above.
            timeout: seconds that may be waited, at most ``AGAIN``.
        """
        self.want(lsn, 0.0)
        self.known.refresh(max_lag)
        return self.wait_for(look, min(AGAIN, timeout))

    def wait_for_all(self, lsn: int, timeout: float, max_lag: float = math.inf) -> bool:
        """Wait until every replica in service has replayed a position; tell whether they have.

        Args:
            lsn: the position.
            timeout: seconds that may be waited.
            max_lag: seconds; a replica whose data is older is not in service.
        """
        self.want(lsn, 0.0)

        def is_in_service(reading: Reading) -> bool:
            if reading.state is ReplicaState.STREAMING:
                return self.known.clock() - reading.fresh_at <= max_lag
            # Of which nothing is known here, as right after the start: another process may know
            # already that it serves.
            return reading.state is ReplicaState.UNKNOWN

        def have_all() -> bool | None:
            readings = self.known.readings.values()
            return not any(r.watermark < lsn and is_in_service(r) for r in readings) or None

        return self.wait_for(have_all, timeout) is not None
