"""The real servers that the tests run against, put back to order before each test."""

from __future__ import annotations

import gc
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from weakref import WeakSet

import hypothesis
import pytest
from django.conf import settings
from django.contrib.auth.models import User
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, connections

from django_replica_router import pop_stats, stats
from django_replica_router.conf import get_config
from django_replica_router.connections import mending, on_replica
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import learning, stale_saves
from django_replica_router.recording.writes import store_for_everybody
from django_replica_router.replicas.pollers import ReplicaPoller
from django_replica_router.replicas.registry import find_monitor, get_monitor, stop_monitors
from django_replica_router.routing import choosing
from django_replica_router.routing.budget import monotonic_budget
from django_replica_router.scopes.keys import EVERYBODY, store_key
from django_replica_router.sql.answering import read_answerer
from django_replica_router.stores import redis as redis_client
from django_replica_router.stores import store as stores
from django_replica_router.stores.store import RedisStore, get_store
from testproject.cluster import Cluster
from testproject.cluster.pgbouncer import answers
from testproject.notes.models import Note
from tests.helpers import Served
from tests.kept_connections import monitors_keep_connections
from tests.site import PASSWORD

ROOT = Path(__file__).resolve().parent.parent

# The tests of a site that the test kit is tried in: they are copied there.
collect_ignore = ["kit_site"]

TIMEOUT = 60.0
"""Seconds after which a test gives up what must come: a server that was down for long is looked at
again after 15 seconds, and on a busy machine everything takes longer."""

POOLER = os.environ.get("REPLICA_ROUTER_TEST_POOLER", "")
"""``session`` or ``transaction``: the whole run goes through a PgBouncer for each server."""

PATIENT = {"CONNECT_TIMEOUT": 10.0, "STORE_TIMEOUT": 10.0}
"""Settings under which a machine that is busy for a moment makes no server count as down."""

# A time for each example says more of the machine than of the code.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session")
def real_cluster() -> Iterator[Cluster]:
    """A primary with two streaming replicas and a Valkey server, for the whole run.

    Behind poolers where ``REPLICA_ROUTER_TEST_POOLER`` says so.
    """
    # It would write to the WAL, and take locks, at moments of its own: a replica that delays commits
    # would wait out one of those.
    settings = {"autovacuum": "off"}
    with Cluster(
        replicas=2, cache=True, databases=("app",), settings=settings, pooler=POOLER
    ) as cluster:
        yield cluster


SLOW_FILES = (
    "test_torture.py",
    "test_benchmarks_quick.py",
    "test_endpoints.py",
    "test_demo.py",
    "test_endpoints_faults.py",
    "test_endpoints_servers.py",
    "test_controls.py",
    "test_ignore_writes_blocks.py",
    "test_cqrs_writes.py",
    "test_discovery_names.py",
    "test_cache_http.py",
    "test_discovery.py",
    "test_sharing_processes.py",
    "test_pgbouncer_faults.py",
    "test_window.py",
)
"""The slowest first: whichever began last would go on alone at the end of a run by several processes."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage once when all tests are collected, and no more among what that has made: it stays.

    Else each process goes through it again and again, which takes a third of its collecting.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist keep the order of the files: it would put the slowest last, which have few tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow files first, and of the others those of many tests; by then all have been shuffled."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), -sizes[item.path]))


def pytest_report_header() -> str:
    """Say which servers the run is about."""
    servers = [
        os.environ.get(variable) or f"from the wheel ({variable} names others)"
        for variable in ("REPLICA_ROUTER_POSTGRES_BIN", "REPLICA_ROUTER_REDIS_SERVER")
    ]
    if POOLER:
        servers.append(f"behind PgBouncer in {POOLER} mode")
    return "servers: " + ", ".join(servers)


@pytest.fixture(autouse=True)
def _mind_the_pooler(request: pytest.FixtureRequest) -> None:
    """Skip, with the reason, what has no meaning behind a pooler of that mode."""
    skip_where_pooled(request.node.iter_markers())


def skip_where_pooled(markers: Iterable[pytest.Mark]) -> None:
    """Skip a test with these markers where it has no meaning behind a pooler of that mode."""
    for marker in markers:
        if (
            marker.name == "not_pooled"
            and POOLER
            and POOLER in marker.kwargs.get("modes", (POOLER,))
        ):
            pytest.skip(f"not behind PgBouncer in {POOLER} mode: {marker.args[0]}")


@pytest.fixture(scope="session")
def _django_on_cluster(real_cluster: Cluster, django_db_blocker: Any) -> Iterator[None]:
    """Point Django's settings to the cluster, in place, and migrate it."""
    for alias, database in real_cluster.django_databases(name="app").items():
        settings.DATABASES[alias].update(database)
    assert real_cluster.cache is not None
    settings.CACHES["default"].update(
        BACKEND="django_redis.cache.RedisCache", LOCATION=real_cluster.cache.url
    )
    with django_db_blocker.unblock():
        call_command("migrate", verbosity=0)
        yield
        stop_monitors()
        connections.close_all()


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Return once the condition holds; fail after a deadline."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < TIMEOUT, f"waited {TIMEOUT} s in vain: {what}"
        # What takes long is not asked for as often: the asking takes time from what is waited for,
        # or, behind a pooler, the very connection that it needs.
        time.sleep(max(0.002, min(waited / 20, 0.02), min(waited / 50, 0.5)))


