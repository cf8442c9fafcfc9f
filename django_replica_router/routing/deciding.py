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
from django_replica_router.scopes.cluster import Choice, ClusterScope
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
    state, carried = scope.cluster(primary), scope.carried  # which may be more a moment later
    choices = state.route.choices  # where another thread writes meanwhile, there is a new one
    choice = choices.get(max_lag)
    if choice is not None:
        if choice.decision.alias == primary:
            return choice.decision
        # Looked at once more: while it was asked, another thread may have decided by more.
        if holds(choice, scope, state) and state.route.choices.get(max_lag) is choice:
            return _follow(primary, choice.decision, state, config)
    if in_event_loop():
        return Decision(primary, Reason.EVENT_LOOP)
    if choice is None and is_learned(scope, config):
        count(Reason.LEARNED.event)
        return Decision(primary, Reason.LEARNED)
    try:
        floor = load_floor(primary, scope, config)
    except StoreError as error:
        return _decide_without_store(primary, state, choices, max_lag, error)
    if choice is None and state.reader.name and identifies_unknown_reader(model, scope, state):
        return Decision(primary, Reason.UNKNOWN_SESSION)
    usual = usual_for(primary, config)
    if not choices:
        decision = usual.choose(scope, state, connection, max_lag, floor)
        if decision is not None:
            first = Choice(decision, floor, carried)
            if choices.setdefault(max_lag, first) is first:
                _count(decision, config)
                return decision
    case = Case(primary, connection, scope, state, config, usual.monitor, max_lag, choice, override)
    return _keep(case, choices, Choice(_choose(case, floor), floor, carried))


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


def holds(choice: Choice, scope: Scope, state: ClusterScope) -> bool:
    """Tell whether a choice of a replica goes by all users and tokens that are known of by now.

    Who has asked the store for them may not have decided by them: another thread is about to, or it was
    asked for a token that leaves.
    """
    users, reader = scope.identity.users(), state.reader
    if reader.floor is None or reader.is_shadowed:
        return False
    if users != reader.users:
        if not all(user in reader.records for user in users):
            return False
        # The session's record had named them: their tokens are in the floor already.
        reader.users = users
    if scope.carried is not choice.carried:
        return False
    return choice.floor is reader.floor or choice.floor == reader.floor


def _decide_without_store(
    primary: str,
    state: ClusterScope,
    choices: dict[float, Choice],
    max_lag: float,
    error: StoreError,
) -> Decision:
    logger.warning("%s", error, extra=fields("store_failed", error, primary=primary))
    note_unstored_reads(primary)
    state.reader.store_failed = True
    count(Reason.STORE_ERROR.event)
    unstored = Choice(Decision(primary, Reason.STORE_ERROR), None, None)
    kept = choices.setdefault(max_lag, unstored)
    if kept.decision.alias != primary:
        # It was decided before a user became known, or by a thread that has not met him.
        kept = choices[max_lag] = unstored
        state.shortcuts.clear()
    return kept.decision


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


def _keep(case: Case, choices: dict[float, Choice], choice: Choice) -> Decision:
    """Have a choice hold for the rest of the scope; return the decision of the one that does."""
    primary, max_lag, before = case.primary, case.max_lag, case.choice
    kept = choices.setdefault(max_lag, choice)
    if before is not None and kept is before:
        kept = choices[max_lag] = choice
        if choice.decision.alias != before.decision.alias:
            case.state.shortcuts.clear()  # of a thread that has followed it meanwhile
    elif kept.decision.alias not in (choice.decision.alias, primary):
        # Another thread was first, and may not have known the user yet: it asked for less.
        late = Decision(primary, Reason.LAGGING)
        kept = choices[max_lag] = Choice(late, choice.floor, choice.carried)
        case.state.shortcuts.clear()
    alias = kept.decision.alias
    if case.config.BALANCER == "least_in_flight" and alias != primary:
        _enter(alias, case.state)
    return kept.decision


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
    """Tell whether an event loop runs in this thread, which asking the store or a replica would block.

    The query itself runs in another thread, and asks again there.
    """
    return asyncio._get_running_loop() is not None


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    if not least_in_flight.counts:
        return
    for state in list(scope.clusters.values()):
        entered, state.route.entered = state.route.entered, ()
        for alias in entered:
            least_in_flight.leave(alias)
