"""Reads: which server a read goes to."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_replica_router.balancers import Order, least_in_flight, order_for
from django_replica_router.budget import budget
from django_replica_router.conf import AGE_ERROR, Config
from django_replica_router.connecting import connect_to_replica
from django_replica_router.context import ClusterScope, Frame, Scope, Shortcut, WriteMark
from django_replica_router.errors import ReplicaRouterError, StoreError
from django_replica_router.floors import (
    expiry_ms,
    known_owners,
    load_floor,
    may_be_forgotten,
    record_of_everybody,
)
from django_replica_router.keys import EVERYBODY
from django_replica_router.learning import is_learned
from django_replica_router.policy import (
    Decision,
    Reason,
    Situation,
    choose_stand_in,
    decide_at_once,
    floor_reason,
)
from django_replica_router.registry import get_monitor
from django_replica_router.routed import routed_alias
from django_replica_router.search import Found, Search, Target, find_at_once
from django_replica_router.session_settings import are_alike
from django_replica_router.stats import count
from django_replica_router.tokens import Floor, Record
from django_replica_router.transactions import find_replica_in_atomic
from django_replica_router.writes import locate, locate_written, store_for_everybody

logger = logging.getLogger("django_replica_router")


# What a reader sees on the primary for one of these reasons is not remembered: the read is not the
# scope's own choice of a server, or there is nobody to remember it for, or nothing to keep it in.
_UNSEEN = frozenset(
    [
        Reason.DISABLED,
        Reason.MODEL,
        Reason.NO_SCOPE,
        Reason.EVENT_LOOP,
        Reason.UNKNOWN_SESSION,
    ]
)

# Primaries from which this process has served readers without the token store. What they were shown
# is known to nobody, so everybody must have it once the store answers again.
_blind: set[str] = set()


# Reasons for the primary that give way where the primary is down: the code has not asked for it, and
# nothing of this scope's own is at stake.
_DISPENSABLE = frozenset(
    [
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
    ]
)

_EVENTS = {reason: f"reads_{reason.name.lower()}" for reason in Reason}


# Decisions that hold as long as the scope does. Of the others those do that the scope has kept.
_LASTING = frozenset([Reason.WROTE, Reason.REPLICA_FAILED, Reason.UNSAFE_METHOD, Reason.LEARNED])


def route_read(
    primary: str, model: Any, config: Config, frame: Frame
) -> tuple[str, Shortcut | None]:
    """Return the alias that serves a read of that model in the cluster of that primary.

    Beside it stands the shortcut to it, where the decision holds for more than this read. The alias of
    a replica is a ``RoutedAlias``.
    """
    alias, shortcut = _route_read(primary, model, config, frame)
    if alias != primary:
        alias = routed_alias(alias, primary, config.topology.replicas[primary])
        if shortcut is not None:
            shortcut.alias = alias
    return alias, shortcut


def _route_read(
    primary: str, model: Any, config: Config, frame: Frame
) -> tuple[str, Shortcut | None]:
    connection = connections[primary]
    decision = _decide(primary, connection, model, config, frame)
    scope = frame.scope
    if scope is None:
        return decision.alias, None
    may_stand_in = decision.alias == primary and config.PRIMARY_DOWN == "replicas"
    if may_stand_in:
        decision = _stand_in(primary, decision, scope, config)
    if decision.alias == primary and decision.reason not in _UNSEEN and config.MONOTONIC_READS:
        scope.cluster(primary).seen_on = primary
    if scope.decisions is not None:
        scope.note_decision(decision)
    elif not may_stand_in and frame.override is None and _is_kept(primary, decision, scope, config):
        return decision.alias, Shortcut(
            decision.alias, connection, config.ordinary_models, scope.identity
        )
    return decision.alias, None


def _is_kept(primary: str, decision: Decision, scope: Scope, config: Config) -> bool:
    if decision.reason in _LASTING:
        scope.identity.users()  # asked by nobody so far: whoever comes later would be news
        return True
    state = scope.clusters.get(primary)
    return state is not None and state.choices.get(config.MAX_LAG) is decision


def _stand_in(primary: str, decision: Decision, scope: Scope, config: Config) -> Decision:
    """Return a decision for a replica where the primary is down and the read may do without it."""
    state = scope.cluster(primary)
    if decision.reason not in _DISPENSABLE or _in_event_loop():
        return decision
    if state.stand_in is not None:
        return state.stand_in
    monitor = get_monitor(primary, config.topology.replicas[primary], config.interval)
    stand_in = choose_stand_in(monitor.replicas()) if monitor.primary_is_down else None
    if stand_in is None:
        return decision
    if connect_to_replica(stand_in.alias, monitor, config.CONNECT_TIMEOUT) is None:
        return decision
    count(_EVENTS[stand_in.reason])
    state.stand_in = stand_in
    state.lives.setdefault(stand_in.alias, None)
    return stand_in


def _decide(
    primary: str, connection: BaseDatabaseWrapper, model: Any, config: Config, frame: Frame
) -> Decision:
    scope, override = frame.scope, frame.override
    state = None if scope is None else scope.clusters.get(primary)
    asked_for_replica = override is not None and not override.primary
    decision = decide_at_once(
        Situation(
            primary,
            enabled=config.ENABLED,
            forced_primary=override is not None and override.primary,
            asked_for_replica=asked_for_replica,
            primary_in_atomic=connection.in_atomic_block,
            replica_in_atomic=find_replica_in_atomic(
                _find_connection, config.topology.replicas[primary]
            ),
            primary_only=config.is_primary_only(model),
            has_scope=scope is not None,
            replica_failed=state is not None and state.failed,
            wrote=state is not None and state.wrote,
            unsafe=scope is not None and scope.unsafe,
            learned=scope is not None and scope.learned,
        )
    )
    if decision is not None:
        return decision
    if scope is None:  # a use_replica block always has a scope: this is for the type checker
        return Decision(primary, Reason.NO_SCOPE)
    max_lag = config.MAX_LAG
    if asked_for_replica and override is not None and override.max_lag is not None:
        max_lag = override.max_lag
    return _decide_by_token(primary, model, scope, max_lag, config)


def _find_connection(alias: str) -> Any:
    """Return this thread's connection of an alias, without making one where there is none."""
    return getattr(connections._connections, alias, None)  # type: ignore[attr-defined]


