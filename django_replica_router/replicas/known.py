"""What is known of the servers of a cluster, told by whoever looks at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.history import History
from django_replica_router.replicas.members import Members
from django_replica_router.replicas.readings import Reading
from django_replica_router.sql.answering import ServerIdentity
from django_replica_router.values.servers import Life


class Known(Members):
    """Readings of the servers, and samples of the primary.

    Args:
        primary: alias of the primary.
        aliases: of the replicas that requests go to.
        interval: seconds between two looks.
        clock: a monotonic clock.
    """

    def __init__(
        self,
        primary: str,
        aliases: Sequence[str],
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(primary, clock)
        self.aliases = tuple(aliases)
        self.interval = interval
        self.history = History()
        # Until when somebody else sees to a server, so that its poller may rest.
        self.told: Mapping[str, float] = {}

    @property
    def primary_identity(self) -> ServerIdentity | None:
        """Which server the primary's alias reaches, or None before the first sample."""
        return self.primary_looks.identity if self.history.samples else None

    @property
    def primary_is_down(self) -> bool:
        """The last attempt to sample the primary has failed, or has been waiting for too long."""
        return self.primary_looks.failures > 0 or self.primary_looks.is_waiting

    def refresh(self, max_lag: float) -> None:
        """Have the primary sampled now, if the last sample is too old to prove so small a lag."""
        if self.clock() - self.history.sampled_at > max_lag / 4:
            self.primary_looks.poke()

    def is_told(self, key: str) -> bool:
        """Tell whether a look at a server can wait, since somebody else sees to it.

        Who looks at a replica samples the primary as well: that a replica is ahead shows only
        where both moments are known well.
        """
        if self.servers.alias_of(key) in self.servers.endpoints:
            return False  # each process looks at its servers itself
        is_told = self.clock() < self.told.get(key, -math.inf)
        if key != self.primary:
            return is_told and key not in self.doubted
        return is_told and all(
            self.is_told(replica)
            for replica, reading in self.readings.items()
            if reading.state is ReplicaState.STREAMING
        )

    def take(self, key: str, reading: Reading) -> None:
        """Take a reading into account, of whomever it is. The caller holds the lock."""
        old = self.reading(key)
        reading = replace(reading, told_at=self.clock())
        if key in self.ahead:
            reading = replace(reading, state=ReplicaState.AHEAD)
        elif reading.watermark < self.history.baseline:
            reading = replace(reading, state=ReplicaState.UNKNOWN)
        if reading.state is ReplicaState.STREAMING:
            watermark = max(old.watermark, reading.watermark)
            known, born_at = max(old.fresh_at, reading.fresh_at), self._born_at.get(key, -math.inf)
            fresh_at = self.history.fresh_at(watermark, known, born_at)
            reading = replace(reading, watermark=watermark, fresh_at=fresh_at)
        else:
            reading = replace(reading, watermark=-1)
        self.set(key, reading)

    def forget(self, alias: str, life: Life | None = None) -> None:
        """Forget what a replica had replayed: it is not the server that it was, but begins that life."""
        with self.changed:
            if alias not in self.readings:
                return
            self.breaker.close(alias)
            self.ahead.discard(alias)
            # What others tell may be of the server that it was: a look of one's own comes first.
            self.doubted.add(alias)
            self._born_at[alias] = self.clock()
            self.readings[alias] = Reading(self.readings[alias].state)
            if life is not None:  # at last: who sees the new life sees nothing of the one before
                self.servers.begin_life(alias, life)

    def lose(self, key: str, state: ReplicaState, error: Exception | str) -> None:
        """Take a replica out, until a look at it succeeds."""
        with self.changed:
            if key not in self.readings:
                return
            self.doubted.add(key)
            if (self.readings[key].state, state) == (ReplicaState.SILENT, ReplicaState.UNREACHABLE):
                state = ReplicaState.SILENT  # its connection was ended because of that
            self.set(key, Reading(state, read_at=self.clock()), str(error))
        self.announce()
