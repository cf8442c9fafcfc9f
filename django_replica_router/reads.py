"""Reads: which server a read goes to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from django.db import connections

from django_replica_router.balancers import get_balancer, least_in_flight
from django_replica_router.conf import Config
from django_replica_router.context import ClusterScope, Frame, Scope
from django_replica_router.errors import StoreError
from django_replica_router.floors import expiry_ms, load_floor
from django_replica_router.monitor import Monitor
from django_replica_router.policy import (
    Decision,
    Reason,
    Replica,
    Situation,
    choose_replica,
    decide_at_once,
    fallback_reason,
    floor_reason,
)
from django_replica_router.registry import get_monitor
from django_replica_router.tokens import Floor, Position
from django_replica_router.writes import locate

logger = logging.getLogger("django_replica_router")


def route_read(primary: str, model: Any, config: Config, frame: Frame) -> str:
    """Return the alias that serves a read of that model in the cluster of that primary."""
    decision = _decide(primary, model, config, frame)
    if frame.scope is not None and frame.scope.decisions is not None:
        frame.scope.note_decision(decision)
    return decision.alias


def _decide(primary: str, model: Any, config: Config, frame: Frame) -> Decision:
    scope, override = frame
    state = None if scope is None else scope.clusters.get(primary)
    asked_for_replica = override is not None and not override.primary
    decision = decide_at_once(
        Situation(
            primary,
            enabled=config.ENABLED,
            forced_primary=override is not None and override.primary,
            asked_for_replica=asked_for_replica,
            primary_in_atomic=connections[primary].in_atomic_block,
            replica_in_atomic=_replica_in_atomic(primary, config),
            primary_only=config.is_primary_only(model),
            has_scope=scope is not None,
            replica_failed=state is not None and state.failed,
            wrote=state is not None and state.wrote,
            unsafe=scope is not None and scope.unsafe,
        )
    )
    if decision is not None:
        return decision
    if scope is None:  # a use_replica block always has a scope: this is for the type checker
        return Decision(primary, Reason.NO_SCOPE)
    max_lag = config.MAX_LAG
    if asked_for_replica and override is not None and override.max_lag is not None:
        max_lag = override.max_lag
    return _decide_by_token(primary, scope, max_lag, config)


def _replica_in_atomic(primary: str, config: Config) -> str | None:
    for alias in config.topology.clusters[primary]:
        # Looked up without making a connection object for each alias in each thread.
        connection = getattr(connections._connections, alias, None)  # type: ignore[attr-defined]
        if connection is not None and connection.in_atomic_block:
            return alias
    return None


def _decide_by_token(primary: str, scope: Scope, max_lag: float, config: Config) -> Decision:
    state = scope.cluster(primary)
    users = scope.identity.users()
    choice = state.choices.get(max_lag)
    if choice is not None and (users == state.seen_users or choice.alias == primary):
        return choice
    if _in_event_loop():
        # Asking the store or a replica would block the loop. The query itself runs in a thread
        # and asks again there.
        return Decision(primary, Reason.EVENT_LOOP)
    decision = _decide_anew(primary, scope, state, max_lag, config, choice)
    state.choices[max_lag] = decision
    if config.BALANCER == "least_in_flight" and decision.alias not in (primary, *state.entered):
        least_in_flight.enter(decision.alias)
        state.entered.append(decision.alias)
    return decision


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None


def _decide_anew(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    max_lag: float,
    config: Config,
    choice: Decision | None,
) -> Decision:
    try:
        floor = load_floor(primary, scope, config)
    except StoreError as error:
        logger.warning("%s", error)
        state.store_failed = True
    if state.store_failed:
        return Decision(primary, Reason.STORE_ERROR)
    if None in state.sessions.values():
        return Decision(primary, Reason.UNKNOWN_SESSION)
    if state.pending is not None:
        # use_replica after a write of this very scope: the replica must have that, too.
        written = locate(primary, state.pending)
        if written is None:
            return Decision(primary, Reason.UNRECORDED_WRITE)
        floor = Floor(max(floor.position, written), floor.pinned, expiry_ms(config))
    weights = config.topology.clusters[primary]
    monitor = get_monitor(primary, tuple(weights), config.interval)
    reason = floor_reason(floor, monitor.timeline)
    if reason is not None:
        return Decision(primary, reason)
    if state.wait_left is None:
        state.wait_left = config.WAIT
    order = _rank(scope, weights, config)
    if choice is not None:
        # The user became known. Two reads of one request never go to two replicas: the one that
        # has served so far must pass again, or the primary takes over.
        order = [choice.alias]
    # Wall clocks of two machines may differ: good enough to guess how long to wait.
    age = max(0.0, (expiry_ms(config) - floor.expires_ms) / 1000)
    return _choose(primary, state, monitor, order, Target(floor.position, age, max_lag))


def _rank(scope: Scope, weights: Mapping[str, float], config: Config) -> list[str]:
    # The session comes first: it is there from the first read of a request on, the user is not.
    names = scope.identity.sessions() or scope.identity.users()
    ranked = get_balancer(config.BALANCER)(names[0] if names else "", weights)
    return [alias for alias in ranked if alias in weights]


class Target(NamedTuple):
    """What a replica must have, to be chosen.

    Args:
        floor: the position that it must have replayed.
        age: about how many seconds ago that was written.
        max_lag: seconds that its data may be old.
    """

    floor: Position
    age: float
    max_lag: float

    def choose(self, ranked: list[Replica], *, waited: bool = False) -> Decision | None:
        """Return the first replica, in order of preference, that has it."""
        return choose_replica(ranked, self.floor, self.max_lag, waited=waited)


def _choose(
    primary: str, state: ClusterScope, monitor: Monitor, order: list[str], target: Target
) -> Decision:
    refused: set[str] = set()

    def ranked() -> list[Replica]:
        known = {replica.alias: replica for replica in monitor.replicas()}
        return [known[alias] for alias in order if alias in known and alias not in refused]

    while True:
        # The preferred replica alone at first: who stays with one never goes back in time.
        decision = target.choose(ranked()[:1])
        if decision is None:
            decision = _wait(state, monitor, ranked, target)
        if decision is None:
            return Decision(primary, fallback_reason(ranked()))
        if _can_connect(decision.alias, monitor):
            return decision
        refused.add(decision.alias)


def _wait(
    state: ClusterScope,
    monitor: Monitor,
    ranked: Callable[[], list[Replica]],
    target: Target,
) -> Decision | None:
    """Wait for a replica to become eligible, within what is left of the scope's budget."""
    budget = state.wait_left or 0.0
    if fallback_reason(ranked()) is Reason.NO_REPLICA:
        return None
    monitor.want(target.floor.lsn, target.age)
    monitor.refresh(target.max_lag)
    if budget <= 0:
        return target.choose(ranked())
    patient = monitor.expects(target.age, within=budget)
    began = monitor.clock()

    def look() -> Decision | Literal[False] | None:
        replicas = ranked()
        decision = target.choose(replicas, waited=True)
        if decision is not None and (
            decision.alias == replicas[0].alias or monitor.has_looked_since(began, replicas[:1])
        ):
            return decision
        if decision is None and not patient and monitor.has_looked_since(began, replicas):
            return False  # replicas usually take longer: one look at each, and no more
        return None

    found = monitor.wait_for(look, budget)
    state.wait_left = max(0.0, budget - (monitor.clock() - began))
    return found if isinstance(found, Decision) else target.choose(ranked())


def _can_connect(alias: str, monitor: Monitor) -> bool:
    """Tell whether a connection to the replica stands, opening it where there is none yet.

    Django would open it a moment later for the query, where a failure cannot be mended any more.
    """
    connection = connections[alias]
    # In a test whose class does not list the alias in ``databases``, Django's test case puts an
    # object of this class in the place of the method, and any use of it fails the test.
    if type(connection.__dict__.get("cursor")).__name__ == "_DatabaseFailure":
        return False
    try:
        connection.ensure_connection()
    except Exception as error:  # refused, timed out, misconfigured: never the visitor's concern
        monitor.report(alias, error)
        return False
    return True