def _decide_by_token(
    primary: str, model: Any, scope: Scope, max_lag: float, config: Config
) -> Decision:
    state = scope.cluster(primary)
    choices = state.choices  # where another thread writes meanwhile, there is a new one
    choice = choices.get(max_lag)
    if choice is not None:
        users = scope.identity.users()
        if choice.alias == primary:
            return choice
        if users == state.seen_users or all(user in state.records for user in users):
            # Else the session's record had named them: their tokens are in the floor already.
            state.seen_users = users
            return _follow(primary, choice, state, config)
    if _in_event_loop():
        # Asking the store or a replica would block the loop. The query itself runs in a thread
        # and asks again there.
        return Decision(primary, Reason.EVENT_LOOP)
    if choice is None and is_learned(scope, config):
        count(_EVENTS[Reason.LEARNED])
        return Decision(primary, Reason.LEARNED)
    try:
        floor = load_floor(primary, scope, config)
    except StoreError as error:
        logger.warning("%s", error)
        _blind.add(primary)
        state.store_failed = True
        count(_EVENTS[Reason.STORE_ERROR])
        return choices.setdefault(max_lag, Decision(primary, Reason.STORE_ERROR))
    if choice is None and _identifies_unknown_reader(model, scope, state):
        return Decision(primary, Reason.UNKNOWN_SESSION)
    decision, life = _decide_anew(primary, scope, floor, max_lag, config, choice)
    if decision.alias != primary:
        state.lives[decision.alias] = life
    count(_EVENTS[decision.reason])
    if config.PRIMARY_SHARE < 1:
        budget.note_decision()
    if choice is None:
        mine = decision
        decision = choices.setdefault(max_lag, mine)
        if decision.alias not in (mine.alias, primary):
            # Another thread was first, and may not have known the user yet: it asked for less.
            decision = choices[max_lag] = Decision(primary, Reason.LAGGING)
            state.shortcuts.clear()
    else:
        choices[max_lag] = decision
    if config.BALANCER == "least_in_flight" and decision.alias not in (primary, *state.entered):
        least_in_flight.enter(decision.alias)
        state.entered.append(decision.alias)
    return decision


def _follow(primary: str, choice: Decision, state: ClusterScope, config: Config) -> Decision:
    """Return what was chosen for the scope, or the primary where this thread cannot connect to it.

    Another thread may have chosen; and Django would connect where a failure cannot be mended.
    """
    connection = _find_connection(choice.alias)
    if (connection is not None and connection.connection is not None) or _in_event_loop():
        return choice
    monitor = get_monitor(primary, config.topology.replicas[primary], config.interval)
    if connect_to_replica(choice.alias, monitor, config.CONNECT_TIMEOUT):
        return choice
    state.leave_replica()
    return Decision(primary, Reason.REPLICA_FAILED)


def _identifies_unknown_reader(model: Any, scope: Scope, state: ClusterScope) -> bool:
    """Tell whether the read may be the one that finds out who the reader is.

    Where the store does not know whose session or credential this is, nobody's token protects
    that row: it may have been inserted a moment ago, or deleted from another device.
    """
    if state.seen_users or known_owners(state):
        return False
    credential = scope.identity.credential()
    if credential is not None and state.records.get(credential) is None:
        return True  # its row may be in any table
    session = scope.identity.session()
    return (
        session is not None
        and state.records.get(session) is None
        # Every session model has it: AbstractBaseSession.
        and hasattr(model, "get_session_store_class")
    )


