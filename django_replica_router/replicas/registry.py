"""The monitors of this process: one for each cluster, started when first needed, and again after a fork."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence

from django_replica_router.conf import Config, get_config
from django_replica_router.forking import after_fork
from django_replica_router.replicas.discovery import Discoverer, entries_for
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.sharing import Sharer
from django_replica_router.replicas.telling import Teller, Trails
from django_replica_router.replicas.trail import Trail

Factory = Callable[[str, Sequence[str], float], Monitor]
"""Makes a monitor: takes the alias of a primary, those of its replicas, and the seconds between two looks."""

_monitors: dict[str, Monitor] = {}

find_monitor: Callable[[str], Monitor | None] = _monitors.get
"""Return the monitor of the cluster of a primary if this process has started it. Asked for each statement."""


def _replicas_of(primary: str, config: Config) -> Sequence[str]:
    return config.topology.replicas.get(primary, ())


class _Registry:
    """The monitors of this process."""

    def __init__(self, factory: Factory = Monitor) -> None:
        self.lock = threading.Lock()
        self.monitors = _monitors
        self.sharers: dict[str, Sharer] = {}
        self.tellers: dict[str, Teller] = {}
        self.discoverers: dict[str, list[Discoverer]] = {}
        self.names: dict[str, object] = {}
        self.factory = factory

    def find(self, primary: str, config: Config) -> Monitor | None:
        """Return the monitor of just that cluster, if it shares, and looks up names, as it should."""
        monitor = self.monitors.get(primary)
        if monitor is None or not monitor.serves(_replicas_of(primary, config), config.interval):
            return None
        sharer = self.sharers.get(primary)
        shares_through = None if sharer is None else sharer.cache
        is_right = shares_through == self.cache_for(monitor, config)
        return monitor if is_right and self.names.get(primary) is config.DISCOVERY else None

    @staticmethod
    def cache_for(monitor: Monitor, config: Config) -> str | None:
        """Return the alias of the cache through which the monitor's readings are to be shared."""
        return config.CACHE if config.SHARE_READINGS and monitor.looks_itself else None

    def start(self, primary: str, config: Config) -> Monitor:
        """Start a monitor."""
        monitor = self.factory(primary, _replicas_of(primary, config), config.interval)
        cache = self.cache_for(monitor, config)
        monitor.start()
        if cache is not None:
            self.sharers[primary] = sharer = Sharer(monitor, cache)
            sharer.start()
        if (config.SHARE_COUNTS or Trails.are_kept) and monitor.looks_itself:
            through = config.CACHE if config.SHARE_COUNTS else None
            self.tellers[primary] = teller = Teller(monitor, through)
            teller.start()
        self.names[primary] = config.DISCOVERY
        entries = entries_for(primary, config) if monitor.looks_itself else {}
        self.discoverers[primary] = [
            Discoverer(monitor, alias, entry, self.lock) for alias, entry in entries.items()
        ]
        for discoverer in self.discoverers[primary]:
            discoverer.start()
        self.monitors[primary] = monitor
        return monitor

    def remove(self, primary: str) -> Callable[[], None]:
        """Forget a monitor, and return what stops it."""
        monitor = self.monitors.pop(primary, None)
        helpers = (self.sharers.pop(primary, None), self.tellers.pop(primary, None))
        for discoverer in self.discoverers.pop(primary, ()):
            discoverer.end()

        def stop() -> None:
            for helper in helpers:
                if helper is not None:
                    helper.end()
            if monitor is not None:
                monitor.stop()

        return stop


_registry = _Registry()


def get_monitor(primary: str) -> Monitor:
    """Return the monitor of a cluster, which may have no replica.

    It is started on first use, again after a fork, and anew where the settings are others than before.
    """
    monitor = _registry.find(primary, get_config())
    if monitor is not None:
        return monitor
    with _registry.lock:
        # Another thread may have been first; or servers have come or gone, which they do with the lock held.
        config = get_config()
        monitor = _registry.find(primary, config)
        if monitor is None:
            _registry.remove(primary)()
            monitor = _registry.start(primary, config)
        return monitor


def replace_factory(factory: Factory) -> Factory:
    """Have monitors made by something else from now on, and return what made them before."""
    stop_monitors()
    old, _registry.factory = _registry.factory, factory
    return old


def find_trail(primary: str) -> Trail | None:
    """Return how the servers of a cluster were, as this process has seen them; None where it does not keep that."""
    teller = _registry.tellers.get(primary)
    return None if teller is None else teller.trail


def stop_monitors() -> None:
    """Stop every monitor of this process. The next read that needs one starts it again."""
    with _registry.lock:
        stops = [_registry.remove(primary) for primary in list(_registry.monitors)]
    for stop in stops:
        stop()


@after_fork
def _after_fork() -> None:
    # The threads do not exist in the child, and locks may be held for ever. The parent's sockets
    # must not be closed with a farewell to the server: the objects are kept, and left alone.
    global _registry, _inherited
    _inherited = _registry, dict(_monitors)
    _monitors.clear()
    _registry = _Registry(_registry.factory)


_inherited: tuple[_Registry, dict[str, Monitor]] | None = None
atexit.register(stop_monitors)
