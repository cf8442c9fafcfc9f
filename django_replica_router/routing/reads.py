"""Reads: which server a read goes to."""

from __future__ import annotations

import time
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.conf import Config
from django_replica_router.errors import TooStale, tell_ages
from django_replica_router.observations import note_decision, observers
from django_replica_router.policy import (
    Decision,
    Reason,
    Situation,
    choose_stand_in,
    decide_at_once,
)
from django_replica_router.recording.writes import leave_unseen
from django_replica_router.replicas.connecting import connect_to_replica, find_connection
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.replicas.wrappers import connection_of
from django_replica_router.routing.deciding import decide_by_token, in_event_loop, is_unrouted
from django_replica_router.scopes.scope import NO_OVERRIDE, Frame, Override, Scope, Shortcut
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import (
    find_replica_in_atomic,
    idle_blocks,
    keeps_reads,
    replicas_in_transaction,
)
from django_replica_router.values.routed import routed_alias

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
        decision = decide_by_token(primary, connection, model, scope, config.MAX_LAG, config)
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
    choice = None if state is None else state.route.choices.get(config.MAX_LAG)
    return choice is not None and choice.decision is decision


def _stand_in(primary: str, decision: Decision, scope: Scope, config: Config) -> Decision:
    """Return a decision for a replica where the primary is down and the read may do without it."""
    state = scope.cluster(primary)
    if decision.reason not in _DISPENSABLE or in_event_loop():
        return decision
    if state.route.stand_in is not None:
        return state.route.stand_in
    monitor = get_monitor(primary)
    if not monitor.known.primary_is_down or is_unrouted(primary, scope, config):
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
    override = override or NO_OVERRIDE
    max_lag = config.MAX_LAG if override.max_lag is None else override.max_lag
    if override.on_stale == "primary":
        return decide_by_token(primary, connection, model, scope, max_lag, config)
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
    if kept is not None and kept.decision.alias == primary:
        choices.pop(max_lag, None)  # a replica may have caught up since
    decision = decide_by_token(primary, connection, model, scope, max_lag, config, override)
    if (
        decision.alias == primary
        and decision.reason not in (Reason.EVENT_LOOP, Reason.SHADOW)
        and not is_unrouted(primary, scope, config)
    ):
        monitor = get_monitor(primary)
        late = {replica.alias: replica.age for replica in monitor.health.replicas()}
        message = (
            f"No replica of {primary!r} may serve this read: {decision.reason.value}. Their data may be: "
            f"{tell_ages(late)}; allowed are {max_lag:g} s."
        )
        raise TooStale(message, late)
    return decision
