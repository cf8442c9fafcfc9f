"""The Redis or Valkey server behind a Django cache: asked within a time-out, and asked quickly."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from django.core.cache.backends.base import BaseCache

# Seconds for which is believed what the server has said of how it is set.
_SETTING_SECONDS = 10.0

_KEEPS_ALL = "noeviction"


class RedisServer:
    """A server, as it is reached through the client of a cache backend.

    Args:
        client: redis-py's client that the backend holds.
        timeout: seconds after which the server counts as down.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        given = client.connection_pool
        self._pool = _bounded_pool(given, timeout) if _is_plain(given) else None
        self.client = client if self._pool is None else type(client)(connection_pool=self._pool)
        self._resting: deque[Any] = deque()
        self._asked_at = -math.inf
        self._drops_keys = True

    def eviction_policy(self) -> str | None:
        """Return the server's ``maxmemory-policy`` where it drops keys by it, else None.

        Also one of those named "volatile": every token has a time to live.

        Raises:
            Exception: the server does not tell, or the client cannot ask.
        """
        # Not CONFIG, which many hosts forbid.
        memory = self.client.info("memory")
        policy = str(memory["maxmemory_policy"])
        return policy if int(memory["maxmemory"]) and policy != _KEEPS_ALL else None

    def drops_keys(self) -> bool:
        """Tell whether the server may drop a key before its time; True also where nobody knows.

        It is asked every 10 seconds at most.
        """
        now = time.monotonic()
        if now - self._asked_at > _SETTING_SECONDS:
            try:
                self._drops_keys = self.eviction_policy() is not None
            except Exception:  # unknown is never healthy
                self._drops_keys = True
            self._asked_at = now
        return self._drops_keys

    def mget(self, keys: Sequence[str]) -> list[Any]:
        """Return the values of the keys. It is what every request of somebody's asks.

        Of the time that the client's own method takes, half is spent on this side of the wire: it
        looks whether a connection at rest is broken, sends events, and counts. Here the question
        itself shows whether it is broken, and is then asked once more over a new one.
        """
        if self._pool is None:
            values: list[Any] = self.client.mget(keys)
            return values
        try:
            line = self._resting.pop()
        except IndexError:
            line = self._pool.connection_class(**self._pool.connection_kwargs)
        try:
            values = _ask(line, "MGET", *keys)
        except BaseException:
            # Also where the thread is interrupted: the answer to this must not be the next one's.
            line.disconnect()
            raise
        self._resting.append(line)
        return values

    def forget_connections(self) -> None:
        """Leave the connections to another process, whose they are."""
        self._resting = deque()


def _ask(line: Any, *command: str) -> Any:
    from redis.exceptions import ConnectionError, TimeoutError

    try:
        line.send_command(*command, check_health=False)
        return line.read_response()
    except (ConnectionError, TimeoutError):
        line.disconnect()
    line.send_command(*command, check_health=False)
    return line.read_response()


def _is_plain(pool: Any) -> bool:
    """Tell whether a pool connects to one known server, unlike a Sentinel's, which finds its own."""
    from redis import ConnectionPool

    return type(pool) is ConnectionPool


def _bounded_pool(pool: Any, timeout: float) -> Any:
    """Return a pool for the same server whose connections give up after a time-out.

    Without one, redis-py waits for ever for a server that hangs; and since its version 6 it tries
    again, with pauses, where it is refused.
    """
    from redis import ConnectionPool
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    given = pool.connection_kwargs
    settings = {
        **given,
        "socket_timeout": min(timeout, given.get("socket_timeout") or timeout),
        "socket_connect_timeout": min(timeout, given.get("socket_connect_timeout") or timeout),
        # Once more and at once: the connection may be one of before the server's restart.
        "retry": Retry(NoBackoff(), 1),
    }
    return ConnectionPool(connection_class=pool.connection_class, **settings)


# By the pool of the cache backend, which its objects in several threads may share, and by time-out.
_servers: WeakKeyDictionary[Any, dict[float, RedisServer]] = WeakKeyDictionary()
_lock = threading.Lock()


def find_server(cache: BaseCache, timeout: float) -> RedisServer | None:
    """Return the server behind a Django cache, or None where the backend is not Redis' own.

    Args:
        cache: the Django cache.
        timeout: seconds after which the server counts as down.
    """
    client = _find_client(cache)
    if client is None:
        return None
    if not _is_plain(client.connection_pool):
        return RedisServer(client, timeout)
    with _lock:
        servers = _servers.setdefault(client.connection_pool, {})
        if timeout not in servers:
            servers[timeout] = RedisServer(client, timeout)
        return servers[timeout]


def _find_client(cache: BaseCache) -> Any | None:
    """Return the redis-py client for writing: a Redis replica may lag itself."""
    for backend in type(cache).__mro__:
        path = f"{backend.__module__}.{backend.__qualname__}"
        if path == "django.core.cache.backends.redis.RedisCache":
            return cache._cache.get_client(write=True)  # type: ignore[attr-defined]
        if path == "django_redis.cache.RedisCache":
            client = cache.client  # type: ignore[attr-defined]
            # Keys of a sharded cache live on different servers: no one client can merge them.
            is_sharded = hasattr(client, "get_server_name")
            return None if is_sharded else client.get_client(write=True)
    return None


def _after_fork() -> None:
    # Whoever holds the lock does not exist in the child, and the parent goes on with its sockets.
    global _lock
    _lock = threading.Lock()
    for servers in _servers.values():
        for server in servers.values():
            server.forget_connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
