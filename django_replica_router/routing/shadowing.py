"""Readers who are not routed yet: where their reads would go is worked out and counted, and the primary serves."""

from __future__ import annotations

import random

from django_replica_router.conf import Config
from django_replica_router.policy import (
    Decision,
    Reason,
    choose_least_lagged,
    choose_replica,
    choose_yielding,
    fallback_reason,
    is_of_share,
)
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.routing.balancers import Order
from django_replica_router.scopes.cluster import Reader, Shadow
from django_replica_router.stats import count
from django_replica_router.values.tokens import Floor

# Not the state that the process shares: tests seed that.
_draw = random.SystemRandom()


def is_shadowed(reader: Reader, config: Config) -> bool:
    """Tell whether the primary serves a reader whatever is decided, because of SHADOW or ROLLOUT.

    Whoever is stays so to the end of the scope. Of whoever is not, it is asked again where it turns out
    who it is: a user that is not of the share is sent to no replica any more.
    """
    shadow = reader.shadow
    if shadow is None or not (shadow.holds or shadow.drawn_as == reader.name):
        holds = config.SHADOW or not _is_routed(reader.name, config.ROLLOUT)
        is_of_stranger = holds and reader.is_stranger and not config.SHADOW
        reader.shadow = shadow = Shadow(reader.name, holds, is_of_stranger)
    return shadow.holds


def _is_routed(reader: str, share: float) -> bool:
    return is_of_share(reader, share) if reader else _draw.random() < share


def choose_in_shadow(
    primary: str,
    monitor: Monitor,
    order: Order,
    floor: Floor,
    max_lag: float,
    fallback_lag: float | None,
    *,
    may_yield: bool,
) -> Decision:
    """Return where a reader would be sent, by what is known: nothing is asked, connected to or waited for.

    Args:
        primary: alias of the primary.
        monitor: what is known of the replicas.
        order: of the replicas for this reader.
        floor: what a replica must have.
        max_lag: seconds that its data may be old.
        fallback_lag: seconds by which the freshest one may lag where all are older; None where it does not serve.
        may_yield: what was seen, not written, may be given up.
    """
    known = monitor.known.readings
    replicas = [monitor.health.replica(alias) for alias in order.all() if alias in known]
    decision = choose_replica(replicas, floor.position, max_lag)
    if decision is None and fallback_lag is not None:
        decision = choose_least_lagged(replicas, floor.position, fallback_lag)
    if decision is None and may_yield:
        decision = choose_yielding(replicas, floor.written, max_lag)
    return decision or Decision(primary, fallback_reason(replicas))


def count_in_shadow(primary: str, decision: Decision) -> Decision:
    """Count where a reader would have been sent; return the decision for the primary."""
    count(
        f"shadow_{decision.reason.event}",
        f"shadow_reads_from_{decision.alias}",
        Reason.SHADOW.event,
        f"reads_from_{primary}",
    )
    return Decision(primary, Reason.SHADOW)
