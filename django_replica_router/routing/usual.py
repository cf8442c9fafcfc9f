"""The usual way of a first read: to the reader's usual replica, where nothing else has a say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django_replica_router.conf import Config
from django_replica_router.policy import Decision, decide_for
from django_replica_router.replicas.connecting import find_open
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.registry import find_monitor, get_monitor
from django_replica_router.routing.balancers import UNRANKED, random_table, rendezvous_table
from django_replica_router.routing.choosing import unstored
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.scopes.scope import Scope
from django_replica_router.transactions.settings import are_alike
from django_replica_router.values.tokens import Floor


class Usual:
    """What the first reads of scopes go by in one cluster, worked out once of the settings.

    Nearly every first decision is made here: ``choose_server`` is for what takes more, by the same rules.

    Args:
        primary: alias of the primary.
        config: the settings.
        monitor: what is known of the replicas.
    """

    __slots__ = (
        "_draw",
        "_first_of",
        "_health",
        "_history",
        "_is_possible",
        "_primary",
        "_servers",
        "_token_bound",
        "monitor",
        "topology",
    )

    def __init__(self, primary: str, config: Config, monitor: Monitor) -> None:
        # Looked at once: servers may come meanwhile.
        topology = self.topology = config.topology
        self.monitor = monitor
        self._primary, self._token_bound = primary, config.token_bound
        self._servers, self._health = monitor.servers, monitor.health
        self._history = monitor.history
        weights = topology.clusters[primary]
        self._is_possible = (
            bool(weights)
            and config.BALANCER in UNRANKED
            and not config.shadows
            and primary not in topology.settling
        )
        draw = self._draw = random_table(primary, weights).draw
        self._first_of: Callable[[str], str] | None = None
        if config.BALANCER == "rendezvous":
            self._first_of = rendezvous_table(primary, weights).first
        elif not config.MONOTONIC_READS:  # else what is shown has to be recorded
            self._first_of = lambda reader: draw()

    def choose(
        self, scope: Scope, state: ClusterScope, connection: Any, max_lag: float, floor: Floor
    ) -> Decision | None:
        """Return the decision for the reader's usual replica, or None where anything is not as usual.

        Args:
            scope: in which the read is, and in which nothing was decided before.
            state: what that knows of the cluster.
            connection: this thread's connection to the primary.
            max_lag: seconds that a replica's data may be old.
            floor: what the reader must see.
        """
        if self._is_unusual(scope, state, floor):
            return None
        reader = state.reader.name
        if max_lag > self._token_bound:  # more is granted by the long way, where nobody is bound
            max_lag = self._token_bound
        if not reader:
            alias = self._draw()
        elif self._first_of is not None:
            alias = self._first_of(reader)
        else:
            return None
        life = self._servers.life(alias)  # before the reading, which may be newer
        if not self._health.may_serve(alias, floor.position, max_lag):
            return None
        replica = find_open(alias, life)
        if replica is None or not are_alike(connection, replica):
            return None
        # Equal to that, and the very object which each statement compares with.
        state.route.lives[alias] = replica.sight.life
        return decide_for(alias, floor.position.lsn > 0)

    def _is_unusual(self, scope: Scope, state: ClusterScope, floor: Floor) -> bool:
        """Tell whether more has to be asked than what the usual replica has replayed."""
        everybody = state.reader.records.get(EVERYBODY)
        return (
            not self._is_possible
            or everybody is None
            or floor.pinned
            or state.wrote
            or state.reader.may_be_forgotten
            or scope.carried is not None
            or bool(self._servers.endpoints)
            or self._primary in unstored
            or not everybody.position.timeline == floor.position.timeline == self._history.timeline
        )


_known: dict[str, Usual] = {}


def usual_for(primary: str, config: Config) -> Usual:
    """Return what the first reads in a cluster go by: that of before, where all it was worked out of is the same.

    Starts the monitor of the cluster where that does not run.

    Args:
        primary: alias of the primary.
        config: the settings.
    """
    usual = _known.get(primary)
    if (
        usual is None
        or usual.topology is not config.topology  # which other settings have their own of
        or usual.monitor is not find_monitor(primary)
    ):
        monitor = get_monitor(primary)
        usual = _known[primary] = Usual(primary, config, monitor)
    return usual
