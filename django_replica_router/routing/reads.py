"""Reads: which server a read goes to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import Config
from django_replica_router.errors import StoreError, TooStale, tell_ages
from django_replica_router.logs import fields, logger
from django_replica_router.observations import note_decision, observers
from django_replica_router.policy import (
    Decision,
    Reason,
    Situation,
    choose_stand_in,
    decide_at_once,
)
from django_replica_router.recording.floors import load_floor
from django_replica_router.recording.learning import is_learned
from django_replica_router.recording.writes import leave_unseen
from django_replica_router.replicas.connecting import connect_to_replica, find_connection
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.replicas.wrappers import connection_of
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
from django_replica_router.scopes.scope import Frame, Override, Scope, Shortcut
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import (
    find_replica_in_atomic,
    idle_blocks,
    keeps_reads,
    replicas_in_transaction,
)
from django_replica_router.values.routed import routed_alias
from django_replica_router.values.tokens import Floor

# What a reader sees on the primary for one of these reasons is not remembered: the read is not the
# scope's own choice of a server, or there is nobody to remember it for, or nothing to keep it in.
_UNSEEN = (
    Reason.DISABLED,
    Reason.MODEL,
    Reason.NO_SCOPE,
    Reason.EVENT_LOOP,
    Reason.UNKNOWN_SESSION,
    Reason.SHADOW,
)

# Reasons for the primary that give way where the primary is down: the code has not asked for it, and
# nothing of this scope's own is at stake.
_DISPENSABLE = (
    Reason.MODEL,
    Reason.UNSAFE_METHOD,
    Reason.LEARNED,
    Reason.UNKNOWN_SESSION,
    Reason.STORE_ERROR,
    Reason.EMPTY_STORE,
    Reason.UNRECORDED_WRITE,
    Reason.EPOCH,
    Reason.LAGGING,
    Reason.NO_REPLICA,
    Reason.REPLICA_FAILED,
)

# Decisions that hold as long as the scope does. Of the others those do that the scope has kept.
_LASTING = (Reason.WROTE, Reason.REPLICA_FAILED, Reason.UNSAFE_METHOD, Reason.LEARNED)


_NO_OVERRIDE = Override(primary=False)


def route_read(
    primary: str, model: Any, config: Config, frame: Frame
) -> tuple[str, Shortcut | None]:
    """Return the alias that serves a read of that model in the cluster of that primary.

    Beside it stands the shortcut to it, where the decision holds for more than this read. The alias of
    a replica is a ``RoutedAlias``.
    """
    began = time.perf_counter() if observers.present else 0.0
    connection, scope = connection_of(primary), frame.scope
    if scope is not None and _is_free(primary, connection, model, scope, config, frame):
        decision = _decide_by_token(primary, connection, model, scope, config.MAX_LAG, config)
        if decision.alias != primary and scope.decisions is None and not observers.present:
            # As a rule. It was kept: else no server but the primary is named for all that follows.
            server = routed_alias(decision.alias, primary, config.topology.members[primary])
            return server, _shortcut_to(server, connection, scope, config)
    else:
        decision = _decide_by_rules(primary, connection, model, config, frame)
    if scope is not None and decision.alias == primary:
        decision = _settle_on_primary(decision, connection, model, scope, config)
    alias: str = decision.alias
    if alias != primary:
        alias = routed_alias(alias, primary, config.topology.members[primary])
    if observers.present:
        reason, seconds = decision.reason, time.perf_counter() - began
        note_decision(str(alias), reason.name, reason.value, seconds)
    if scope is None:
        return alias, None
    if scope.decisions is not None:
        scope.note_decision(decision)
    elif (
        not observers.present
        and frame.override is None
        and _is_kept(primary, decision, model, scope, config)
    ):
        return alias, _shortcut_to(alias, connection, scope, config)
    return alias, None


def _is_free(
    primary: str, connection: Any, model: Any, scope: Scope, config: Config, frame: Frame
) -> bool:
    """Tell whether no rule of ``decide_at_once`` can apply, as in most reads."""
    state = scope.clusters.get(primary)
    return (
        frame.override is None
        and model in config.ordinary_models
        and not connection.in_atomic_block
        and not replicas_in_transaction
        and not scope.unsafe
        and not scope.learned
        and config.ENABLED
        and (state is None or not (state.wrote or state.route.failed))
    )


def _shortcut_to(alias: str, connection: Any, scope: Scope, config: Config) -> Shortcut:
    blocks = idle_blocks(connection)
    return Shortcut(alias, connection, blocks, config.ordinary_models, scope.identity)


def _settle_on_primary(
    decision: Decision, connection: Any, model: Any, scope: Scope, config: Config
) -> Decision:
    """Remember that the reader is shown what the primary has, where that has to be there the next time.

    Returns:
        the decision, or one for a replica that stands in for a primary that is down.
    """
    primary = decision.alias
    if config.PRIMARY_DOWN == "replicas":
        decision = _stand_in(primary, decision, scope, config)
        if decision.alias != primary:
            return decision
    if decision.reason in _UNSEEN:
        leave_unseen(connection, model)
    elif config.MONOTONIC_READS:
        scope.cluster(primary).seen_elsewhere_on = primary
    return decision


def _is_kept(primary: str, decision: Decision, model: Any, scope: Scope, config: Config) -> bool:
    """Tell whether a decision holds for all that the scope reads from now on."""
    if config.replica_models and config.wants_replica(model):
        return False
    if decision.alias == primary and config.PRIMARY_DOWN == "replicas":
        return False  # a replica may stand in at any moment
    if decision.reason in _LASTING:
        scope.identity.users()  # asked by nobody so far: whoever comes later would be news
        return True
    state = scope.clusters.get(primary)
    return state is not None and state.route.choices.get(config.MAX_LAG) is decision


def _stand_in(primary: str, decision: Decision, scope: Scope, config: Config) -> Decision:
    """Return a decision for a replica where the primary is down and the read may do without it."""
    state = scope.cluster(primary)
    if decision.reason not in _DISPENSABLE or _in_event_loop():
        return decision
    if state.route.stand_in is not None:
        return state.route.stand_in
    monitor = get_monitor(primary)
    if not monitor.known.primary_is_down or _is_unrouted(primary, scope, config):
        return decision
    replicas = monitor.health.replicas()
    while True:
        stand_in = choose_stand_in(replicas)
        if stand_in is None:
            return decision
        if connect_to_replica(stand_in.alias, monitor, config.CONNECT_TIMEOUT):
            break
        replicas = [replica for replica in replicas if replica.alias != stand_in.alias]
    count(stand_in.reason.event)
    state.route.stand_in = stand_in
    state.route.lives.setdefault(stand_in.alias, None)
    return stand_in


def _decide_by_rules(
    primary: str, connection: BaseDatabaseWrapper, model: Any, config: Config, frame: Frame
) -> Decision:
    scope, override = frame.scope, frame.override
    state = None if scope is None else scope.clusters.get(primary)
    asked_for_replica = (
        config.wants_replica(model) and scope is not None
        if override is None
        else not override.primary
    )
    members = config.topology.members[primary]
    decision = decide_at_once(
        Situation(
            primary,
            enabled=config.ENABLED,
            forced_primary=override is not None and override.primary,
            asked_for_replica=asked_for_replica,
            primary_in_atomic=keeps_reads(connection),
            replica_in_atomic=find_replica_in_atomic(find_connection, members)
            if replicas_in_transaction
            else None,
            primary_only=config.is_primary_only(model),
            has_scope=scope is not None,
            replica_failed=state is not None and state.route.failed,
            wrote=state is not None and state.wrote,
            unsafe=scope is not None and scope.unsafe,
            learned=scope is not None and scope.learned,
        )
    )
    if decision is not None:
        return decision
    if scope is None:  # a use_replica block always has a scope: this is for the type checker
        return Decision(primary, Reason.NO_SCOPE)
    override = override or _NO_OVERRIDE
    max_lag = config.MAX_LAG if override.max_lag is None else override.max_lag
    if override.on_stale == "primary":
        return _decide_by_token(primary, connection, model, scope, max_lag, config)
    return _decide_without_primary(primary, connection, model, scope, max_lag, config, override)


def _decide_without_primary(
    primary: str,
    connection: BaseDatabaseWrapper,
    model: Any,
    scope: Scope,
    max_lag: float,
    config: Config,
    override: Override,
) -> Decision:
    """Return a decision for a replica, where the code would rather have none than the primary.

    Raises:
        TooStale: no replica may serve.
    """
    state = scope.cluster(primary)
    choices = state.route.choices  # where another thread writes meanwhile, there is a new one
    kept = choices.get(max_lag)
    if kept is not None and kept.alias == primary:
        choices.pop(max_lag, None)  # a replica may have caught up since
    decision = _decide_by_token(primary, connection, model, scope, max_lag, config, override)
    if (
        decision.alias == primary
        and decision.reason not in (Reason.EVENT_LOOP, Reason.SHADOW)
        and not _is_unrouted(primary, scope, config)
    ):
        monitor = get_monitor(primary)
        late = {replica.alias: replica.age for replica in monitor.health.replicas()}
        message = (
            f"No replica of {primary!r} may serve this read: {decision.reason.value}. Their data may be: "
            f"{tell_ages(late)}; allowed are {max_lag:g} s."
        )
        raise TooStale(message, late)
    return decision


def _decide_by_token(
    primary: str,
    connection: BaseDatabaseWrapper,
    model: Any,
    scope: Scope,
    max_lag: float,
    config: Config,
    override: Override = _NO_OVERRIDE,
) -> Decision:
    """Return the decision that goes by what the reader must see: that of before, or one for the scope."""
    state = scope.cluster(primary)
    choices = state.route.choices  # where another thread writes meanwhile, there is a new one
    choice = choices.get(max_lag)
    if choice is not None and _holds(choice, primary, max_lag, choices, scope, state):
        return choice if choice.alias == primary else _follow(primary, choice, state, config)
    if _in_event_loop():
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


def _is_unrouted(primary: str, scope: Scope, config: Config) -> bool:
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


def _holds(
    choice: Decision,
    primary: str,
    max_lag: float,
    choices: dict[float, Decision],
    scope: Scope,
    state: ClusterScope,
) -> bool:
    """Tell whether what was decided before is to be followed."""
    if choice.alias == primary:
        return True
    # Looked at once more: while it was asked, another thread may have decided by more.
    return not is_floor_new(scope, state) and choices.get(max_lag) is choice


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
    if (connection is not None and connection.connection is not None) or _in_event_loop():
        return choice
    monitor = get_monitor(primary)
    if connect_to_replica(choice.alias, monitor, config.CONNECT_TIMEOUT):
        return choice
    state.leave_replica()
    return Decision(primary, Reason.REPLICA_FAILED)


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    if not least_in_flight.counts:
        return
    for state in list(scope.clusters.values()):
        entered, state.route.entered = state.route.entered, ()
        for alias in entered:
            least_in_flight.leave(alias)
