"""The client of the cache may be redis-py's or valkey-py's, and set in any way, on a real server."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
import valkey
from django.core.cache.backends.redis import RedisCache
from django_redis.cache import RedisCache as DjangoRedisCache
from django_redis.pool import ConnectionFactory
from redis.connection import DefaultParser

from django_replica_router.errors import StoreError
from django_replica_router.stores import clients as cache_clients
from django_replica_router.stores import redis as redis_client
from django_replica_router.stores.redis import find_server
from django_replica_router.stores.store import open_store
from django_replica_router.values.tokens import Position, Record
from testproject.cluster import Cluster, ValkeyServer
from testproject.cluster.binaries import find_valkey
from testproject.cluster.workspace import Workspace
from tests.conftest import wait_until

Patch = pytest.MonkeyPatch

VALKEY = {"CONNECTION_POOL_CLASS": "valkey.ConnectionPool", "REDIS_CLIENT_CLASS": "valkey.Valkey"}
OPTIONS: dict[str, dict[str, Any]] = {
    "valkey-py": VALKEY,
    "valkey-py, blocking": {**VALKEY, "CONNECTION_POOL_CLASS": "valkey.BlockingConnectionPool"},
    "redis-py, blocking": {"CONNECTION_POOL_CLASS": "redis.BlockingConnectionPool"},
    "valkey-py's pool only": {"CONNECTION_POOL_CLASS": "valkey.ConnectionPool"},
    "decoded": {"CONNECTION_POOL_KWARGS": {"decode_responses": True}},
}
OWNER = "-09AZ_az" * 2
RECORD = Record(Position(3, 1 << 40), 1 << 41, 0, OWNER)


def open_with(
    cluster: Cluster, patch: Patch, options: dict[str, Any], timeout: float = 10.0
) -> Any:
    """Return a store behind django-redis with these options."""
    assert cluster.cache is not None
    patch.setattr(ConnectionFactory, "_pools", {})
    url = cluster.cache.url
    if "valkey" in str(options):
        url = url.replace("redis://", "valkey://")
    return open_store(DjangoRedisCache(url, {"OPTIONS": options}), timeout)


def keep_tokens(cluster: Cluster, patch: Patch, options: dict[str, Any]) -> None:
    """Merge and load by scripts that the server does not know yet."""
    assert cluster.cache is not None
    store = open_with(cluster, patch, options)
    cluster.cache.command("SCRIPT", "FLUSH")
    store.merge({"p-s": RECORD, f"p-{OWNER}": RECORD}, {"p-s": 60.0, f"p-{OWNER}": 60.0})
    assert store.load(["p-s", "nothing"]) == [RECORD, None]
    assert store._load_with_owners("p-", ["s"]) == {"s": RECORD, OWNER: RECORD}
    assert store.life()
    assert not store.may_forget()


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_are_kept_by_each_client(cluster: Cluster, monkeypatch: Patch, name: str) -> None:
    """Whatever library, pool and options it has."""
    keep_tokens(cluster, monkeypatch, OPTIONS[name])


def ask_a_stopped_cache(cluster: Cluster, patch: Patch) -> float:
    """Return for how many seconds a cache that hangs holds who reads, where the site waits 3."""
    assert cluster.cache is not None
    options = {**VALKEY, "SOCKET_TIMEOUT": 3.0}
    store = open_with(cluster, patch, options, timeout=0.25)
    store.load(["a"])
    cluster.cache.suspend()
    began = time.monotonic()
    try:
        with pytest.raises(Exception, match="could not be read"):
            store.load(["a"])
        return time.monotonic() - began
    finally:
        cluster.cache.resume_process()
        store._pause.until = 0.0


def test_a_stopped_cache_holds_nobody_for_longer_than_it_may(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """STORE_TIMEOUT holds for valkey-py as well."""
    assert ask_a_stopped_cache(cluster, monkeypatch) < 2.0


class Incomparable:
    """A value of an option that cannot be compared, nor hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __call__(self) -> None:
        """Be a serializer."""


def count_connections(cluster: Cluster, options: Any, requests: int) -> int:
    """Return how many connections these requests of an event loop leave open."""
    assert cluster.cache is not None
    kept: list[Any] = []
    before = cluster.cache.command("CLIENT", "LIST").count(b"\n")
    for _ in range(requests):
        cache = RedisCache(cluster.cache.url, {"OPTIONS": options()})
        kept.append(open_store(cache, 10.0))  # as the garbage collector does
        kept[-1].load(["a"])
        kept[-1].merge({"a": RECORD}, {"a": 60.0})
    count = int(cluster.cache.command("CLIENT", "LIST").count(b"\n") - before)
    for store in kept:  # or another test's would be closed while this is done for that
        store._server.close()
        store._client.connection_pool.disconnect()
    return count


@pytest.mark.parametrize("value", [Incomparable(), [1], {"a": []}], ids=["object", "list", "dict"])
def test_requests_share_connections_whatever_the_options(cluster: Cluster, value: Any) -> None:
    """What Django's settings hold is the same for each request."""
    assert count_connections(cluster, lambda: {"serializer": Incomparable, "x": value}, 0) == 0
    caches = [RedisCache(cluster.cache.url, {"OPTIONS": {"x": value}}) for _ in range(2)]  # type: ignore[union-attr]
    assert find_server(caches[0], 1.0) is find_server(caches[1], 1.0)
    assert count_connections(cluster, dict, 20) <= 2