def wait_until_reachable(alias: str) -> None:
    """Return once new connections to that alias have an answer, the site's and the monitor's.

    A pooler that has met a dead server tries it again only after a while.
    """
    database = connections[alias].settings_dict
    port = int(database["PORT"])
    for name in (database["NAME"], "postgres"):
        wait_until(lambda name=name: answers(port, name, timeout=2), f"{alias} to answer")


def impatient(cluster: Cluster, name: str) -> AbstractContextManager[None]:
    """Have a server's pooler, if there is one, keep nobody waiting for long while that is down."""
    pooler = cluster.poolers.get(name)
    return nullcontext() if pooler is None else pooler.adjusted(query_wait_timeout="1")


def wait_until_routed(replicas: int = 2) -> None:
    """Return once this process's monitor knows that so many replicas serve, without lag."""
    config = get_config()
    began = get_monitor("default").clock()

    def ready() -> bool:
        monitor = get_monitor("default")
        if min(reading.read_at for reading in monitor.known.readings.values()) < began:
            # What was known before may be of a server that a test has killed meanwhile.
            monitor.known.refresh(0.0)
            return False
        good = [
            replica
            for replica in monitor.health.replicas()
            if replica.state is ReplicaState.STREAMING and replica.age <= config.MAX_LAG
        ]
        return len(good) >= replicas

    wait_until(ready, f"{replicas} replicas in service")


def wait_until_seen(position: int) -> None:
    """Return once this process's monitor has just seen that all replicas have a position."""
    config = get_config()
    began = get_monitor("default").clock()

    def is_seen() -> bool:
        monitor = get_monitor("default")
        if all(
            replica.state is ReplicaState.STREAMING
            and replica.watermark >= position
            and replica.age <= config.MAX_LAG / 2
            # What was known before may be of a server that a test has killed meanwhile.
            and monitor.known.readings[replica.alias].read_at >= began
            for replica in monitor.health.replicas()
        ):
            return True
        monitor.known.refresh(0.0)
        return False

    wait_until(is_seen, "this process to know what the replicas have replayed")


def learn_nothing() -> None:
    """Have this process know of no view that saves what it reads, as one that has just begun."""
    learning._known = learning._Known()


def wait_until_known(cluster: Cluster) -> None:
    """Return once all replicas have all that was written, and this process knows it.

    That they have it is not enough for a read to go there: where the monitor's thread has not run
    meanwhile, and does not within the wait budget, the primary serves, and rightly so.
    """
    wait_until_seen(cluster.present_primary.flush())


def stand_still(cluster: Cluster) -> None:
    """Have all replicas show what there is now, and nothing newer."""
    wait_until_known(cluster)
    for replica in cluster.replicas:
        replica.pause()


def believe_every_connection(patch: pytest.MonkeyPatch) -> None:
    """Take out the rule that rows of another server than was chosen are not shown."""
    for module in (on_replica, mending):
        patch.setattr(module, "is_elsewhere", lambda connection, life: False)
    # The cursor still has to be led to the statement's own rows.
    patch.setattr(
        on_replica, "was_elsewhere", lambda connection, cursor, life: not read_answerer(cursor)
    )


@contextmanager
def unwatched() -> Iterator[None]:
    """Have no replica looked at inside the block: this process goes by what it knows of them.

    It does so for 5 seconds, at an interval of 1: what is known then is too old.
    """
    monitor = find_monitor("default")
    assert monitor is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaPoller, "look", lambda self, connection: None)
        for looks in monitor.known.looks.values():
            # A look that has begun before may yet be answered.
            wait_until(lambda looks=looks: looks.busy_since is None, f"{looks.alias} to rest")
        yield


_met_servers: WeakSet[redis_client.RedisServer] = WeakSet()
"""What is known of cache servers, by whichever thread: one that runs asynchronous code outlives its test."""


@pytest.fixture(scope="session", autouse=True)
def _servers_noted() -> Iterator[None]:
    """Note each cache server as it is met."""
    original = redis_client.RedisServer.__init__

    def note(server: redis_client.RedisServer, *args: Any) -> None:
        original(server, *args)
        _met_servers.add(server)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_client.RedisServer, "__init__", note)
        yield


