"""What the scope must see, and which replica has it: the decision that the scope's reads then go by."""

from __future__ import annotations

import asyncio
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import Config
from django_replica_router.errors import StoreError
from django_replica_router.logs import fields, logger
from django_replica_router.policy import Decision, Reason
from django_replica_router.recording.floors import load_floor
from django_replica_router.recording.learning import is_learned
from django_replica_router.replicas.connecting import connect_to_replica, find_connection
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.routing.balancers import least_in_flight
from django_replica_router.routing.budget import monotonic_budget, primary_budget
from django_replica_router.routing.choosing import (
    Case,
    choose_server,
    identifies_unknown_reader,
    note_unstored_reads,
)
from django_replica_router.routing.shadowing import count_in_shadow, is_shadowed
from django_replica_router.routing.usual import usual_for
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.scope import NO_OVERRIDE, Override, Scope
from django_replica_router.stats import count
from django_replica_router.values.tokens import Floor


def decide_by_token(
    primary: str,
    connection: BaseDatabaseWrapper,
    model: Any,
    scope: Scope,
    max_lag: float,
    config: Config,
    override: Override = NO_OVERRIDE,
) -> Decision:
    """Return the decision that goes by what the reader must see: that of before, or one for the scope."""
    state = scope.cluster(primary)
    choices = state.route.choices  # where another thread writes meanwhile, there is a new one
    choice = choices.get(max_lag)
    if choice is not None:
        if choice.alias == primary:
            return choice
        if _holds(choice, max_lag, scope, state):
            return _follow(primary, choice, state, config)
    if in_event_loop():
        # Asking the store or a replica would block the loop. The query itself runs in a thread
        # and asks again there.
        return Decision(primary, Reason.EVENT_LOOP)
    if choice is None and is_learned(scope, config):
        count(Reason.LEARNED.event)
        return Decision(primary, Reason.LEARNED)
    try:
        floor = load_floor(primary, scope, config)
    except StoreError as error:
        return _decide_without_store(primary, state, choices, max_lag, error)
    is_named = choice is None and state.reader.name
    if is_named and identifies_unknown_reader(model, scope, state):
        return Decision(primary, Reason.UNKNOWN_SESSION)
    usual = usual_for(primary, config)
    if not choices:
        decision = usual.choose(scope, state, connection, max_lag, floor)
        if decision is not None and choices.setdefault(max_lag, decision) is decision:
            state.route.floor = floor
            _count(decision, config)
            return decision
    monitor = usual.monitor
    case = Case(primary, connection, scope, state, config, monitor, max_lag, choice, override)
    return _decide_case(case, choices, floor)


def _decide_case(case: Case, choices: dict[float, Decision], floor: Floor) -> Decision:
    """Return the decision for a case, which holds from now on.

    Args:
        case: the case.
        choices: those of the scope.
        floor: what the reader must see.
    """
    route, carried = case.state.route, case.scope.carried  # which may be more a moment later
    before = route.floor
    was_raised = (before is None and bool(choices)) or route.carried is not carried
    decision = _keep(case, choices, _choose(case, floor))
    is_late = case.is_shadowed and case.choice is not None
    if was_raised or before not in (None, floor) or is_late:
        _leave_others(case.primary, choices, case.max_lag, decision)
    route.floor, route.carried = floor, carried
    return decision


def _choose(case: Case, floor: Floor) -> Decision:
    """Return the decision by what the reader must see, and count it."""
    primary, config = case.primary, case.config
    case.is_shadowed = config.shadows and is_shadowed(case.state.reader, config)
    decision, life, _ = choose_server(case, floor)
    if case.is_shadowed:
        return count_in_shadow(primary, decision)
    if decision.alias != primary:
        case.state.route.lives[decision.alias] = life
    _count(decision, config)
    return decision


def _holds(choice: Decision, max_lag: float, scope: Scope, state: ClusterScope) -> bool:
    """Tell whether the replica that was chosen before is to be followed."""
    # Looked at once more: while it was asked, another thread may have decided by more.
    return not is_floor_new(scope, state) and state.route.choices.get(max_lag) is choice


