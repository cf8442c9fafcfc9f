"""Helpers for the tests of sites that use the package."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import connections

from django_replica_router import postgres
from django_replica_router.errors import ConfigurationError
from django_replica_router.monitor import Monitor
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.registry import replace_factory

_ADDRESS = ("HOST", "PORT", "NAME")


class _MirrorMonitor(Monitor):
    """Takes every replica for a perfect one, since each is the primary's own database."""

    def __init__(self, primary: str, replicas: Sequence[str], interval: float) -> None:
        super().__init__(primary, replicas, interval)
        expected = self._address(primary)
        for alias in replicas:
            if self._address(alias) != expected:
                message = (
                    f"{alias!r} is not the database of {primary!r}: expected the same HOST, PORT "
                    f"and NAME. Set TEST['MIRROR'] of {alias!r} to {primary!r}."
                )
                raise ConfigurationError(message)
        with postgres.connect(primary, timeout=5) as connection:
            self._timeline = postgres.sample_primary(connection).timeline

    @staticmethod
    def _address(alias: str) -> list[str]:
        settings = connections[alias].settings_dict
        return [str(settings[key]) for key in _ADDRESS]

    looks_itself = False

    def start(self) -> None:
        """Start no thread."""

    @property
    def timeline(self) -> int | None:
        """The primary's timeline."""
        return self._timeline

    def replica(self, alias: str) -> Replica:
        """Return a perfect replica."""
        return Replica(alias, ReplicaState.STREAMING, (1 << 64) - 1, 0.0)


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
