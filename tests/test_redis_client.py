"""Quick questions to a real Valkey server: the answer is always that to one's own question."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache
from django_redis.cache import RedisCache as DjangoRedisCache
from redis.backoff import NoBackoff
from redis.retry import Retry

from django_replica_router.errors import StoreError
from django_replica_router.stores import redis as redis_client
from django_replica_router.stores import store as stores
from django_replica_router.stores.redis import RedisServer, find_server
from django_replica_router.stores.store import open_store
from testproject.cluster import Cluster
from tests.conftest import PATIENT

Patch = pytest.MonkeyPatch


@pytest.fixture
def server(cluster: Cluster) -> Iterator[RedisServer]:
    """A server that holds under each key its name."""
    assert cluster.cache is not None
    with redis.Redis.from_url(cluster.cache.url) as client:
        client.mset({name: name for name in "abcd"})
        server = RedisServer(client, PATIENT["STORE_TIMEOUT"])
        with server.client:
            yield server
            for line in server._resting:
                line.close()


def test_a_connection_that_broke_at_rest_is_replaced(server: RedisServer, cluster: Cluster) -> None:
    """The server was started anew, or has closed what was idle: the caller does not notice."""
    assert server.mget(["a", "nothing"]) == [b"a", None]
    assert cluster.cache is not None
    cluster.cache.command("CLIENT", "KILL", "TYPE", "normal")
    assert server.mget(["b"]) == [b"b"]


ASK: dict[str, Callable[[RedisServer], Any]] = {
    "for values": lambda server: server.mget(["a"]),
    "by the client": lambda server: server.client.get("a"),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
@pytest.mark.parametrize("is_connected", [True, False])
def test_a_server_that_hangs_is_asked_once(
    cluster: Cluster, monkeypatch: Patch, is_connected: bool, ask: Callable[[RedisServer], Any]
) -> None:
    """One time-out, whatever of it hangs; and no connection from before it is believed in."""
    assert cluster.cache is not None
    waits: list[str] = []
    with redis.Redis.from_url(cluster.cache.url) as client:
        server = RedisServer(client, 0.25)
        if is_connected:
            server.client.ping()
            resting = [server._open_line() for _ in range(2)]
            for line in resting:
                line.ask("PING")
            server._resting.extend(resting)
        kind = server.client.connection_pool.connection_class
        read_response = kind.read_response

        def wait(connection: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return read_response(connection, *args, **kwargs)
            except redis.TimeoutError:
                waits.append("timed out")
                raise

        monkeypatch.setattr(kind, "read_response", wait)
        cluster.cache.suspend()
        try:
            with pytest.raises(redis.TimeoutError):
                ask(server)
        finally:
            cluster.cache.resume_process()
        assert waits == ["timed out"]
        assert not server._resting or ask is not ASK["for values"]
        server.close()
        server.client.connection_pool.disconnect()


def test_one_connection_serves_a_thread(server: RedisServer) -> None:
    """It rests in between, and is neither opened anew nor looked through."""
    server.mget(["a"])
    (line,) = server._resting
    assert server.mget(["b"]) == [b"b"]
    assert list(server._resting) == [line]


def test_an_interrupted_question_leaves_no_answer_behind(server: RedisServer) -> None:
    """It would be taken for the answer to the next one: somebody else's token."""
    server.mget(["a"])
    (line,) = server._resting
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line.connection, "read_response", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.mget(["b"])
    assert server.mget(["c"]) == [b"c"]


def interrupt() -> None:
    """Be the signal that arrives before the answer."""
    raise KeyboardInterrupt


def test_each_thread_has_its_own_answer(server: RedisServer) -> None:
    """Two never share a connection at one time."""
    wrong: list[Any] = []
    barrier = threading.Barrier(4)

    def ask(name: str) -> None:
        barrier.wait(10)
        for _ in range(200):
            (value,) = server.mget([name])
            if value != name.encode():
                wrong.append((name, value))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(server._resting) <= 4


def test_threads_reach_a_cache_by_one_server(cluster: Cluster) -> None:
    """Each has a backend object of its own, and so has each task of an event loop; but they have
    one pool, and so share the connections that rest."""
    servers = [find_server(caches["default"], 1.0)]
    thread = threading.Thread(target=lambda: servers.append(find_server(caches["default"], 1.0)))
    thread.start()
    thread.join()
    assert servers[0] is not None
    assert servers[0] is servers[1]
    assert find_server(caches["default"], 2.0) is not servers[0]


@pytest.mark.parametrize("backend", [RedisCache, DjangoRedisCache], ids=["Django", "django-redis"])
def test_requests_of_an_event_loop_reach_a_cache_by_one_server(
    cluster: Cluster, backend: Any
) -> None:
    """Each makes a backend object, and Django's own makes a pool with it: these are of no use."""
    assert cluster.cache is not None
    servers = [find_server(backend(cluster.cache.url, {}), 1.0) for _ in range(2)]
    assert servers[0] is not None
    assert servers[0] is servers[1]
    other = find_server(backend(cluster.cache.url.removesuffix("0") + "1", {}), 1.0)
    assert other is not servers[0]


