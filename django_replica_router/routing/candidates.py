"""What a search looks at: the replicas as they are known now, and what one must have to be chosen."""

from __future__ import annotations

from typing import NamedTuple

from django_replica_router.policy import Decision, Replica, ReplicaState, choose_yielding
from django_replica_router.replicas.connecting import refused_replicas
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sights import open_life
from django_replica_router.routing.balancers import Order
from django_replica_router.values.tokens import Position


class Target(NamedTuple):
    """What a replica must have, to be chosen.

    Args:
        floor: the position that it must have replayed.
        age: about how many seconds ago that was written.
        max_lag: seconds that its data may be old.
        connect_timeout: seconds within which it must accept a connection.
        fallback_lag: seconds that its data may be old where no replica has it otherwise.
        primary_share: share of the reads that may go to the primary where none has it at all.
        monotonic_share: share of those that may go there where one has what the reader has written.
        written: that; None where the reader yields to none.
    """

    floor: Position
    age: float
    max_lag: float
    connect_timeout: float
    fallback_lag: float | None
    primary_share: float
    monotonic_share: float = 1.0
    written: Position | None = None

    def choose_yielding(self, replicas: list[Replica]) -> Decision | None:
        """Return the decision for a replica that has what the reader has written, where that may do."""
        if self.written is None:
            return None
        return choose_yielding(replicas, self.written, self.max_lag)


class Candidates:
    """The replicas as they are known at each moment of one search, for one reader.

    Args:
        monitor: what is known of them.
        order: of the replicas for this reader.
    """

    def __init__(self, monitor: Monitor, order: Order) -> None:
        self.monitor = monitor
        self.order = order
        self.refused = refused_replicas(monitor)
        """Those that have refused this reader, or would."""
        self.lives: dict[str, tuple[object, ...] | None] = {}
        """In which life each was when it was last looked at here."""

    def preferred(self) -> list[Replica]:
        """Return the first in order, as long as it has not refused."""
        first = self.order.first
        if first is None or first in self.refused or first not in self.monitor.known.readings:
            return self.ranked()[:1]
        return [self._replica(first)]

    def ranked(self) -> list[Replica]:
        """Return those that have not refused, the one to prefer first."""
        return [replica for replica in self.known() if replica.alias not in self.refused]

    def known(self) -> list[Replica]:
        """Return what is known of all replicas, also of those that have refused this reader."""
        readings = self.monitor.known.readings
        return [self._replica(alias) for alias in self.order.all() if alias in readings]

    def _replica(self, alias: str) -> Replica:
        monitor = self.monitor
        # Before the reading, which may be newer.
        life = (
            open_life(alias) if alias in monitor.servers.endpoints else monitor.servers.life(alias)
        )
        self.lives[alias] = life
        replica = monitor.health.replica(alias, life)
        # It may serve those who are connected to it.
        return (
            replica._replace(state=ReplicaState.UNREACHABLE) if alias in self.refused else replica
        )
