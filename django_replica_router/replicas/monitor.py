"""Looking at the servers of a cluster: what starts and ends that, and what requests report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.answers import Answers
from django_replica_router.replicas.endpoints import EndpointPoller
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.hearsay import Hearsay
from django_replica_router.replicas.inflight import in_flight
from django_replica_router.replicas.known import Known
from django_replica_router.replicas.pollers import Poller, PrimaryPoller
from django_replica_router.replicas.waiting import Waiting
from django_replica_router.replicas.watching import Watcher
from django_replica_router.values.servers import Life, without


class Monitor:
    """Looks at one cluster: a thread for each server, so that one that hangs delays no other.

    Args:
        primary: alias of the primary.
        replicas: aliases of its replicas.
        interval: seconds between two looks.
        clock: a monotonic clock.
    """

    looks_itself = True
    """It asks the servers, and knows which server each alias is."""

    def __init__(
        self,
        primary: str,
        replicas: Sequence[str],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.primary = primary
        self.interval = interval
        self.clock = clock
        self.known = Known(primary, replicas, interval, clock)
        self.servers = self.known.servers
        self.history = self.known.history
        self.breaker = self.known.breaker
        self.health = Health(self.known)
        self.answers = Answers(self.known)
        self.hearsay = Hearsay(self.known)
        self.waiting = Waiting(self.known)
        self._primary_poller = PrimaryPoller(self.answers)
        self._pollers = {alias: self._make_poller(alias) for alias in replicas}
        self._watcher = Watcher(self.health)

    def _make_poller(self, alias: str) -> EndpointPoller:
        return EndpointPoller(self.answers, self.health, self.known.look_at(alias))

    def _threads(self) -> list[Poller]:
        of_replicas = [one for poller in self._pollers.values() for one in poller.all()]
        return [self._primary_poller, *of_replicas]

    def start(self) -> None:
        """Start the threads."""
        for poller in self._threads():
            poller.start()
        self._watcher.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Stop the threads, and wait at most ``timeout`` seconds for them.

        One that hangs on its server is left behind: it is a daemon, and keeps no process alive.
        """
        self.known.stopped = True
        self._watcher.end()
        pollers = self._threads()
        for poller in pollers:
            poller.end()
        deadline = time.monotonic() + timeout
        for poller in pollers:
            if poller.is_alive():
                poller.join(max(0.0, deadline - time.monotonic()))

    def serves(self, replicas: Sequence[str], interval: float) -> bool:
        """Tell whether it looks at those replicas, that often."""
        return self.interval == interval and self.known.aliases == tuple(replicas)

    def follow(self, replicas: Sequence[str]) -> None:
        """Send requests to those replicas from now on.

        What is known of those that stay, stays. The others are looked at until they are removed.
        """
        with self.known.changed:
            coming = [alias for alias in replicas if alias not in self._pollers]
            new = {alias: self._make_poller(alias) for alias in coming}
            self._pollers = {**self._pollers, **new}
            self.known.aliases = tuple(replicas)
        for poller in new.values():
            poller.start()

    def remove(self, alias: str) -> Poller | None:
        """Look at a replica no more. Return the thread that ends now, or None where there was none."""
        with self.known.changed:
            endpoint = self._pollers.get(alias)
            if endpoint is None:
                return None
            self._pollers = without(self._pollers, alias)
            keys = self.known.leave(alias)
            for poller in endpoint.all():
                poller.end()
        for key in keys:
            in_flight.end(key, 0.0)  # nobody would do so later
        return endpoint

    # What requests report.

    def is_same_server(self, alias: str, life: Life) -> bool:
        """Tell whether a request has met a server that the monitor looks at.

        Where it has not, the server was started anew a moment ago, or the alias is several.
        """
        if self.servers.knows(alias, life) or alias in self.servers.led:
            return True
        endpoint = self._pollers.get(alias)
        if endpoint is not None:
            endpoint.suspect(life)
        return False

    def report(
        self,
        alias: str,
        error: Exception | str,
        state: ReplicaState = ReplicaState.UNREACHABLE,
        life: Life | None = None,
    ) -> None:
        """Take out a replica that failed a request, and look at it at once.

        Args:
            alias: its alias.
            error: what the request has met.
            state: the replica's.
            life: of an endpoint, the server that it was. Where nobody knows, all are looked at.
        """
        key: str | None = alias
        if alias in self.servers.endpoints:
            key = None if life is None else self.servers.key(alias, life)
        if key is not None:
            self.known.lose(key, state, error)
        for looks in self.known.looks.values():
            if looks.alias == alias:
                looks.poke()
        endpoint = self._pollers.get(alias)
        if endpoint is not None and state is ReplicaState.PROMOTED:
            endpoint.look_around()  # else it may have met the primary, and standbys beside it
