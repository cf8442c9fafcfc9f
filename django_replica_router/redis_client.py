"""The Redis or Valkey server behind a Django cache: asked within a time-out, and asked quickly."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from django.core.cache.backends.base import BaseCache

# Seconds for which is believed what the server has said of how it is set.
_SETTING_SECONDS = 10.0

_KEEPS_ALL = "noeviction"

_RUN_ID = re.compile(rb"run_id:([0-9a-f]+)")


class RestartedError(Exception):
    """The server has been started anew, or is another one: it may hold what another held before."""


class Pause:
    """Until when a server that has failed is not asked again, on the monotonic clock."""

    __slots__ = ("until",)

    def __init__(self) -> None:
        self.until = -math.inf


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
        self._resting: deque[_Line] = deque()
        self.pause = Pause()
        self.life: str | None = None
        """The ``run_id`` of the server that this process has met last, another one after each start;
        "" where it does not tell, None where nobody has asked."""
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

    def ask_life(self) -> str:
        """Ask for the server's ``run_id``, and return it; "" where it does not tell."""
        from redis.exceptions import ResponseError

        try:
            self.life = str(self.client.info("server").get("run_id", ""))
        except ResponseError:
            self.life = ""
        return self.life

    def check_life(self, found: str, expected: str | None) -> None:
        """Compare in which life the server has answered with that in which it was to answer.

        Args:
            found: its ``run_id``, or "".
            expected: the same; None for any.

        Raises:
            RestartedError: they differ.
        """
        if expected is not None and found != expected:
            self.life = found
            message = "it was started anew, or is another one"
            raise RestartedError(message)

    def mget(self, keys: Sequence[str], life: str | None = None) -> list[Any]:
        """Return the values of the keys. It is what every request of somebody's asks.

        Of the time that the client's own method takes, half is spent on this side of the wire: it
        looks whether a connection at rest is broken, sends events, and counts. Here the question
        itself shows whether it is broken, and is then asked once more over a new one. Not where there
        was no answer in time: the server hangs, or the other connections lead nowhere as well.

        Args:
            keys: the keys.
            life: in which the server must answer; None for any.

        Raises:
            RestartedError: it was started anew, or is another one.
        """
        if self._pool is None:
            return self._mget_by_client(keys, life)
        from redis.exceptions import TimeoutError

        try:
            line = self._resting.pop()
        except IndexError:
            line = self._open_line(self._pool)
        try:
            values: list[Any] = line.ask("MGET", *keys)
            # A connection leads to one life of a server, or breaks.
            found = line.find_life()
        except BaseException as error:
            # Also where the thread is interrupted: the answer to this must not be the next one's.
            line.close()
            if isinstance(error, TimeoutError):
                self._resting.clear()
            raise
        self._resting.append(line)
        self.check_life(found, life)
        return values

    def _open_line(self, pool: Any) -> _Line:
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # It tries again itself, and not where a server hangs: that would be one time-out more.
        settings = {**pool.connection_kwargs, "retry": Retry(NoBackoff(), 0)}
        return _Line(pool.connection_class(**settings))

    def _mget_by_client(self, keys: Sequence[str], life: str | None) -> list[Any]:
        with self.client.pipeline(transaction=False) as pipeline:
            values, server = pipeline.mget(keys).info("server").execute(raise_on_error=False)
        if isinstance(values, Exception):
            raise values
        self.check_life(str(server.get("run_id", "")) if isinstance(server, dict) else "", life)
        return list(values)

    def forget_connections(self) -> None:
        """Leave the connections to another process, whose they are."""
        self._resting = deque()


class _Line:
    """A connection of the package's own, and which life of the server it leads to."""

    __slots__ = ("_life", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._life: str | None = None

    def ask(self, *command: str) -> Any:
        """Return the answer to a command, over a new connection where this one has broken at rest."""
        from redis.exceptions import ConnectionError

        try:
            return self._ask(*command)
        except ConnectionError:
            self.close()
        return self._ask(*command)

    def _ask(self, *command: str) -> Any:
        self.connection.send_command(*command, check_health=False)
        return self.connection.read_response()

    def find_life(self) -> str:
        """Return the server's ``run_id``, or "" where it does not tell."""
        if self._life is None:
            from redis.exceptions import ResponseError

            try:
                match = _RUN_ID.search(self._ask("INFO", "server"))
            except ResponseError:
                match = None
            self._life = match[1].decode() if match else ""
        return self._life

    def close(self) -> None:
        """Close the connection. The next one may lead to another life."""
        self._life = None
        self.connection.disconnect()


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


# By what is connected to, and by time-out: in an event loop Django makes a backend object for each
# request, and its own Redis backend a pool for each of these.
_servers: dict[tuple[Hashable, float], RedisServer] = {}
# By the pool of the cache backend, which its objects in several threads may share, and by time-out.
_servers_of_pools: WeakKeyDictionary[Any, dict[float, RedisServer]] = WeakKeyDictionary()
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
    pool = client.connection_pool
    if not _is_plain(pool):
        return RedisServer(client, timeout)
    address = _address(cache)
    with _lock:
        if address is None:
            servers = _servers_of_pools.setdefault(pool, {})
            return servers.get(timeout) or servers.setdefault(timeout, RedisServer(client, timeout))
        place = (address, timeout)
        return _servers.get(place) or _servers.setdefault(place, RedisServer(client, timeout))


def _address(cache: BaseCache) -> Hashable | None:
    """Return all that Django's own backend connects by; None of others, and where that cannot be compared."""
    made: Any = getattr(cache, "_cache", None)
    urls, options = getattr(made, "_servers", None), getattr(made, "_pool_options", None)
    if not urls or options is None or not all(isinstance(o, _PLAIN) for o in options.values()):
        return None
    return urls[0], made._pool_class, tuple(sorted(options.items(), key=itemgetter(0)))


_PLAIN = (str, bytes, int, float, type, type(None))


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
    of_pools = [server for servers in _servers_of_pools.values() for server in servers.values()]
    for server in (*_servers.values(), *of_pools):
        server.forget_connections()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
