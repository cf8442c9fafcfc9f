"""The search for a replica that may serve a reader: look, wait a little, yield, fall back."""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import connections

from django_replica_router.errors import ReplicasLagError
from django_replica_router.policy import (
    Decision,
    Reason,
    Replica,
    choose_least_lagged,
    choose_replica,
    decide_for,
    fallback_reason,
    may_serve,
)
from django_replica_router.replicas.connecting import connect_to_replica, reach
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sights import life_behind
from django_replica_router.routing.budget import monotonic_budget, primary_budget
from django_replica_router.routing.waiting import Waiting
from django_replica_router.stats import count
from django_replica_router.values.tokens import Position


class Found(NamedTuple):
    """What was found.

    Args:
        decision: for a replica, or for the primary.
        life: which server, and which life of it, the connection to the replica reaches; None for
            the primary, and where nobody knows.
        connection: this thread's connection to the replica.
    """

    decision: Decision
    life: tuple[Any, ...] | None = None
    connection: Any = None


def find_at_once(
    alias: str, monitor: Monitor, floor: Position, max_lag: float, connect_timeout: float
) -> Found | None:
    """Return the decision for a replica that may serve as it stands, or None where it may not.

    Nearly every first decision of a scope is made here, and needs no search.

    Args:
        alias: alias of the reader's usual replica.
        monitor: what is known of the replicas.
        floor: the position that it must have replayed.
        max_lag: seconds that its data may be old.
        connect_timeout: seconds within which it must accept a connection.
    """
    if alias not in monitor.known.readings:
        return None
    if alias in monitor.servers.endpoints:

        def suits(replica: Replica) -> bool:
            return may_serve(replica, floor, max_lag)

        replica = reach(alias, monitor, connect_timeout, suits)
        decision = None if replica is None else choose_replica([replica], floor, max_lag)
        return None if decision is None else Found(decision, life_behind(connections[alias]))
    life = monitor.servers.life(alias)  # before the reading, which may be newer
    if not may_serve(monitor.health.of_key(alias, alias), floor, max_lag):
        return None
    connection = connect_to_replica(alias, monitor, connect_timeout)
    if connection is None or not _is_in_life(alias, life, monitor):
        return None
    return Found(decide_for(alias, floor.lsn > 0), life_behind(connection), connection)


def _is_in_life(alias: str, life: tuple[object, ...] | None, monitor: Monitor) -> bool:
    # Else it was started anew since it was chosen: what it had replayed then says nothing.
    return monitor.servers.life(alias) == life


class Search(Waiting):
    """One search, for a decision that is for a replica or for the primary."""

    def run(self) -> Found:
        """Return the decision for a replica, or for the primary where none may serve.

        Raises:
            ReplicasLagError: none may serve, and the primary's share of reads is used up.
        """
        target = self._target
        while True:
            # The preferred replica alone at first: who stays with one never goes back in time.
            decision = self._choose(self._candidates.preferred(), elapsed=0.0)
            if decision is None:
                decision = self._wait()
            if decision is None and target.fallback_lag is not None:
                decision = choose_least_lagged(
                    self._candidates.ranked(), target.floor, target.fallback_lag
                )
            if decision is None:
                decision = self._fall_back()
                if decision.alias == self._primary:
                    return Found(decision)
            alias, life = decision.alias, self._candidates.lives.get(decision.alias)
            if life is None and alias in self._monitor.servers.endpoints:
                # Chosen by the best of its servers: which one it is shows when it is reached.
                if not self._reach(decision):
                    self._candidates.refused.add(alias)
                continue
            connection = connect_to_replica(alias, self._monitor, target.connect_timeout)
            if connection is not None and self._is_in_life(connection, alias, life):
                return Found(decision, life_behind(connection), connection)
            self._candidates.refused.add(alias)

    def _reach(self, decision: Decision) -> bool:
        """Connect to a server behind an endpoint; tell whether there is one."""
        target = self._target
        is_yielding = decision.reason is Reason.YIELDED and target.written is not None
        floor = target.written if is_yielding else target.floor

        def suits(replica: Replica) -> bool:
            return may_serve(replica, floor or target.floor, target.max_lag)

        return reach(decision.alias, self._monitor, target.connect_timeout, suits) is not None

    def _is_in_life(self, connection: Any, alias: str, life: tuple[object, ...] | None) -> bool:
        if alias in self._monitor.servers.endpoints:
            return alias in self._monitor.servers.led or life_behind(connection) == life
        return _is_in_life(alias, life, self._monitor)

    def _fall_back(self) -> Decision:
        """Return the decision for the primary, within its shares of the reads.

        Where the reader may yield to a replica, that one takes over when either share is used up.
        """
        replicas, target = self._candidates.known(), self._target
        yielding = self._target.choose_yielding(self._candidates.ranked())
        if yielding is not None and not monotonic_budget.grant(target.monotonic_share):
            return yielding
        share = target.primary_share
        if not replicas or share >= 1 or primary_budget.grant(share):
            return Decision(self._primary, fallback_reason(replicas))
        if yielding is not None:
            return yielding
        count("fallbacks_refused")
        raise ReplicasLagError(_refusal(self._primary, share, replicas))


def _refusal(primary: str, share: float, replicas: list[Replica]) -> str:
    known = ", ".join(f"{r.alias!r} ({r.state.value}, {r.age:.1f} s old)" for r in replicas)
    return (
        f"No replica of {primary!r} may serve this read, and PRIMARY_SHARE ({share:g}) of "
        f"the reads has gone to the primary already. Known: {known}. Raise PRIMARY_SHARE, "
        f"MAX_LAG or FALLBACK_LAG, or mend the replicas."
    )
