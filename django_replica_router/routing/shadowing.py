"""Readers who are not routed yet: where their reads would go is worked out and counted, and the primary serves."""

from __future__ import annotations

import random
import zlib

from django_replica_router.conf import Config
from django_replica_router.policy import (
    Decision,
    Reason,
    choose_least_lagged,
    choose_replica,
    choose_yielding,
    fallback_reason,
)
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.routing.balancers import Order
from django_replica_router.scopes.scope import Reader
from django_replica_router.stats import count
from django_replica_router.values.tokens import Floor

_SIZE = 1 << 32

# Not the state that the process shares: tests seed that.
_draw = random.SystemRandom()


def is_shadowed(reader: Reader, config: Config) -> bool:
    """Tell whether the primary serves a reader whatever is decided, because of SHADOW or ROLLOUT.

    It stays so to the end of the scope. Whoever can be told from others is so from request to request, and
    stays among those who are routed where the share grows.
    """
    if reader.is_shadowed is None:
        reader.is_shadowed = config.SHADOW or not _is_of_share(reader.name, config.ROLLOUT)
    return reader.is_shadowed


def _is_of_share(reader: str, share: float) -> bool:
    if not reader:
        return _draw.random() < share
    # Of a text of its own: else those of the share would be readers of the same few replicas.
    drawn = zlib.crc32(f"rollout:{reader}".encode("utf-8", "surrogatepass"))
    return (drawn * 0x9E3779B1 % _SIZE) / _SIZE < share


def choose_in_shadow(
    primary: str,
    monitor: Monitor,
    order: Order,
    floor: Floor,
    max_lag: float,
    config: Config,
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
        config: the settings.
        may_yield: what was seen, not written, may be given up.
    """
    known = monitor.known.readings
    replicas = [monitor.health.replica(alias) for alias in order.all() if alias in known]
    decision = choose_replica(replicas, floor.position, max_lag)
    if decision is None and config.FALLBACK_LAG is not None:
        decision = choose_least_lagged(replicas, floor.position, config.FALLBACK_LAG)
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
