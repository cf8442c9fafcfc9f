"""What a cache server holds that was started anew, or has taken another's place, may be old."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client

from django_replica_router import get_stats, pop_stats
from django_replica_router.stores.redis import RedisServer, RestartedError
from django_replica_router.stores.store import get_store
from testproject.cluster import Cluster
from testproject.cluster.valkey import ValkeyServer
from testproject.notes.models import Note
from tests.conftest import empty_store, forget_the_server, stand_still, wait_until, wait_until_known
from tests.site import sign_in, visit
from tests.test_eviction import read, write

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def saved(cluster: Cluster) -> Iterator[ValkeyServer]:
    """The cache server, which comes back from a crash with what it has saved."""
    cache = cluster.cache
    assert cache is not None
    empty_store()
    yield cache
    for file in cache.data_directory.glob("*.rdb"):
        file.unlink()
    cache.flush()


def crash(cache: ValkeyServer) -> None:
    """Have the server crash, and come back."""
    cache.kill()
    cache.start()


def write_what_is_not_saved(browser: Client, cluster: Cluster, cache: ValkeyServer) -> None:
    """Have all replicas stand still, and the token of a write lost in a crash of the cache."""
    wait_until_known(cluster)
    visit(browser, read)
    stand_still(cluster)
    cache.command("SAVE")
    visit(browser, write, "post")
    crash(cache)


@pytest.mark.parametrize("is_new", [False, True], ids=["this process", "a new one"])
def test_what_a_restart_of_the_cache_has_lost_is_seen(
    ann: User, cluster: Cluster, saved: ValkeyServer, is_new: bool
) -> None:
    """Older tokens are there, and the record for everybody: by them nothing is missing."""
    browser = sign_in(ann)
    write_what_is_not_saved(browser, cluster, saved)
    if is_new:
        forget_the_server()
    pop_stats()

    def has_begun_anew() -> bool:
        assert visit(browser, read) == ["mine"]
        return "reads_empty_store" in get_stats()

    wait_until(has_begun_anew, "the store to begin to remember anew")
    assert visit(browser, read) == ["mine"]


def test_after_a_restart_replicas_serve_again(
    ann: User, cluster: Cluster, saved: ValkeyServer
) -> None:
    """Once they have what the primary had when it was noticed."""
    browser = sign_in(ann)
    write_what_is_not_saved(browser, cluster, saved)
    for replica in cluster.replicas:
        replica.resume()
    wait_until(
        lambda: visit(browser, lambda request: Note.objects.get()._state.db).startswith("replica"),
        "a replica to serve",
    )


def test_a_connection_that_broke_is_no_restart(cluster: Cluster, saved: ValkeyServer) -> None:
    """The same server answers over the next one."""
    store = get_store("default")
    life = store.life()
    assert life
    store.load(["a"])
    saved.command("CLIENT", "KILL", "TYPE", "normal")
    store.load(["a"])
    assert store.life() == life


def test_a_server_that_does_not_tell_is_believed(
    ann: User, cluster: Cluster, saved: ValkeyServer
) -> None:
    """Some hosts forbid to ask: then it is as if it always were the same one."""
    saved.command("ACL", "SETUSER", "default", "-info")
    try:
        forget_the_server()
        empty_store()
        assert get_store("default").life() == ""
        browser = sign_in(ann)
        wait_until_known(cluster)
        pop_stats()
        visit(browser, read)
        assert "reads_store_error" not in get_stats()
        assert "reads_empty_store" not in get_stats()
    finally:
        saved.command("ACL", "SETUSER", "default", "+info")
        forget_the_server()


@pytest.mark.parametrize("pool_class", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_another_server_is_noticed_by_every_way_to_ask(
    saved: ValkeyServer, pool_class: type[Any]
) -> None:
    """Over a connection of the package's own, and through a client that finds its server itself."""
    pool = pool_class.from_url(saved.url)
    with redis.Redis(connection_pool=pool) as client:
        server = RedisServer(client, 1.0)
        life = server.ask_life()
        assert server.mget(["a"], life) == [None]
        crash(saved)
        with pytest.raises(RestartedError):
            server.mget(["a"], life)
        assert server.life not in (None, life)
        assert server.mget(["a"], server.life) == [None]
        for line in server._resting:
            line.close()
    pool.disconnect()


def test_another_server_is_noticed_where_a_record_leads_on_to_another(
    ann: User, cluster: Cluster, saved: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a session's record leads to is looked up by the server itself."""
    browser = sign_in(ann)
    write_what_is_not_saved(browser, cluster, saved)
    monkeypatch.setattr("django_replica_router.stores.owners._last", {})
    pop_stats()
    assert visit(browser, read) == ["mine"]
    assert get_stats()["reads_store_error"] == 1


def test_the_servers_client_tells_the_same(saved: ValkeyServer) -> None:
    """The connection of the package's own reads the answer itself."""
    client = caches["default"].client.get_client(write=True)  # type: ignore[attr-defined]
    store = get_store("default")
    store.load(["a"])
    assert store.life() == client.info("server")["run_id"]