def test_options_that_equal_no_others_leave_a_bounded_number_open(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Those of the oldest are closed."""
    monkeypatch.setattr(redis_client, "_SERVERS_KEPT", 4)
    monkeypatch.setattr(redis_client, "_servers", [])
    assert count_connections(cluster, lambda: {"serializer": Incomparable()}, 20) <= 8


@pytest.mark.parametrize("kind", [redis.RedisCluster, valkey.ValkeyCluster])
def test_a_clients_cluster_is_told(kind: type[Any]) -> None:
    """It has no pool of connections to one server, which tokens need."""
    with pytest.raises(cache_clients.UnusableClientError, match="has no connection pool"):
        cache_clients.find_pool(object.__new__(kind))


@pytest.mark.parametrize("library", [redis, valkey])
def test_a_sentinels_pool_is_bounded(cluster: Cluster, library: Any) -> None:
    """As are the Sentinels' own; who is asked is theirs to say, in either library."""
    client = library.Sentinel([("127.0.0.1", 1)], socket_timeout=3.0).master_for("mine")
    pool = redis_client.RedisServer(client, 1.0).client.connection_pool
    assert pool is not client.connection_pool
    assert (pool.service_name, pool.is_master) == ("mine", True)
    (sentinel,) = pool.sentinel_manager.sentinels
    for bounded in (pool, sentinel.connection_pool):
        assert bounded.connection_kwargs["socket_timeout"] == 1.0
    (given,) = client.connection_pool.sentinel_manager.sentinels
    assert given.connection_pool.connection_kwargs["socket_timeout"] == 3.0


def test_a_pool_that_only_looks_like_a_sentinels_is_left_alone(cluster: Cluster) -> None:
    """Its connections know it, and nobody knows what they ask it."""
    pool = redis.ConnectionPool(connection_pool="mine")
    with redis.Redis(connection_pool=pool) as client:
        assert redis_client.RedisServer(client, 1.0).client is client


class ClusterFactory(ConnectionFactory):  # type: ignore[type-arg]
    """What a site writes to have django-redis speak to a cluster."""

    def connect(self, url: str) -> Any:
        """Return the client of a cluster."""
        return redis.RedisCluster.from_url(url)


def open_on_a_cluster(patch: Patch) -> None:
    """Open a store behind a client of a real cluster, of one node."""
    workspace = Workspace()
    node = ValkeyServer(workspace, find_valkey(workspace), "node")
    node.settings["cluster-enabled"] = "yes"
    try:
        node.start()
        node.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: b"state:ok" in node.command("CLUSTER", "INFO"), "the cluster to be up")
        options = {"CONNECTION_FACTORY": f"{__name__}.{ClusterFactory.__name__}"}
        cache = DjangoRedisCache(node.url, {"OPTIONS": options})
        try:
            cache.set("a", 1)
            assert cache.get("a") == 1
            open_store(cache, 10.0)
        finally:
            cache.client.get_client().close()
    finally:
        node.kill()
        workspace.remove()


def test_a_real_clusters_client_is_refused(cluster: Cluster, monkeypatch: Patch) -> None:
    """Which works for the site, and would scatter tokens; the check tells of it (E010)."""
    with pytest.raises(StoreError, match="RedisCluster has no connection pool"):
        open_on_a_cluster(monkeypatch)


def write_over_a_broken_connection(cluster: Cluster, patch: Patch) -> None:
    """Merge once more after the server has closed what was at rest, by valkey-py's client."""
    assert cluster.cache is not None
    store = open_with(cluster, patch, VALKEY)
    store.merge({"a": RECORD}, {"a": 60.0})
    cluster.cache.command("CLIENT", "KILL", "TYPE", "normal")
    store.merge({"a": RECORD}, {"a": 60.0})


def test_a_connection_that_broke_at_rest_costs_no_token(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Though django-redis gives valkey-py the parser of redis-py, whose errors it does not know."""
    write_over_a_broken_connection(cluster, monkeypatch)


# Without the rules


def test_without_telling_errors_by_name_no_tokens_are_kept(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """A test that cannot fail would prove nothing."""
    monkeypatch.setattr(cache_clients, "is_a", lambda error, name: False)
    monkeypatch.setattr(redis_client, "_servers", [])
    with pytest.raises(Exception, match="could not be written"):
        keep_tokens(cluster, monkeypatch, VALKEY)


def test_without_a_bound_a_stopped_cache_holds_the_reader(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor this."""
    monkeypatch.setattr(redis_client, "can_be_bounded", lambda pool: False)
    monkeypatch.setattr(redis_client, "_servers", [])
    with pytest.raises(AssertionError):
        test_a_stopped_cache_holds_nobody_for_longer_than_it_may(cluster, monkeypatch)


def test_without_comparing_each_request_opens_connections(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor this."""
    monkeypatch.setattr(redis_client, "_are_equal", lambda one, other: False)
    monkeypatch.setattr(redis_client, "_servers", [])
    assert count_connections(cluster, dict, 20) > 2


def test_without_a_limit_what_equals_no_other_stays_open(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor this."""
    monkeypatch.setattr(redis_client, "_servers", [])
    assert count_connections(cluster, lambda: {"serializer": Incomparable()}, 20) > 8


def test_without_the_refusal_nobody_is_told_of_the_cluster(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor this."""
    monkeypatch.setattr(redis_client, "find_pool", lambda client: client)
    with pytest.raises(AssertionError, match="has no connection pool"):
        test_a_real_clusters_client_is_refused(cluster, monkeypatch)


def test_with_the_others_parser_a_broken_connection_costs_a_token(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor this."""
    library_of = cache_clients._library_of
    monkeypatch.setattr(
        cache_clients,
        "_library_of",
        lambda kind: "valkey" if kind is DefaultParser else library_of(kind),
    )
    monkeypatch.setattr(redis_client, "_servers", [])
    with pytest.raises(StoreError, match="could not be written"):
        write_over_a_broken_connection(cluster, monkeypatch)