def _in_event_loop() -> bool:
    return asyncio._get_running_loop() is not None


def _decide_anew(
    primary: str,
    scope: Scope,
    floor: Floor,
    max_lag: float,
    config: Config,
    choice: Decision | None,
) -> Found:
    state = scope.cluster(primary)
    monitor = get_monitor(primary, config.topology.replicas[primary], config.interval)
    everybody = record_of_everybody(state.records.get(EVERYBODY), monitor.timeline)
    if everybody is None or primary in _blind:
        _begin_to_remember(primary, config)
        return Found(Decision(primary, Reason.EMPTY_STORE))
    if state.wrote:
        # use_replica after a write of this very scope: the replica must have that, too.
        pending = state.pending or WriteMark()
        written = locate_written(primary, state, pending, state.seen_on, config)
        if written is None or (state.recorded and state.recorded.pinned_until_ms):
            return Found(Decision(primary, Reason.UNRECORDED_WRITE))
        floor = Floor(max(floor.position, written), floor.pinned, expiry_ms(config))
    elif may_be_forgotten(state, config):
        # Whatever they have written or seen so far lies before this.
        state.met_at = state.met_at or locate(primary, WriteMark())
        if state.met_at is None:
            return Found(Decision(primary, Reason.UNKNOWN_SESSION))
        count("readers_unknown")
        floor = floor.raised_by(Record(state.met_at, expiry_ms(config)), 0)
    reason = floor_reason(floor, monitor.timeline)
    if reason is not None:
        return Found(Decision(primary, reason))
    order = _order(primary, scope, state, config)
    preferred = order.first
    if choice is not None:
        # The user became known. Two reads of one request never go to two replicas: the one that
        # has served so far must pass again, or the primary takes over.
        order = Order(choice.alias, lambda: [choice.alias])
    served_by = _replica_so_far(primary, state) if choice is None and state.choices else None
    if served_by is not None:
        order = _begin_with(served_by, order)
    is_somebody = _is_somebody(scope)
    # An older replica may lack a write whose token has expired.
    bound = config.TOKEN_TTL - config.WAIT - AGE_ERROR if is_somebody else math.inf
    max_lag = min(max_lag, bound)
    found = None
    if order.first is not None:
        found = find_at_once(order.first, monitor, floor.position, max_lag, config.CONNECT_TIMEOUT)
    if found is None:
        # Wall clocks of two machines may differ: good enough to guess how long to wait.
        age = max(0.0, (expiry_ms(config) - floor.expires_ms) / 1000)
        target = Target(
            floor.position,
            age,
            max_lag,
            config.CONNECT_TIMEOUT,
            config.FALLBACK_LAG and min(config.FALLBACK_LAG, bound),
            config.PRIMARY_SHARE,
        )
        search = Search(
            primary,
            monitor,
            order,
            target,
            config.WAIT if state.wait_left is None else state.wait_left,
            # Who is nobody in particular cannot be shown less than before, but by this very scope.
            keeps_replica=(config.MONOTONIC_READS and is_somebody) or served_by is not None,
        )
        try:
            found = search.run()
        finally:
            state.wait_left = search.wait_left
    alias = found.decision.alias
    if alias != primary and not are_alike(connections[primary], connections[alias]):
        return Found(Decision(primary, Reason.SETTINGS))
    # What was seen on the primary is no less than what any replica shows.
    if config.MONOTONIC_READS and alias not in (primary, preferred) and state.seen_on != primary:
        state.seen_on = alias
    return found


def _replica_so_far(primary: str, state: ClusterScope) -> str | None:
    """Return the replica that serves the scope where it allows another lag, or None."""
    chosen = (choice.alias for choice in list(state.choices.values()))
    return next((alias for alias in chosen if alias != primary), None)


def _begin_with(first: str, order: Order) -> Order:
    return Order(first, lambda: [first, *(alias for alias in order.all() if alias != first)])


def _is_somebody(scope: Scope) -> bool:
    identity = scope.identity
    return bool(identity.session() or identity.credential() or identity.users())


def _begin_to_remember(primary: str, config: Config) -> None:
    try:
        store_for_everybody(primary, config, None)
        _blind.discard(primary)
    except ReplicaRouterError as error:
        logger.warning("%s", error)


def _order(primary: str, scope: Scope, state: ClusterScope, config: Config) -> Order:
    """Return the order in which the reader should meet the replicas.

    By the user where one is known, so that all devices of a user meet the same replica.
    """
    carried = (scope.identity.session(), scope.identity.credential())
    names = (*state.seen_users, *known_owners(state), *(key for key in carried if key), "")
    return order_for(config.BALANCER, primary, names[0], config.topology.clusters[primary])
