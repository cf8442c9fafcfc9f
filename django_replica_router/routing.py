"""The glue: asks context, token store and monitor, lets the policy decide, remembers writes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import psycopg
from django.db import DEFAULT_DB_ALIAS, connections

from django_replica_router import postgres, signals
from django_replica_router.balancers import get_balancer, least_in_flight
from django_replica_router.conf import Config, get_config
from django_replica_router.context import (
    ClusterScope,
    Frame,
    Scope,
    WriteMark,
    current_scope,
)
from django_replica_router.errors import ConfigurationError, StoreError
from django_replica_router.monitor import Monitor, get_monitor
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
from django_replica_router.stores import get_store
from django_replica_router.tokens import NOWHERE, Floor, Position, Record

logger = logging.getLogger("django_replica_router")


# Reads


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
        floor = Floor(max(floor.position, written), floor.pinned, _expiry_ms(config))
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
    age = max(0.0, (_expiry_ms(config) - floor.expires_ms) / 1000)
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


def load_floor(primary: str, scope: Scope, config: Config) -> Floor:
    """Return what the reader must see, asking the store for what was not asked before.

    A session's record names its user, so that the row of the session itself is already read
    under the user's token: it may have been deleted from another device.

    Raises:
        StoreError: the store cannot be read.
    """
    state = scope.cluster(primary)
    users = scope.identity.users()
    floor = state.floor
    if floor is None:
        sessions = scope.identity.sessions()
        new_users = users
        floor = Floor()
    elif users == state.seen_users:
        return floor
    else:
        sessions = ()
        new_users = tuple(user for user in users if user not in state.seen_users)
    records = _load(primary, (*sessions, *new_users), config)
    state.sessions |= {session: records[session] for session in sessions}
    owners = {record.owner for record in records.values() if record is not None and record.owner}
    owners -= {*new_users, *state.seen_users}
    records |= _load(primary, tuple(owners), config)
    now_ms = _now_ms()
    for record in records.values():
        if record is not None:
            floor = floor.raised_by(record, now_ms)
    state.floor, state.seen_users = floor, users
    return floor


def _load(primary: str, keys: tuple[str, ...], config: Config) -> dict[str, Record | None]:
    if not keys:
        return {}
    store = get_store(config.CACHE)
    return dict(zip(keys, store.load([_store_key(primary, key) for key in keys]), strict=True))


def _store_key(primary: str, key: str) -> str:
    return f"rr:{primary}:{key}"


def _now_ms() -> int:
    return round(time.time() * 1000)


def _expiry_ms(config: Config) -> int:
    """Return when a token that is taken now expires."""
    return _now_ms() + round(config.TOKEN_TTL * 1000)


# Writes


def note_write(using: str | None = None) -> None:
    """Tell that the code has written by a way that Django does not show, such as ``copy()``.

    Call it after the write, or inside the transaction that it belongs to.

    Args:
        using: alias of the database that was written to; the default database when None.

    Raises:
        ConfigurationError: the alias is a replica.
    """
    alias = DEFAULT_DB_ALIAS if using is None else using
    topology = get_config().topology
    if topology.is_replica(alias):
        message = f"{alias!r} is a replica: pass the alias of the primary that was written to."
        raise ConfigurationError(message)
    if alias in topology.clusters:
        mark_written(alias)


def mark_written(primary: str, *, uncertain: bool = False) -> None:
    """Mark the present scope as having written to that primary, on this thread's connection."""
    scope = current_scope()
    if scope is None:
        return
    connection = connections[primary]
    transactions = [connection.connection] if connection.in_atomic_block else []
    scope.cluster(primary).add_write(WriteMark(transactions, uncertain))


def locate(primary: str, mark: WriteMark) -> Position | None:
    """Return a position at or behind the writes, or None where there is no way to be sure."""
    if mark.uncertain or any(getattr(raw, "closed", True) for raw in mark.transactions):
        # Lost before or during COMMIT: the server may commit it yet.
        return None
    connection = connections[primary]
    if connection.in_atomic_block:
        return None  # the scope lies inside a transaction, which ends after it
    try:
        connection.ensure_connection()
        raw = connection.connection
        # The driver's own connection, so that the query is in no log and no assertNumQueries.
        if isinstance(raw, psycopg.Connection):
            return postgres.read_token(raw)
    except Exception as error:  # whatever fails here, the user is pinned instead
        _report_unrecorded(primary, error)
    return None


