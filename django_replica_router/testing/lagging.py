"""Replicas that lag, in a test with one database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from unittest import mock

from django.db import connections

from django_replica_router.conf import get_config, reread
from django_replica_router.connections.connection import ClusterConnection
from django_replica_router.errors import ConfigurationError
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas.attributes import Around
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.registry import Factory
from django_replica_router.stores.store import get_store
from django_replica_router.testing.blocks import block
from django_replica_router.testing.mirrors import MirrorMonitor, routing_by
from django_replica_router.testing.moments import Behind, Copies, Moment, Snapshot
from django_replica_router.testing.transactions import blocks_of_test, is_forbidden
from django_replica_router.values.servers import Life


class LaggingReplicas:
    """Replicas that show what was committed before a moment, and nothing newer.

    Args:
        lag: seconds that they say they lag.
        moments: that moment, for each primary.
    """

    def __init__(self, lag: float, moments: Mapping[str, Moment]) -> None:
        self.lag = lag
        """Seconds that they say they lag, whatever time the test takes. May be changed in the block."""
        self._moments = moments

    def catch_up(self) -> None:
        """Have them show what is committed by now, and nothing newer."""
        for moment in self._moments.values():
            moment.renew()

    def watermark(self, primary: str) -> int:
        """Return the LSN that they say they have replayed."""
        return self._moments[primary].position.lsn


class _LaggingHealth(Health):
    """Takes every replica for one that has replayed what was committed by a moment."""

    def __init__(self, known: Known, replicas: LaggingReplicas) -> None:
        super().__init__(known)
        self._replicas = replicas

    def replica(self, alias: str, life: Life | None = None) -> Replica:
        """Return what is known of one replica now."""
        watermark = self._replicas.watermark(self.known.primary)
        return Replica(alias, ReplicaState.STREAMING, watermark, self._replicas.lag)


@block
def lagging_replicas(*, lag: float = 1.0) -> Iterator[LaggingReplicas]:
    """Have the replicas lag inside the block: they show what was committed before it, and nothing newer.

    The routing rules are at work, and know how far each replica is: who has written reads from the primary,
    others from a replica that shows what was. Code that names a replica by hand sees what was, in whatever thread.
    On replicas nothing can be written.

    Each statement of a replica's alias is run by a snapshot of the one database. In a ``TestCase``, where
    nothing is committed, it is run on copies of the tables; what names a schema, views and functions read what is
    there now.

    Args:
        lag: seconds that the replicas say they lag. Above ``MAX_LAG`` nobody is sent to them.

    Yields:
        LaggingReplicas: its ``catch_up()`` has them show what there is by then.

    Raises:
        ConfigurationError: an alias is no mirror, the test may not use it, the cache keeps no tokens, or there is
            such a block around it.
    """
    _demand_none_around()
    store = get_store(get_config().CACHE)
    moments: dict[str, Moment] = {}
    replicas = LaggingReplicas(lag, moments)
    with ExitStack() as stack:
        for primary in _allowed_primaries():
            connections[primary].ensure_connection()
        stack.enter_context(routing_by(_maker(replicas, moments)))
        # A session that a test has made past any request is unknown: nothing was dropped for that.
        stack.enter_context(mock.patch.object(type(store), "may_forget", return_value=False))
        for primary in _allowed_primaries():
            moments[primary] = _begin(primary)
            stack.callback(moments[primary].end)
        stack.callback(_wrap, None)
        _wrap(_behind(moments))
        yield replicas


def _demand_none_around() -> None:
    if ClusterConnection.around_replicas is not None:
        message = "lagging_replicas() is at work already: use its catch_up() for another moment."
        raise ConfigurationError(message)


def _allowed_primaries() -> list[str]:
    """Return the primaries that the present test may use."""
    return [primary for primary in get_config().topology.clusters if not is_forbidden(primary)]


def _maker(replicas: LaggingReplicas, moments: Mapping[str, Moment]) -> Factory:
    """Return what makes the monitors: those of the primaries that have a moment take replicas for that late."""

    def make(primary: str, aliases: Sequence[str], interval: float) -> MirrorMonitor:
        monitor = MirrorMonitor(primary, aliases, interval)
        if primary in moments:
            monitor.health = _LaggingHealth(monitor.known, replicas)
        return monitor

    return make


def _begin(primary: str) -> Moment:
    return Copies(primary) if blocks_of_test(primary) else Snapshot(primary)


def _behind(moments: Mapping[str, Moment]) -> Callable[[Around], Around]:
    """Return what makes what runs around the statements of replicas that lag."""

    def make(around: Around) -> Around:
        moment = moments.get(around.primary)
        return around if moment is None else Behind(around, moment)

    return make


def _wrap(wrap: Callable[[Around], Around] | None) -> None:
    """Have the statements of replicas run so from now on."""
    ClusterConnection.around_replicas = wrap
    reread()
