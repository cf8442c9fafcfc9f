"""Which server serves a reader, once it is known what the reader must see."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from django.db import connections

from django_replica_router.conf import Config
from django_replica_router.errors import ReplicaRouterError
from django_replica_router.logs import fields, logger
from django_replica_router.policy import Decision, Reason, floor_reason, may_serve
from django_replica_router.recording.carrying import raised_by_carried
from django_replica_router.recording.floors import expiry_ms, record_of_everybody
from django_replica_router.recording.writes import known_position, locate, store_for_everybody
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sights import is_pooled
from django_replica_router.routing.balancers import Order, order_for, rendezvous
from django_replica_router.routing.candidates import Target
from django_replica_router.routing.search import Found, Search, find_at_once
from django_replica_router.routing.shadowing import choose_in_shadow
from django_replica_router.scopes.cluster import Choice, ClusterScope, Terms
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.scopes.scope import Override, Scope
from django_replica_router.scopes.written import WriteMark
from django_replica_router.stats import count
from django_replica_router.transactions.settings import are_alike
from django_replica_router.values.tokens import Floor, Record

unstored: set[str] = set()
"""Primaries from which this process has served readers without the token store. What they were shown
is known to nobody, so everybody must have it once the store answers again."""


def note_unstored_reads(primary: str) -> None:
    """Remember that readers of a primary were served although the token store did not answer."""
    unstored.add(primary)


@dataclass(slots=True)
class Case:
    """A read whose server is to be chosen.

    Args:
        primary: alias of the primary.
        connection: this thread's connection to it.
        scope: in which the read is.
        state: what that knows of the cluster.
        config: the settings.
        monitor: what is known of the replicas.
        max_lag: seconds that a replica's data may be old.
        choice: what was decided before the user became known, for a replica; or None.
        override: what a block around the code asks for.
        is_shadowed: the primary serves the reader, whatever is decided.
    """

    primary: str
    connection: Any
    scope: Scope
    state: ClusterScope
    config: Config
    monitor: Monitor
    max_lag: float
    choice: Choice | None
    override: Override
    is_shadowed: bool = False

    @property
    def spares_primary(self) -> bool:
        """Whether the code would rather wait, or have an error, than the primary."""
        return self.override.on_stale != "primary"


class Wish(NamedTuple):
    """What the reader of a case needs.

    Args:
        floor: what a replica must have.
        max_lag: seconds that its data may be old.
        order: of the replicas, the reader's usual one first.
        usual: the replica where the reader reads as a rule: what is shown there is recorded nowhere. None where
            there is no such one.
        so_far: what was decided in the scope under another lag, for a replica.
        is_somebody: the reader can be told from others.
        is_bound: what the reader has written may have been forgotten with its token.
        is_moved: another replica was the usual one a moment ago.
        may_yield: what was seen, not written, may be given up.
    """

    floor: Floor
    max_lag: float
    order: Order
    usual: str | None
    so_far: Decision | None
    is_somebody: bool
    is_bound: bool
    is_moved: bool
    may_yield: bool


def identifies_unknown_reader(model: Any, scope: Scope, state: ClusterScope) -> bool:
    """Tell whether the read may be the one that finds out who the reader is.

    Where the store does not know whose session or credential this is, nobody's token protects
    that row: it may have been inserted a moment ago, or deleted from another device.
    """
    if not state.reader.is_stranger:
        return False
    credential, session = scope.identity.credential(), scope.identity.session()
    if credential is not None and state.reader.records.get(credential) is None:
        return True  # its row may be in any table
    return (
        session is not None
        and state.reader.records.get(session) is None
        # Every session model has it: AbstractBaseSession.
        and hasattr(model, "get_session_store_class")
    )


def choose_server(case: Case, floor: Floor) -> Found:
    """Return the decision for a replica that has the floor, or for the primary, with its reason."""
    bound = Reason.LAGGING if _has_met_another(case) else _bind(case, floor)
    if isinstance(bound, Reason):
        return Found(Decision(case.primary, bound))
    wish = _wish(case, bound)
    if case.is_shadowed:
        return Found(_choose_in_shadow(case, wish))
    found = None
    if wish.order.first is not None and not wish.is_moved:
        found = find_at_once(
            wish.order.first,
            case.monitor,
            wish.floor.position,
            wish.max_lag,
            case.config.CONNECT_TIMEOUT,
        )
    found = found or _search(case, wish)
    return found if found.decision.alias == case.primary else _admit(case, wish, found)


def _has_met_another(case: Case) -> bool:
    """Tell whether the scope was led to another replica, under another lag, than this read was before.

    That one has shown what the user must see: here it may be missing.
    """
    if case.choice is None:
        return False
    mine = case.choice.decision.alias
    return any(decision.alias != mine for decision in _for_replicas(case.primary, case.state))


def _choose_in_shadow(case: Case, wish: Wish) -> Decision:
    return choose_in_shadow(
        case.primary,
        case.monitor,
        wish.order,
        wish.floor,
        wish.max_lag,
        _fallback_lag(case, wish),
        may_yield=wish.may_yield,
    )


def _bind(case: Case, floor: Floor) -> Floor | Reason:
    """Return what the reader must see, or why no replica is known to have it whatever it has replayed."""
    primary, state, config = case.primary, case.state, case.config
    if case.scope.carried is not None:
        is_wide = max(case.max_lag, config.FALLBACK_LAG or 0.0) > config.token_bound
        floor = raised_by_carried(primary, case.scope, floor, config, outlives=is_wide)
    timeline = case.monitor.history.timeline
    everybody = record_of_everybody(state.reader.records.get(EVERYBODY), timeline)
    if everybody is None or primary in unstored:
        _begin_to_remember(primary, config)
        return Reason.EMPTY_STORE
    if state.wrote:
        raised = _with_own_writes(case, floor)
        if raised is None:
            return Reason.UNRECORDED_WRITE
        floor = raised
    elif state.reader.may_be_forgotten:
        # Whatever they have written or seen so far lies before this.
        state.reader.primary_when_met = state.reader.primary_when_met or locate(
            primary, WriteMark()
        )
        if state.reader.primary_when_met is None:
            return Reason.UNKNOWN_SESSION
        count("readers_unknown")
        floor = floor.raised_by(Record(state.reader.primary_when_met, expiry_ms(config)), 0)
    return floor_reason(floor, timeline) or floor


def _begin_to_remember(primary: str, config: Config) -> None:
    try:
        store_for_everybody(primary, config, None)
        unstored.discard(primary)
    except ReplicaRouterError as error:
        logger.warning("%s", error, extra=fields("everybody_unstored", error, primary=primary))


def _with_own_writes(case: Case, floor: Floor) -> Floor | None:
    """Return the floor with what this very scope has written, for ``use_replica``; None if that is nowhere."""
    state, config = case.state, case.config
    pending = state.pending or WriteMark()
    written = known_position(
        case.primary, state, pending, state.seen_elsewhere_on, config
    ) or locate(case.primary, pending)
    if written is None or (state.recorded and state.recorded.pinned_until_ms):
        return None
    written = max(floor.position, written)
    return Floor(written, floor.pinned, expiry_ms(config), written)


def _wish(case: Case, floor: Floor) -> Wish:
    primary, state, config = case.primary, case.state, case.config
    reader = state.reader.name
    order = order_for(config.BALANCER, primary, reader, config.topology.clusters[primary])
    usual, so_far, is_moved = order.first, None, False
    if reader and config.BALANCER != "rendezvous":
        usual = None  # by any other balancer nobody has a replica of their own
    if case.choice is not None:
        # The user became known. Two reads of one request never go to two replicas: the one that
        # has served so far must pass again, or the primary takes over.
        alias = case.choice.decision.alias
        order = Order(alias, lambda: [alias])
    elif state.route.choices:
        so_far = _replica_so_far(primary, state)
    if so_far is not None:
        order = _begin_with(so_far.alias, order)
        if so_far.reason is Reason.YIELDED:
            # What was seen before is given up for the whole scope: else this read would show more
            # than the next one.
            floor = replace(floor, position=floor.written)
    elif primary in config.topology.settling:
        is_moved = _is_moved(primary, reader, usual, config)
    # What came with a token has a position yet: see ``_bind``.
    is_bound = bool(reader or case.scope.seen_keys or config.COOKIE)
    # Not where the scope has decided under another lag: it must not go back in time.
    may_yield = config.yields and (case.choice is not None or not state.route.choices)
    return Wish(
        floor,
        min(case.max_lag, config.token_bound if is_bound else math.inf),
        order,
        usual,
        so_far,
        bool(reader),
        is_bound,
        is_moved,
        may_yield,
    )


def _replica_so_far(primary: str, state: ClusterScope) -> Decision | None:
    """Return the decision for the replica that serves the scope where it allows another lag, or None."""
    return next(_for_replicas(primary, state), None)


def _for_replicas(primary: str, state: ClusterScope) -> Iterator[Decision]:
    """Yield the decisions for replicas that the scope has made, whatever lag each allows."""
    for choice in list(state.route.choices.values()):  # another thread may decide meanwhile
        if choice.decision.alias != primary:
            yield choice.decision


def _begin_with(first: str, order: Order) -> Order:
    return Order(first, lambda: [first, *(alias for alias in order.all() if alias != first)])


def _is_moved(primary: str, reader: str, usual: str | None, config: Config) -> bool:
    """Tell whether the reader met another replica before servers came or went a moment ago.

    What was shown there is recorded nowhere, and another process may show it yet.
    """
    if not reader or not config.MONOTONIC_READS or config.BALANCER != "rendezvous":
        return False
    settling = config.topology.settling[primary]
    is_over = time.monotonic() >= settling.until
    return not is_over and rendezvous(reader, settling.before)[:1] != [usual]


def _search(case: Case, wish: Wish) -> Found:
    """Return what a search finds; where the code asks for waiting, one after the other until it is a replica."""
    found = _search_once(case, wish)
    if case.override.on_stale != "wait":
        return found
    monitor, floor = case.monitor, wish.floor.position
    deadline = monitor.clock() + case.override.timeout

    def may_one_serve() -> bool | None:
        return any(may_serve(one, floor, wish.max_lag) for one in monitor.health.replicas()) or None

    while found.decision.alias == case.primary and monitor.clock() < deadline:
        left = deadline - monitor.clock()
        monitor.waiting.wait_closely(floor.lsn, wish.max_lag, may_one_serve, left)
        found = _search_once(case, wish)
    return found


def _fallback_lag(case: Case, wish: Wish) -> float | None:
    """Return by how much the freshest replica may lag where all lag too far; None where it does not serve."""
    config = case.config
    if case.spares_primary or config.FALLBACK_LAG is None:
        return None
    return min(config.FALLBACK_LAG, config.token_bound) if wish.is_bound else config.FALLBACK_LAG


def _search_once(case: Case, wish: Wish) -> Found:
    config, state, floor = case.config, case.state, wish.floor
    # Wall clocks of two machines may differ: good enough to guess how long to wait.
    age = max(0.0, (expiry_ms(config) - floor.expires_ms) / 1000)
    target = Target(
        floor.position,
        age,
        wish.max_lag,
        config.CONNECT_TIMEOUT,
        _fallback_lag(case, wish),
        1.0 if case.spares_primary else config.PRIMARY_SHARE,
        config.MONOTONIC_SHARE,
        floor.written if wish.may_yield else None,
    )
    search = Search(
        case.primary,
        case.monitor,
        wish.order,
        target,
        config.WAIT if state.route.wait_left is None else state.route.wait_left,
        keeps_replica=wish.so_far is not None or _stays_unrecorded(case, wish),
        is_moved=wish.is_moved,
    )
    try:
        return search.run()
    finally:
        state.route.wait_left = search.wait_left


def _stays_unrecorded(case: Case, wish: Wish) -> bool:
    """Tell whether what the reader's usual replica shows is recorded nowhere.

    Who is nobody in particular cannot be shown less than before, but by this very scope. What an
    endpoint shows is remembered: another server has it, or does not serve.
    """
    if not case.config.MONOTONIC_READS or not wish.is_somebody or wish.usual is None:
        return False
    return wish.usual not in case.monitor.servers.endpoints


def _admit(case: Case, wish: Wish, found: Found) -> Found:
    """Return what was found, if this thread may be shown it; remember what has to be recorded of it."""
    primary, state, alias = case.primary, case.state, found.decision.alias
    is_endpoint = alias in case.monitor.servers.endpoints
    if is_endpoint and not _is_same_server(alias, found.life, state, case.monitor):
        return Found(Decision(primary, Reason.LAGGING))
    replica = connections[alias] if found.connection is None else found.connection
    if not are_alike(case.connection, replica):
        return Found(Decision(primary, Reason.SETTINGS))
    # What was seen on the primary is no less than what any replica shows.
    is_another = alias != wish.usual or wish.is_moved or is_endpoint
    if is_another and case.config.MONOTONIC_READS:
        state.note_seen_elsewhere(alias, primary)
    if is_endpoint and is_pooled(replica):
        state.route.agree(alias, _terms(case, wish, found.decision.reason))
    return found


def _is_same_server(
    alias: str, life: tuple[Any, ...] | None, state: ClusterScope, monitor: Monitor
) -> bool:
    """Tell whether the scope meets the server behind an endpoint that it has met before, if any."""
    return alias in monitor.servers.led or state.route.lives.get(alias) in (None, life)


def _terms(case: Case, wish: Wish, reason: Reason) -> Terms:
    """Return what each answer must prove where a pooler may lead each statement elsewhere."""
    floor = wish.floor
    least = floor.written if reason is Reason.YIELDED else floor.position
    lag = case.config.FALLBACK_LAG if reason is Reason.LEAST_LAGGED else wish.max_lag
    kept = floor.written.lsn if wish.may_yield else None
    return Terms(least.lsn, lag or wish.max_lag, kept)