def _report_unrecorded(primary: str, error: Exception) -> None:
    logger.warning("A write to %r has no token: %s", primary, error)
    signals.write_unrecorded.send_robust(sender=primary, error=error)


def finish_scope(scope: Scope, sent_sessions: tuple[str, ...] = ()) -> None:
    """Store what the scope's user must see from now on. Never raises.

    May be called again: what was stored is not stored twice.

    Args:
        scope: the scope that ends, or whose response is about to leave.
        sent_sessions: keys of the session that the response hands out.
    """
    config = get_config()
    for primary, state in list(scope.clusters.items()):
        try:
            _finish_cluster(primary, scope, state, config, sent_sessions)
        except Exception as error:  # the response is ready, and must leave
            _report_unrecorded(primary, error)


def needs_finish(scope: Scope, sent_sessions: tuple[str, ...] = ()) -> bool:
    """Tell whether ``finish_scope`` has anything to do, without doing any I/O."""
    return any(
        state.pending is not None or _sessions_to_remember(scope, state, sent_sessions)
        for state in scope.clusters.values()
    )


def release_scope(scope: Scope) -> None:
    """Give back what the scope holds."""
    for state in scope.clusters.values():
        while state.entered:
            least_in_flight.leave(state.entered.pop())


def _sessions_to_remember(
    scope: Scope, state: ClusterScope, sent_sessions: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the sessions whose record does not exist yet, or names another user.

    Only sessions that turned out to be real: a made-up cookie leaves nothing in the cache.
    """
    if state.store_failed or (state.floor is None and not sent_sessions):
        return ()
    owner = _owner(scope)
    if not owner and not scope.identity.has_session_data():
        return ()
    known = tuple(
        session
        for session, record in state.sessions.items()
        if record is None or (owner and record.owner != owner)
    )
    return known + tuple(session for session in sent_sessions if session not in state.sessions)


def _owner(scope: Scope) -> str:
    users = scope.identity.users()
    return users[-1] if users else ""


def _finish_cluster(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    sent_sessions: tuple[str, ...],
) -> None:
    pending, state.pending = state.pending, None
    if pending is None:
        sessions = _sessions_to_remember(scope, state, sent_sessions)
        if sessions:
            # A new cookie for the same reader must bind as much as the one before.
            floor = load_floor(primary, scope, config)
            record = _record(None if floor.pinned else floor.position, config)
            _store(primary, scope, state, config, record, sessions, ())
        return
    position = locate(primary, pending)
    users = _writers(primary, scope, state, config, pending)
    record = _record(position, config)
    sessions = (*scope.identity.sessions(), *sent_sessions)
    _store(primary, scope, state, config, record, sessions, users)


def _record(position: Position | None, config: Config) -> Record:
    """Return the record of a position, or of a write without one: a pin to the primary."""
    until_ms = _expiry_ms(config)
    if position is None:
        return Record(pinned_until_ms=until_ms)
    return Record(position, until_ms if position != NOWHERE else 0)


def _writers(
    primary: str, scope: Scope, state: ClusterScope, config: Config, pending: WriteMark
) -> tuple[str, ...]:
    """Return the keys of the users for whom the scope has written."""
    scope.identity.look_again()
    users = set(scope.identity.users())
    if not users and scope.identity.sessions():
        # Nobody has asked who is signed in. The session's record may tell; else its row does.
        try:
            load_floor(primary, scope, config)
        except StoreError:
            state.store_failed = True
        users |= {record.owner for record in state.sessions.values() if record and record.owner}
        if not users and not connections[primary].in_atomic_block:
            scope.identity.load_user()
            users |= set(scope.identity.users())
    return tuple(users)


def _store(
    primary: str,
    scope: Scope,
    state: ClusterScope,
    config: Config,
    record: Record,
    sessions: Iterable[str],
    users: Iterable[str],
) -> None:
    owner = _owner(scope)
    is_real = bool(owner) or scope.identity.has_session_data()
    records: dict[str, Record] = {}
    lives: dict[str, float] = {}
    for session in sessions:
        key = _store_key(primary, session)
        records[key] = record._replace(owner=owner)
        lives[key] = max(config.TOKEN_TTL, config.SESSION_TTL if is_real else 0)
        state.sessions[session] = records[key]
    for user in users:
        key = _store_key(primary, user)
        records[key] = record
        lives[key] = config.TOKEN_TTL
    if records:
        get_store(config.CACHE).merge(records, lives)
