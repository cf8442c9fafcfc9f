"""Waiting a little for a replica that does not serve a reader yet, and is about to."""

from __future__ import annotations

from typing import Literal

from django_replica_router.policy import (
    Decision,
    Reason,
    Replica,
    ReplicaState,
    choose_replica,
    fallback_reason,
    may_serve,
)
from django_replica_router.replicas.asking import (
    ask_over_connection,
    wait_over_connection,
    waits_itself,
)
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.routing.balancers import Order
from django_replica_router.routing.candidates import Candidates, Target
from django_replica_router.values.tokens import NOWHERE


class Waiting:
    """Chooses among the replicas as they are known now, and waits for one within a budget.

    What is left of the budget afterwards is in ``wait_left``.

    Args:
        primary: alias of the primary.
        monitor: what is known of the replicas.
        order: of the replicas for this reader.
        target: what the replica must have.
        wait_left: seconds that may be waited.
        keeps_replica: it matters that the reader stays with the replica that is first in order. What
            was shown there is recorded nowhere; so another one must have all that the primary had
            when this search began.
        is_moved: the one that is first now may not be the one that the reader was with a moment ago:
            it counts as another one.
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
        is_moved: bool = False,
    ) -> None:
        self.wait_left = wait_left
        self._primary = primary
        self._monitor = monitor
        self._target = target
        self._candidates = Candidates(monitor, order)
        usual = "" if is_moved else order.first
        self._usual = usual if keeps_replica else None
        self._began = monitor.clock()
        self._has_sampled = False

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
        return self._choose(self._candidates.ranked(), elapsed=elapsed, waited=waited)

    def _wait(self) -> Decision | None:
        """Wait for a replica to become eligible, within what is left of the scope's budget."""
        monitor, target = self._monitor, self._target
        if fallback_reason(self._candidates.ranked()) is Reason.NO_REPLICA:
            return None
        decision = self._wait_at_usual() or self._ask_usual()
        if decision is not None:
            return decision
        age = monitor.waiting.want(target.floor.lsn, target.age)
        monitor.known.refresh(target.max_lag)
        patient = monitor.waiting.expects(age, within=self.wait_left)
        # Who may yield to a replica need not wait for a look at each that hardly helps.
        if self.wait_left <= 0 or (
            not patient and self._target.choose_yielding(self._candidates.ranked()) is not None
        ):
            return self._look()
        found = self._watch(age, patient=patient)
        if isinstance(found, Decision):
            return found
        # It is due about now: better asked for once more than left to the primary, where the reader
        # would see what no replica has for as long again.
        is_due = found is None and patient
        return (self._ask_usual() if is_due else None) or self._look()

    def _watch(self, age: float, *, patient: bool) -> Decision | Literal[False] | None:
        """Return the decision for the first replica that looks show to be eligible while the budget lasts.

        None where it is over; False where one look at each has shown that it is not worth it.
        """
        monitor = self._monitor
        # Half the budget is the usual replica's alone, if it is likely to make it.
        alias = self._candidates.order.first
        is_hope = alias not in self._candidates.refused
        hope = is_hope and monitor.waiting.expects(age, self.wait_left, alias)
        began = monitor.clock()
        hope_until = began + (self.wait_left / 2 if hope else 0.0)

        def look() -> Decision | Literal[False] | None:
            replicas = self._candidates.known()
            decision = self._look(waited=True)
            first = replicas[:1]
            if decision is not None and decision.alias == first[0].alias:
                return decision
            is_too_soon = not monitor.waiting.has_looked_since(began, first)
            if is_too_soon or monitor.clock() < hope_until:
                return None
            if decision is not None:
                return decision
            if not patient and monitor.waiting.has_looked_since(began, replicas):
                return False  # replicas usually take longer: one look at each, and no more
            self._sample_primary()
            return None

        found: Decision | Literal[False] | None = monitor.waiting.wait_for(look, self.wait_left)
        self.wait_left = max(0.0, self.wait_left - (monitor.clock() - began))
        return found

    def _wait_at_usual(self) -> Decision | None:
        """Have the preferred replica's server wait itself, where it can and should get there in time."""
        monitor, target = self._monitor, self._target
        for replica in self._candidates.preferred():
            alias = replica.alias
            is_well = may_serve(replica, NOWHERE, target.max_lag) and self._usual in (None, alias)
            is_behind = is_well and replica.watermark < target.floor.lsn
            if self.wait_left <= 0 or not is_behind or not waits_itself(alias, monitor):
                return None
            age = monitor.waiting.note_wanted(target.floor.lsn, target.age)
            if not monitor.waiting.expects(age, self.wait_left, alias):
                return None
            # As where pollers look: one that should soon be there, and is not, leaves others half of it.
            is_due_soon = monitor.waiting.expects(age, self.wait_left / 4, alias)
            is_alone = fallback_reason(self._others(alias)) is Reason.NO_REPLICA
            share = 0.5 if is_due_soon and not is_alone else 1.0
            began = monitor.clock()
            wait_over_connection(
                alias, monitor, target.floor.lsn, share * self.wait_left, target.connect_timeout
            )
            self.wait_left = max(0.0, self.wait_left - (monitor.clock() - began))
        return self._choose(self._candidates.preferred(), elapsed=0.0, waited=True)

    def _others(self, alias: str) -> list[Replica]:
        return [replica for replica in self._candidates.ranked() if replica.alias != alias]

    def _ask_usual(self) -> Decision | None:
        """Ask the preferred replica where it stands now: the last look at it may be long past."""
        for replica in self._candidates.preferred():
            # One that may not serve whatever it answers is not asked: it may be one that hangs.
            is_well = replica.state is ReplicaState.STREAMING
            if is_well and replica.watermark < self._target.floor.lsn:
                ask_over_connection(replica.alias, self._monitor)
        return self._choose(self._candidates.preferred(), elapsed=0.0)

    def _sample_primary(self) -> None:
        """Have the primary sampled, once: another replica than the usual must be past that."""
        if self._usual is not None and not self._has_sampled:
            self._has_sampled = True
            self._monitor.known.refresh(0.0)
