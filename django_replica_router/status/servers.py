"""How each server of a cluster is now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from django_replica_router.conf import get_config
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.health import DOWN, LAGGING, PRIMARY, UNKNOWN, condition
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.values.lsn import format_lsn

PRIMARY_SERVES = "takes writes"
PRIMARY_IS_DOWN = "does not answer, or is a standby"
LAGS = "a hot standby that answers, and lags by more than MAX_LAG"
MAY_LAG = "a hot standby that answers; how far it lags is not known yet"

_OF_PRIMARY = {PRIMARY: PRIMARY_SERVES, DOWN: PRIMARY_IS_DOWN}


class ServerStatus(NamedTuple):
    """One server, as this process knows it.

    Args:
        alias: that leads to it.
        role: "primary" or "replica".
        address: of the server, as it tells it itself; empty where it is not known.
        state: name of its state.
        sentence: what that means.
        serves: reads may go to it now; of a primary, it answers.
        version: of PostgreSQL, as "18.6"; empty where it is not known.
        timeline: that it writes or follows, or None.
        lsn: up to which its data goes, or None.
        bytes_behind: what of the primary's WAL it has not replayed, or None.
        seconds_behind: how old its data may be at most, or None where that is not known yet.
    """

    alias: str
    role: str
    address: str
    state: str
    sentence: str
    serves: bool
    version: str
    timeline: int | None
    lsn: str | None
    bytes_behind: int | None
    seconds_behind: float | None


class ClusterStatus(NamedTuple):
    """A primary and its replicas.

    Args:
        primary: alias of the primary.
        servers: the primary first. An alias that leads to several servers has a line for each.
    """

    primary: str
    servers: tuple[ServerStatus, ...]

    @property
    def primary_serves(self) -> bool:
        """The primary answers."""
        return self.servers[0].serves

    @property
    def out_of_service(self) -> list[str]:
        """Aliases of the replicas behind which no server may serve now."""
        serving = {server.alias for server in self.servers if server.serves}
        aliases = dict.fromkeys(server.alias for server in self.servers[1:])
        return [alias for alias in aliases if alias not in serving]


def look(primary: str, timeout: float) -> ClusterStatus:
    """Return how the servers are, after each was looked at, as far as that takes no longer than allowed.

    Args:
        primary: alias of the primary.
        timeout: seconds.
    """
    monitor = get_monitor(primary)
    monitor.waiting.wait_for(lambda: _is_known(monitor) or None, timeout)
    return describe(monitor)


def are_met(monitor: Monitor) -> bool:
    """Tell whether each server has been looked at, whatever was found.

    Args:
        monitor: looks at them.
    """
    replicas = monitor.health.replicas()
    return monitor.health.primary_condition() != UNKNOWN and all(
        replica.state is not ReplicaState.UNKNOWN for replica in replicas
    )


def _is_known(monitor: Monitor) -> bool:
    known = monitor.known
    is_primary_known = bool(known.history.samples) or known.primary_is_down
    return is_primary_known and all(
        replica.state is not ReplicaState.UNKNOWN
        and (replica.state is not ReplicaState.STREAMING or math.isfinite(replica.age))
        for replica in monitor.health.replicas()
    )


def describe(monitor: Monitor) -> ClusterStatus:
    """Return how the servers are, as a monitor knows them at this moment. It asks nobody."""
    replicas = [
        _describe_replica(monitor, alias, key)
        for alias in monitor.known.aliases
        for key in monitor.servers.keys(alias)
    ]
    return ClusterStatus(monitor.primary, (_describe_primary(monitor), *replicas))


def _describe_primary(monitor: Monitor) -> ServerStatus:
    known = monitor.known
    looks, samples = known.primary_looks, known.history.samples
    position = samples[-1].position if samples else None
    state = monitor.health.primary_condition()
    return ServerStatus(
        alias=monitor.primary,
        role="primary",
        address=_address(None if looks.identity is None else looks.identity.life),
        state=state,
        sentence=_OF_PRIMARY.get(state) or ReplicaState.UNKNOWN.value,
        serves=state == PRIMARY,
        version=_version(looks.version),
        timeline=None if position is None else position.timeline,
        lsn=None if position is None else format_lsn(position.lsn),
        bytes_behind=None,
        seconds_behind=None,
    )


def _describe_replica(monitor: Monitor, alias: str, key: str) -> ServerStatus:
    known, config = monitor.known, get_config()
    looks, replica = known.looks.get(key), monitor.health.of_key(alias, key)
    identity = None if looks is None else looks.identity
    is_streaming = replica.state is ReplicaState.STREAMING
    state = condition(replica, config.MAX_LAG)
    is_late = state == LAGGING
    sentence = replica.state.value
    if is_late:
        sentence = LAGS if math.isfinite(replica.age) else MAY_LAG
    remark = known.reading(key).remark
    return ServerStatus(
        alias=alias,
        role="replica",
        address=_address(None if identity is None else identity.life),
        state=state,
        sentence=f"{sentence}: {remark}" if remark else sentence,
        serves=is_streaming and not is_late,
        version=_version(0 if looks is None else looks.version),
        timeline=known.history.timeline if is_streaming else None,
        lsn=format_lsn(replica.watermark) if replica.watermark >= 0 else None,
        bytes_behind=_bytes_behind(monitor, replica),
        seconds_behind=round(replica.age, 3) if math.isfinite(replica.age) else None,
    )


def _bytes_behind(monitor: Monitor, replica: Replica) -> int | None:
    samples = monitor.known.history.samples
    if replica.watermark < 0 or not samples:
        return None
    return max(0, samples[-1].position.lsn - replica.watermark)


def _address(life: tuple[Any, ...] | None) -> str:
    if life is None or life[1] is None:
        return ""
    return f"{str(life[1]).partition('/')[0]}:{life[2]}"


def _version(number: int) -> str:
    return f"{number // 10_000}.{number % 10_000}" if number else ""


def all_clusters() -> Iterator[str]:
    """Return the alias of each primary that has replicas."""
    return (primary for primary, replicas in get_config().topology.clusters.items() if replicas)
