"""Mirrors: aliases of replicas that are the primary's own database, as Django's test runner makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from django.core.cache import caches
from django.core.cache.backends.dummy import DummyCache
from django.db import connections

from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.policy import Replica, ReplicaState
from django_replica_router.recording.writes import store_for_everybody
from django_replica_router.replicas.health import Health
from django_replica_router.replicas.mirrors import differences
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.readings import Sample
from django_replica_router.replicas.registry import Factory, replace_factory
from django_replica_router.sql import opening, states, wal
from django_replica_router.testing.blocks import block
from django_replica_router.testing.transactions import blocks_of_test, sharing_transaction
from django_replica_router.values.servers import Life


class MirrorMonitor(Monitor):
    """Looks at no server but the primary, once: each replica is the primary's own database."""

    looks_itself = False

    def __init__(self, primary: str, replicas: Sequence[str], interval: float) -> None:
        super().__init__(primary, replicas, interval)
        self.health = _MirrorHealth(self.known)
        for alias in replicas:
            _demand_mirror(alias, primary)
        with opening.connect(primary, timeout=5) as connection:
            position = wal.sample_primary(connection)
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
    routing rules are at work in the test, on connections of their own. In a ``TestCase``, whose data no
    other connection sees, all reads stay on the primary: use ``mirrors_are_replicas()`` there.
    """
    replace_factory(MirrorMonitor)


@block
def mirrors_are_replicas() -> Iterator[None]:
    """Let reads go to aliases that are mirrors of their primary, inside the block.

    Also in a ``TestCase``, where the aliases of replicas read in its transaction meanwhile.

    Raises:
        ConfigurationError: an alias is no mirror, the test may not use it, or the cache keeps no tokens.
    """
    with routing_by(MirrorMonitor):
        yield


class _AtWork:
    """Whether the routing rules are at work by a block of this package."""

    depth = 0


@contextmanager
def routing_by(factory: Factory) -> Iterator[None]:
    """Have the routing rules at work inside the block, by monitors that a factory makes.

    Raises:
        ConfigurationError: as for ``mirrors_are_replicas``.
    """
    _demand_store()
    with ExitStack() as stack:
        stack.callback(replace_factory, replace_factory(factory))
        for primary, replicas in get_config().topology.clusters.items():
            stack.enter_context(sharing_transaction(primary, tuple(replicas)))
            _begin_to_remember(primary)
        _AtWork.depth += 1
        try:
            yield
        finally:
            _AtWork.depth -= 1


def routing_at_work() -> AbstractContextManager[None]:
    """Return a block in which the rules are at work, by whatever is around it, or by mirrors.

    Real replicas, which a test run may have as well, are left to be what they are, but not in a ``TestCase``: none of
    them has what that has written, all would be read from the primary, and nothing be found.

    Raises:
        ConfigurationError: as for ``mirrors_are_replicas``.
    """
    if _AtWork.depth:
        return nullcontext()
    clusters = get_config().topology.clusters
    pairs = [(alias, primary) for primary, aliases in clusters.items() for alias in aliases]
    real = [(alias, primary) for alias, primary in pairs if differences(alias, primary)]
    for alias, primary in real:
        if blocks_of_test(primary):
            _demand_mirror(alias, primary)
    return nullcontext() if real else routing_by(MirrorMonitor)


def _demand_store() -> None:
    """Refuse a cache in which nothing is ever found: all reads would go to the primary.

    Raises:
        ConfigurationError: it is one.
    """
    name = get_config().CACHE
    if isinstance(caches[name], DummyCache):
        message = (
            f"CACHES[{name!r}] is a DummyCache, which keeps no tokens, so that all reads go to the primary. "
            f"Use django.core.cache.backends.locmem.LocMemCache in tests."
        )
        raise ConfigurationError(message)


def _begin_to_remember(primary: str) -> None:
    """Have the token store know where the primary is: a test may just have emptied it.

    Over the driver's connection, where one is open: a test that may use no database is kept from opening one.
    """
    raw = connections[primary].connection
    if raw is None or raw.closed or states.has_failed(raw):
        return
    store_for_everybody(primary, get_config(), wal.read_token(raw, in_transaction=True))