def renew_store() -> None:
    """Have this thread's token store made anew: it keeps the time-out that it was made with."""
    caches["default"].__dict__.pop("_replica_router_store", None)
    _, store = stores._here.known.pop("default", (None, None))
    if isinstance(store, RedisStore):
        store._client.connection_pool.disconnect()


def forget_the_server() -> None:
    """Have this process know no more of the cache server than one that has just begun."""
    redis_client._servers.clear()
    renew_store()


def everybodys_key() -> bytes:
    """Return the key that the record for everybody has in the cache server."""
    return f":1:{store_key('default', EVERYBODY, get_store('default').life())}".encode()


def empty_store() -> None:
    """Let the token store know nobody, and begin to remember now."""
    caches["default"].clear()
    # Nor remember that it was down a moment ago.
    choosing.unstored.clear()
    # Nor that readers who have only seen something were many.
    monotonic_budget._granted = 0
    learn_nothing()
    stale_saves._told.clear()
    store = get_store("default")
    store._pause.until = -math.inf
    for server in _met_servers:
        # Another test may have started it anew, or have had it drop keys.
        server.life, server.pause.until = None, -math.inf
        if server._drops_keys:
            server._asked_at = -math.inf
    store_for_everybody("default", get_config(), None)


def clean_up(cluster: Cluster) -> None:
    """Empty tables and cache, and have all replicas replay."""
    for replica in cluster.replicas:
        replica.resume()
    tables = connection.introspection.django_table_names()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT quote_ident(relname) FROM pg_class WHERE relname = ANY(%s) "
            "AND relname NOT IN ('django_content_type', 'auth_permission') "
            "AND relkind = 'r' AND pg_relation_size(oid) > 0",
            [tables],
        )
        filled = [name for (name,) in cursor.fetchall()]
        if filled:
            # Not by TRUNCATE: each file that is made anew for it is made by three servers. In one
            # transaction, at whose end foreign keys are checked.
            cursor.execute("; ".join(f"DELETE FROM {name}" for name in filled))
            # Nothing is left that a read would have to clear away, and so write to the WAL.
            cursor.execute(f"VACUUM (INDEX_CLEANUP ON, TRUNCATE ON) {', '.join(filled)}")
    empty_store()


@pytest.fixture(autouse=True)
def _counts_begin_anew() -> None:
    """What an earlier test has counted is nothing to the next one."""
    pop_stats()
    stats._popped.clear()


@pytest.fixture
def _unhurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no server taken for one that hangs because the machine is busy for a moment.

    But in tests that are about servers that hang: those have the patience of a site.
    """
    if request.node.get_closest_marker("hangs") is None:
        for name in ("looks.PATIENCE", "health.CONNECT_TIMEOUT"):
            monkeypatch.setattr(f"django_replica_router.replicas.{name}", 20.0)


@pytest.fixture
def cluster(
    real_cluster: Cluster, _django_on_cluster: None, _unhurried: None, settings: Any
) -> Iterator[Cluster]:
    """The cluster, with empty tables, nothing lagging, and known to this process as healthy."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **PATIENT}
    renew_store()
    for alias in connections:
        if connections[alias].connection is not None and not connections[alias].is_usable():
            connections[alias].close()
    with monitors_keep_connections():
        # How long replicas took to catch up in another test, the monitor is not to expect in this one.
        stop_monitors()
        clean_up(real_cluster)
        if real_cluster.pooler:
            for alias in connections:
                wait_until_reachable(alias)
        wait_until_known(real_cluster)
    yield real_cluster
    for alias in connections:
        connections[alias].close_if_unusable_or_obsolete()


@pytest.fixture
def healed(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, made whole again afterwards."""
    yield cluster
    cluster.heal()
    connections.close_all()
    stop_monitors()


@pytest.fixture
def served(cluster: Cluster) -> Iterator[Served]:
    """Records which alias has run which statement."""
    with Served() as served:
        yield served


@pytest.fixture
def lagging(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with replay paused on every replica: they show what was, and nothing new."""
    for replica in cluster.replicas:
        replica.pause()
    yield cluster
    for replica in cluster.replicas:
        replica.resume()


@pytest.fixture
def test_site(settings: Any, cluster: Cluster) -> None:
    """The site whose view does what the test says."""
    settings.ROOT_URLCONF = "tests.site"


@pytest.fixture
def ann(cluster: Cluster) -> User:
    """A user."""
    return User.objects.create_user("ann", password=PASSWORD)


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="first")
    wait_until_known(cluster)
    return note


@pytest.fixture
def forget_tokens() -> Callable[[], None]:
    """Empties the token store of all readers."""
    return empty_store