def is_floor_new(scope: Scope, state: ClusterScope) -> bool:
    """Tell whether a user, or a token, has become known that the decisions of the scope do not go by.

    Who has asked the store for it may not have decided by it: another thread is about to, or it was
    asked for a token that leaves.
    """
    users, floor = scope.identity.users(), state.reader.floor
    if floor is None:
        return True
    if users != state.reader.users:
        if not all(user in state.reader.records for user in users):
            return True
        # The session's record had named them: their tokens are in the floor already.
        state.reader.users = users
    route = state.route
    if scope.carried is not route.carried:
        return True
    return route.floor is not floor and route.floor != floor


def _decide_without_store(
    primary: str,
    state: ClusterScope,
    choices: dict[float, Decision],
    max_lag: float,
    error: StoreError,
) -> Decision:
    logger.warning("%s", error, extra=fields("store_failed", error, primary=primary))
    note_unstored_reads(primary)
    state.reader.store_failed = True
    count(Reason.STORE_ERROR.event)
    kept = choices.setdefault(max_lag, Decision(primary, Reason.STORE_ERROR))
    if kept.alias != primary:
        # It was decided before a user became known, or by a thread that has not met him.
        kept = choices[max_lag] = Decision(primary, Reason.STORE_ERROR)
        state.shortcuts.clear()
    return kept


def _count(decision: Decision, config: Config) -> None:
    count(decision.reason.event, f"reads_from_{decision.alias}")
    if config.PRIMARY_SHARE < 1:
        primary_budget.note_decision()
    if config.yields:
        monotonic_budget.note_decision()


def _enter(alias: str, state: ClusterScope) -> None:
    """Count the scope as one that works with the replica, for the balancer."""
    if alias not in state.route.entered:
        least_in_flight.enter(alias)
        state.route.entered += (alias,)


def _keep(case: Case, choices: dict[float, Decision], decision: Decision) -> Decision:
    """Have the decision hold for the rest of the scope; return the one that does."""
    primary, max_lag = case.primary, case.max_lag
    kept = choices.setdefault(max_lag, decision)
    if kept is case.choice:
        kept = choices[max_lag] = decision
        if kept.alias != case.choice.alias:
            case.state.shortcuts.clear()  # of a thread that has followed it meanwhile
    elif kept.alias not in (decision.alias, primary):
        # Another thread was first, and may not have known the user yet: it asked for less.
        kept = choices[max_lag] = Decision(primary, Reason.LAGGING)
        case.state.shortcuts.clear()
    if case.config.BALANCER == "least_in_flight" and kept.alias != primary:
        _enter(kept.alias, case.state)
    return kept


def _leave_others(
    primary: str, choices: dict[float, Decision], max_lag: float, decision: Decision
) -> None:
    """Have the primary serve where another replica was chosen, under another lag, before a user became known."""
    for lag, other in list(choices.items()):
        if lag != max_lag and other.alias not in (decision.alias, primary):
            choices[lag] = Decision(primary, Reason.LAGGING)


def _follow(primary: str, choice: Decision, state: ClusterScope, config: Config) -> Decision:
    """Return what was chosen for the scope, or the primary where this thread cannot connect to it.

    Another thread may have chosen; and Django would connect where a failure cannot be mended.
    """
    connection = find_connection(choice.alias)
    if (connection is not None and connection.connection is not None) or in_event_loop():
        return choice
    monitor = get_monitor(primary)
    if connect_to_replica(choice.alias, monitor, config.CONNECT_TIMEOUT):
        return choice
    state.leave_replica()
    return Decision(primary, Reason.REPLICA_FAILED)


def is_unrouted(primary: str, scope: Scope, config: Config) -> bool:
    """Tell whether the primary serves the reader because of SHADOW or ROLLOUT, whatever else it serves them for.

    Where the store does not tell who the reader is, only if it serves everybody.
    """
    if config.routes_nobody or not config.shadows:
        return config.routes_nobody
    try:
        load_floor(primary, scope, config)
    except StoreError:
        return False
    return is_shadowed(scope.cluster(primary).reader, config)


def in_event_loop() -> bool:
    """Tell whether an event loop runs in this thread, which must not wait for anything."""
    return asyncio._get_running_loop() is not None


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    if not least_in_flight.counts:
        return
    for state in list(scope.clusters.values()):
        entered, state.route.entered = state.route.entered, ()
        for alias in entered:
            least_in_flight.leave(alias)
