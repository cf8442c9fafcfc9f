"""The monitors of this process: one for each cluster, started when first needed, and again after a fork."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence

from django_replica_router.monitor import Monitor


class _Registry:
    """The monitors of this process."""

    def __init__(self, factory: Callable[[str, Sequence[str], float], Monitor] = Monitor) -> None:
        self.lock = threading.Lock()
        self.monitors: dict[str, Monitor] = {}
        self.factory = factory


_registry = _Registry()


def get_monitor(primary: str, replicas: Sequence[str], interval: float) -> Monitor:
    """Return the monitor of a cluster, started on first use and again after a fork."""
    monitor = _registry.monitors.get(primary)
    if monitor is not None and monitor.serves(replicas, interval):
        return monitor
    with _registry.lock:
        monitor = _registry.monitors.get(primary)
        if monitor is not None and not monitor.serves(replicas, interval):
            monitor.stop()
            monitor = None
        if monitor is None:
            monitor = _registry.factory(primary, replicas, interval)
            monitor.start()
            _registry.monitors[primary] = monitor
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
        monitors = list(_registry.monitors.values())
        _registry.monitors.clear()
    for monitor in monitors:
        monitor.stop()


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
