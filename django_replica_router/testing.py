"""Helpers for the tests of sites that use the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import connections

from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.replicas import postgres
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.mirrors import differences
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Sample
from django_replica_router.replicas.registry import replace_factory
from django_replica_router.values.servers import Life


class _MirrorMonitor(Monitor):
    """Looks at no server but the primary, once: each replica is the primary's own database."""

    looks_itself = False

    def __init__(self, primary: str, replicas: Sequence[str], interval: float) -> None:
        super().__init__(primary, replicas, interval)
        self.health = _MirrorHealth(self.known)
        for alias in replicas:
            _demand_mirror(alias, primary)
        with postgres.connect(primary, timeout=5) as connection:
            position = postgres.sample_primary(connection)
        self.answers.publish_sample(Sample(self.clock(), position))

    def start(self) -> None:
        """Start no thread."""


class _MirrorHealth(Health):
    """Takes every replica for a perfect one."""

    def replica(self, alias: str, life: Life | None = None) -> Replica:
        """Return a perfect replica."""
        return Replica(alias, ReplicaState.STREAMING, (1 << 64) - 1, 0.0)


def _demand_mirror(alias: str, primary: str) -> None:
    different = differences(alias, primary)
    if not different:
        return
    what = (
        f"{alias!r} is not the database of {primary!r}: it has another {' and '.join(different)}."
    )
    if "NAME" in different:
        advice = f"Set TEST['MIRROR'] of {alias!r} to {primary!r}, and set up the test databases."
    else:
        advice = (
            f"TEST['MIRROR'] copies only the NAME: give {alias!r} the HOST and PORT of {primary!r} in "
            f"the settings of your tests, or call point_mirrors_to_primaries() first."
        )
    message = f"{what} {advice}"
    raise ConfigurationError(message)


def point_mirrors_to_primaries() -> None:
    """Give every replica's alias the host and port of its primary, from now on.

    In a test run Django gives a mirror the name of the primary's test database, and no more: where the
    settings name a real standby, ``using("replica1")`` asks that. Call it before the first test, as in
    ``setup_databases()`` of a test runner, or in a fixture of the session.
    """
    topology = get_config().topology
    for alias, primary in topology.primary_of.items():
        if topology.is_replica(alias):
            connections[alias].close()
            address = connections[primary].settings_dict
            # One dict for the connections of all threads.
            connections[alias].settings_dict.update(HOST=address["HOST"], PORT=address["PORT"])


def treat_mirrors_as_replicas() -> None:
    """Let reads go to aliases that are mirrors of their primary, from now on.

    In a test run Django points an alias with ``TEST["MIRROR"]`` to the primary's test database.
    That is no standby, so by itself the package reads from the primary. With this switch the
    routing rules are at work in the test, on connections of their own.
    """
    replace_factory(_MirrorMonitor)


@contextmanager
def mirrors_are_replicas() -> Iterator[None]:
    """Let reads go to aliases that are mirrors of their primary, inside the block."""
    before = replace_factory(_MirrorMonitor)
    try:
        yield
    finally:
        replace_factory(before)
