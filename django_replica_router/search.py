"""The search for a replica that may serve a reader: look, wait a little, fall back."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from django_replica_router.balancers import Order
from django_replica_router.budget import budget
from django_replica_router.connecting import ask_over_connection, connect_to_replica, life_behind
from django_replica_router.errors import ReplicasLagError
from django_replica_router.monitor import Monitor
from django_replica_router.policy import (
    Decision,
    Reason,
    Replica,
    ReplicaState,
    choose_least_lagged,
    choose_replica,
    fallback_reason,
)
from django_replica_router.stats import count
from django_replica_router.tokens import Position


class Target(NamedTuple):
    """What a replica must have, to be chosen.

    Args:
        floor: the position that it must have replayed.
        age: about how many seconds ago that was written.
        max_lag: seconds that its data may be old.
        connect_timeout: seconds within which it must accept a connection.
        fallback_lag: seconds that its data may be old where no replica has it otherwise.
        primary_share: share of the reads that may go to the primary where none has it at all.
    """

    floor: Position
    age: float
    max_lag: float
    connect_timeout: float
    fallback_lag: float | None
    primary_share: float


class Found(NamedTuple):
    """What was found.

    Args:
        decision: for a replica, or for the primary.
        life: which server, and which life of it, the connection to the replica reaches; None for
            the primary, and where nobody knows.
    """

    decision: Decision
    life: tuple[Any, ...] | None = None


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
    if alias not in monitor.readings:
        return None
    life = monitor.life(alias)  # before the reading, which may be newer
    decision = choose_replica([monitor.replica(alias)], floor, max_lag)
    if decision is None:
        return None
    connection = connect_to_replica(alias, monitor, connect_timeout)
    if connection is None or not _is_in_life(alias, life, monitor):
        return None
    return Found(decision, life_behind(connection))


def _is_in_life(alias: str, life: tuple[object, ...] | None, monitor: Monitor) -> bool:
    # Else it was started anew since it was chosen: what it had replayed then says nothing.
    return monitor.life(alias) == life


class Search:
    """One search. What is left of the wait budget afterwards is in ``wait_left``.

    Args:
        primary: alias of the primary.
        monitor: what is known of the replicas.
        order: of the replicas for this reader.
        target: what the replica must have.
        wait_left: seconds that may be waited.
        keeps_replica: it matters that the reader stays with the replica that is first in order. What
            was shown there is recorded nowhere; so another one must have all that the primary had
            when this search began.
    """

    def __init__(
        self,
        primary: str,
        monitor: Monitor,
        order: Order,
        target: Target,
        wait_left: float,
        *,
        keeps_replica: bool,
    ) -> None:
        self.wait_left = wait_left
        self._primary = primary
        self._monitor = monitor
        self._order = order
        self._target = target
        self._usual = order.first if keeps_replica else None
        self._began = monitor.clock()
        self._has_sampled = False
        self._refused: set[str] = set()
        self._lives: dict[str, tuple[object, ...] | None] = {}

    def run(self) -> Found:
        """Return the decision for a replica, or for the primary where none may serve.

        Raises:
            ReplicasLagError: none may serve, and the primary's share of reads is used up.
        """
        target = self._target
        while True:
            # The preferred replica alone at first: who stays with one never goes back in time.
            decision = self._choose(self._preferred(), elapsed=0.0)
            if decision is None:
                decision = self._wait()
            if decision is None and target.fallback_lag is not None:
                decision = choose_least_lagged(self._ranked(), target.floor, target.fallback_lag)
            if decision is None:
                return Found(self._fall_back())
            alias, life = decision.alias, self._lives.get(decision.alias)
            connection = connect_to_replica(alias, self._monitor, target.connect_timeout)
            if connection is not None and _is_in_life(alias, life, self._monitor):
                return Found(decision, life_behind(connection))
            self._refused.add(alias)

    def _preferred(self) -> list[Replica]:
        first = self._order.first
        if first is None or first in self._refused or first not in self._monitor.readings:
            return self._ranked()[:1]
        return [self._replica(first)]

    def _replica(self, alias: str) -> Replica:
        self._lives[alias] = self._monitor.life(alias)  # before the reading, which may be newer
        return self._monitor.replica(alias)

    def _ranked(self) -> list[Replica]:
        monitor, refused = self._monitor, self._refused
        return [
            self._replica(alias)
            for alias in self._order.all()
            if alias in monitor.readings and alias not in refused
        ]

    def _choose(
        self, replicas: list[Replica], *, elapsed: float, waited: bool = False
    ) -> Decision | None:
        """Return a decision for the first that may serve.

        Args:
            replicas: the candidates.
            elapsed: seconds since the search began, when the candidates were looked at: what is no
                older than that has all that the reader can have seen before.
            waited: the decision comes after waiting.
        """
        floor, max_lag = self._target.floor, self._target.max_lag
        for replica in replicas:
            is_usual = self._usual in (None, replica.alias)
            limit = max_lag if is_usual else min(max_lag, elapsed)
            decision = choose_replica([replica], floor, limit, waited=waited)
            if decision is not None:
                return decision
        return None

    def _look(self, *, waited: bool = False) -> Decision | None:
        # Taken before the readings are: a replica's age must not count from a later moment.
        elapsed = self._monitor.clock() - self._began
        return self._choose(self._ranked(), elapsed=elapsed, waited=waited)

    def _wait(self) -> Decision | None:
        """Wait for a replica to become eligible, within what is left of the scope's budget."""
        monitor, target = self._monitor, self._target
        if fallback_reason(self._ranked()) is Reason.NO_REPLICA:
            return None
        decision = self._ask_usual()
        if decision is not None:
            return decision
        age = monitor.want(target.floor.lsn, target.age)
        monitor.refresh(target.max_lag)
        if self.wait_left <= 0:
            return self._look()
        patient = monitor.expects(age, within=self.wait_left)
        # Half the budget is the usual replica's alone, if it is likely to make it.
        hope = monitor.expects(age, within=self.wait_left, alias=self._order.first)
        began = monitor.clock()
        hope_until = began + (self.wait_left / 2 if hope else 0.0)

        def look() -> Decision | Literal[False] | None:
            replicas = self._ranked()
            decision = self._look(waited=True)
            first = replicas[:1]
            if decision is not None and decision.alias == first[0].alias:
                return decision
            is_too_soon = not monitor.has_looked_since(began, first)
            if is_too_soon or monitor.clock() < hope_until:
                return None
            if decision is not None:
                return decision
            if not patient and monitor.has_looked_since(began, replicas):
                return False  # replicas usually take longer: one look at each, and no more
            self._sample_primary()
            return None

        found = monitor.wait_for(look, self.wait_left)
        self.wait_left = max(0.0, self.wait_left - (monitor.clock() - began))
        if isinstance(found, Decision):
            return found
        # It is due about now: better asked for once more than left to the primary, where the reader
        # would see what no replica has for as long again.
        is_due = found is None and patient
        return (self._ask_usual() if is_due else None) or self._look()

    def _ask_usual(self) -> Decision | None:
        """Ask the preferred replica where it stands now: the last look at it may be long past."""
        for replica in self._preferred():
            # One that may not serve whatever it answers is not asked: it may be one that hangs.
            is_well = replica.state is ReplicaState.STREAMING
            if is_well and replica.watermark < self._target.floor.lsn:
                ask_over_connection(replica.alias, self._monitor)
        return self._choose(self._preferred(), elapsed=0.0)

    def _sample_primary(self) -> None:
        """Have the primary sampled, once: another replica than the usual must be past that."""
        if self._usual is not None and not self._has_sampled:
            self._has_sampled = True
            self._monitor.refresh(0.0)

    def _fall_back(self) -> Decision:
        """Return the decision for the primary, within its share of the reads."""
        replicas, share = self._ranked(), self._target.primary_share
        decision = Decision(self._primary, fallback_reason(replicas))
        if not replicas or share >= 1 or budget.grant_fallback(share):
            return decision
        count("fallbacks_refused")
        known = ", ".join(f"{r.alias!r} ({r.state.value}, {r.age:.1f} s old)" for r in replicas)
        message = (
            f"No replica of {self._primary!r} may serve this read, and PRIMARY_SHARE ({share:g}) of "
            f"the reads has gone to the primary already. Known: {known}. Raise PRIMARY_SHARE, "
            f"MAX_LAG or FALLBACK_LAG, or mend the replicas."
        )
        raise ReplicasLagError(message)