def test_what_cannot_be_compared_is_told_apart(cluster: Cluster) -> None:
    """One that hands out a password may be another one each time; the same one is the same."""
    assert cluster.cache is not None
    retries = [Retry(NoBackoff(), 1), Retry(NoBackoff(), 1)]
    first, second = (
        RedisCache(cluster.cache.url, {"OPTIONS": {"x": object(), "retry": retry}})
        for retry in retries
    )
    assert find_server(first, 1.0) is find_server(first, 1.0)
    assert find_server(first, 1.0) is not find_server(second, 1.0)


def test_stores_of_one_server_pause_together(cluster: Cluster, monkeypatch: Patch) -> None:
    """One time-out, and not one for each request."""
    monkeypatch.setattr(stores, "_PAUSE", 60.0)  # however long a busy machine stands still
    assert cluster.cache is not None
    one, other = (open_store(RedisCache(cluster.cache.url, {}), 1.0) for _ in range(2))
    cluster.cache.kill()
    try:
        with pytest.raises(StoreError, match="could not be read"):
            one.load(["a"])
        with pytest.raises(StoreError, match="a moment ago"):
            other.load(["a"])
    finally:
        cluster.cache.start()
        one._pause.until = 0.0


def test_a_pool_that_finds_its_server_itself_is_left_alone(cluster: Cluster) -> None:
    """A Sentinel's, for one: who is asked is its own affair."""
    assert cluster.cache is not None

    class Finding(redis.ConnectionPool):
        def make_connection(self) -> Any:
            return super().make_connection()

    pool = Finding.from_url(cluster.cache.url)
    with redis.Redis(connection_pool=pool) as client:
        client.set("a", "a")
        server = RedisServer(client, PATIENT["STORE_TIMEOUT"])
        assert server.client is client
        assert server.mget(["a", "nothing"]) == [b"a", None]
        assert not server._resting
    pool.disconnect()


FORKED = """
import os, sys
from django.conf import settings
settings.configure(CACHES={"default": {
    "BACKEND": "django_redis.cache.RedisCache", "LOCATION": sys.argv[1],
}})
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCache
from django_redis.cache import RedisCache as DjangoRedisCache
from redis.backoff import NoBackoff
from redis.retry import Retry
from django_replica_router.stores import redis as redis_client
is_shared = bool(sys.argv[2:])
# Who waits for an answer that the other one has got is to give up soon.
server = redis_client.find_server(caches["default"], 1.0 if is_shared else 10.0)
if is_shared:
    redis_client.RedisServer.forget_connections = lambda self: None
assert server.mget(["a"]) == [b"a"]
mine, others = os.pipe(), os.pipe()
pid = os.fork()
name = "a" if pid else "b"
if not pid:
    mine, others = others, mine
os.write(mine[1], b"!")
os.read(others[0], 1)  # so that neither is done before the other begins
wrong = False
for _ in range(5000 if is_shared else 500):
    try:
        wrong = wrong or server.mget([name]) != [name.encode()]
    except Exception:
        wrong = True
    if wrong:
        break
if not pid:
    os._exit(bool(wrong))
_, status = os.waitpid(pid, 0)
print(bool(wrong or status))
"""


def goes_wrong(cluster: Cluster, *arguments: str) -> str:
    """Tell whether a process and its child get each other's answers, by their own words."""
    assert cluster.cache is not None
    done = subprocess.run(
        [sys.executable, "-c", FORKED, cluster.cache.url, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def test_a_forked_process_has_connections_of_its_own(server: RedisServer, cluster: Cluster) -> None:
    """The parent goes on with those that it had."""
    assert goes_wrong(cluster) == "False"


# Without the rules


def test_without_its_own_connections_a_forked_process_goes_wrong(
    server: RedisServer, cluster: Cluster
) -> None:
    """A test that cannot fail would prove nothing."""
    assert goes_wrong(cluster, "share") == "True"


def test_without_a_second_attempt_a_broken_connection_shows(
    server: RedisServer, cluster: Cluster, monkeypatch: Patch
) -> None:
    """Nor would this one."""

    monkeypatch.setattr(redis_client._Line, "ask", redis_client._Line._ask)
    with pytest.raises(redis.exceptions.ConnectionError):
        test_a_connection_that_broke_at_rest_is_replaced(server, cluster)


def test_without_a_farewell_an_answer_is_left_behind(
    server: RedisServer, monkeypatch: Patch
) -> None:
    """Nor this."""

    def mget(self: RedisServer, keys: list[str]) -> Any:
        if not self._resting:
            return original(self, keys)
        line = self._resting[0].connection
        line.send_command("MGET", *keys, check_health=False)
        return line.read_response()

    original = RedisServer.mget

    monkeypatch.setattr(RedisServer, "mget", mget)
    with pytest.raises(AssertionError):
        test_an_interrupted_question_leaves_no_answer_behind(server)
