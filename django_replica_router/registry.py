"""The monitors of this process: one for each cluster, started when first needed, and again after a fork."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence

from django_replica_router.conf import get_config
from django_replica_router.monitor import Monitor
from django_replica_router.sharing import Sharer


class _Registry:
    """The monitors of this process."""

    def __init__(self, factory: Callable[[str, Sequence[str], float], Monitor] = Monitor) -> None:
        self.lock = threading.Lock()
        self.monitors: dict[str, Monitor] = {}
        self.sharers: dict[str, Sharer] = {}
        self.factory = factory

    def find(self, primary: str, replicas: Sequence[str], interval: float) -> Monitor | None:
        """Return the monitor of just that cluster, if there is one that shares as it should."""
        monitor = self.monitors.get(primary)
        if monitor is None or not monitor.serves(replicas, interval):
            return None
        sharer = self.sharers.get(primary)
        shares_through = None if sharer is None else sharer.cache
        return monitor if shares_through == self.cache_for(monitor) else None

    @staticmethod
    def cache_for(monitor: Monitor) -> str | None:
        """Return the alias of the cache through which the monitor's readings are to be shared."""
        config = get_config()
        return config.CACHE if config.SHARE_READINGS and monitor.looks_itself else None

    def start(self, primary: str, replicas: Sequence[str], interval: float) -> Monitor:
        """Start a monitor."""
        monitor = self.factory(primary, replicas, interval)
        cache = self.cache_for(monitor)
        monitor.start()
        if cache is not None:
            self.sharers[primary] = sharer = Sharer(monitor, cache)
            sharer.start()
        self.monitors[primary] = monitor
        return monitor

    def remove(self, primary: str) -> Callable[[], None]:
        """Forget a monitor, and return what stops it."""
        monitor, sharer = self.monitors.pop(primary, None), self.sharers.pop(primary, None)

        def stop() -> None:
            if sharer is not None:
                sharer.end()
            if monitor is not None:
                monitor.stop()

        return stop


_registry = _Registry()


def get_monitor(primary: str, replicas: Sequence[str], interval: float) -> Monitor:
    """Return the monitor of a cluster, started on first use and again after a fork."""
    monitor = _registry.find(primary, replicas, interval)
    if monitor is not None:
        return monitor
    with _registry.lock:
        monitor = _registry.find(primary, replicas, interval)
        if monitor is None:
            _registry.remove(primary)()
            monitor = _registry.start(primary, replicas, interval)
        return monitor


def find_monitor(primary: str) -> Monitor | None:
    """Return the monitor of a cluster if this process has started it."""
    return _registry.monitors.get(primary)


def replace_factory(
    factory: Callable[[str, Sequence[str], float], Monitor],
) -> Callable[[str, Sequence[str], float], Monitor]:
    """Have monitors made by something else from now on, and return what made them before."""
    stop_monitors()
    old, _registry.factory = _registry.factory, factory
    return old


def stop_monitors() -> None:
    """Stop every monitor of this process. The next read that needs one starts it again."""
    with _registry.lock:
        stops = [_registry.remove(primary) for primary in list(_registry.monitors)]
    for stop in stops:
        stop()


def _after_fork() -> None:
    # The threads do not exist in the child, and locks may be held for ever. The parent's sockets
    # must not be closed with a farewell to the server: the objects are kept, and left alone.
    global _registry, _inherited
    _inherited = _registry
    _registry = _Registry(_inherited.factory)


_inherited: _Registry | None = None
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(stop_monitors)
