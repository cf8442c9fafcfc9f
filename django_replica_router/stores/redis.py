"""The Redis or Valkey server behind a Django cache: asked within a time-out, and asked quickly."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from django.core.cache.backends.base import BaseCache

from django_replica_router.forking import after_fork, make_lock
from django_replica_router.stores.clients import (
    can_be_bounded,
    find_pool,
    is_a,
    make_bounded,
    make_connection,
    raise_error,
)

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
        client: redis-py's or valkey-py's client that the backend holds.
        timeout: seconds after which the server counts as down.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        given = find_pool(client)
        self.is_bounded = can_be_bounded(given)
        """No question to it takes longer than the time-out, whatever the site's own pool allows."""
        self.client = make_bounded(given, timeout) if self.is_bounded else client
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
        memory = raise_error(self.client.info("memory"))
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
        try:
            told = raise_error(self.client.info("server"))
        except Exception as error:
            if not is_a(error, "ResponseError"):
                raise
            told = {}
        self.life = str(told.get("run_id", ""))
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
            self.close()  # other connections may lead to where a Sentinel has led before
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
        if not self.is_bounded:
            return self._mget_by_client(keys, life)
        try:
            line = self._resting.pop()
        except IndexError:
            line = self._open_line()
        try:
            values: list[Any] = line.ask("MGET", *keys)
            # A connection leads to one life of a server, or breaks.
            found = line.life
            if found is None:
                found = line.find_life()
        except BaseException as error:
            # Also where the thread is interrupted: the answer to this must not be the next one's.
            line.close()
            if is_a(error, "TimeoutError"):
                self._resting.clear()
            raise
        self._resting.append(line)
        if found != life:
            self.check_life(found, life)
        return values

    def _open_line(self) -> _Line:
        # It tries again itself, and not where a server hangs: that would be one time-out more.
        return _Line(make_connection(self.client.connection_pool))

    def _mget_by_client(self, keys: Sequence[str], life: str | None) -> list[Any]:
        with self.client.pipeline(transaction=False) as pipeline:
            values, server = pipeline.mget(keys).info("server").execute(raise_on_error=False)
        raise_error(values)
        self.check_life(str(server.get("run_id", "")) if isinstance(server, dict) else "", life)
        return list(values)

    def forget_connections(self) -> None:
        """Leave the connections to another process, whose they are."""
        self._resting = deque()

    def close(self) -> None:
        """Close the connections that are at rest. Whoever still asks opens others."""
        while self._resting:
            self._resting.pop().close()
        if self.is_bounded:
            self.client.connection_pool.disconnect(inuse_connections=False)


class _Line:
    """A connection of the package's own, and which life of the server it leads to."""

    __slots__ = ("connection", "life")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.life: str | None = None
        """The server's ``run_id``, "" where it does not tell, None where nobody has asked it."""

    def ask(self, *command: str) -> Any:
        """Return the answer to a command, over a new connection where this one has broken at rest."""
        try:
            return self._ask(*command)
        except Exception as error:
            if not is_a(error, "ConnectionError") or is_a(error, "MasterNotFoundError"):
                raise
            self.close()
        return self._ask(*command)

    def _ask(self, *command: str) -> Any:
        connection = self.connection
        if self.life is None:
            connection.connect()  # does nothing where it is; else a Sentinel is to say whereto
        connection.send_packed_command(_pack(connection, command), check_health=False)
        return raise_error(connection.read_response())

    def find_life(self) -> str:
        """Ask for the server's ``run_id``, and return it; "" where it does not tell."""
        try:
            match = _RUN_ID.search(self._ask("INFO", "server"))
        except Exception as error:
            if not is_a(error, "ResponseError"):
                raise
            match = None
        self.life = match[1].decode() if match else ""
        return self.life

    def close(self) -> None:
        """Close the connection. The next one may lead to another life."""
        self.life = None
        self.connection.disconnect()


def _pack(connection: Any, command: tuple[str, ...]) -> Any:
    """Return a command as it goes over the wire, in a third of the steps that the client takes.

    Other text than ASCII goes by the encoding that the client is set to.
    """
    if not all(map(str.isascii, command)):
        return connection.pack_command(*command)
    parts = [f"${len(part)}\r\n{part}\r\n" for part in command]
    return [f"*{len(parts)}\r\n{''.join(parts)}".encode()]


# Those met last, at the end, each with its place. In an event loop Django makes a backend object for
# each request, and its own Redis backend a pool for each of these.
_servers: list[tuple[tuple[Any, ...], RedisServer]] = []
_lock = make_lock()

# More are of places that never come again: options made anew for each request, equal to no others.
_SERVERS_KEPT = 32


def find_server(cache: BaseCache, timeout: float) -> RedisServer | None:
    """Return the server behind a Django cache, or None where the backend is not Redis' own.

    Args:
        cache: the Django cache.
        timeout: seconds after which the server counts as down.

    Raises:
        UnusableClientError: the backend's client leads to no one server.
    """
    client = _find_client(cache)
    if client is None:
        return None
    place = (*_find_place(cache, find_pool(client)), timeout)
    with _lock:
        server = _take(place) or RedisServer(client, timeout)
        _servers.append((place, server))
        surplus = [_servers.pop(0) for _ in range(len(_servers) - _SERVERS_KEPT)]
    for _, left in surplus:
        left.close()
    return server


def _take(place: tuple[Any, ...]) -> RedisServer | None:
    """Remove a place from those that are known, and return its server."""
    for number, (known, server) in enumerate(_servers):
        if _are_equal(known, place):
            del _servers[number]
            return server
    return None


def _find_place(cache: Any, pool: Any) -> tuple[Any, ...]:
    """Return what the site has set of how to connect, to be compared; and whom that leads to.

    Not what a backend or a library adds to it: only what the site itself sets is the same object, or
    an equal one, for each request.
    """
    location = getattr(cache, "_servers", None) or getattr(cache, "_server", None)
    options = getattr(cache, "_options", None)
    if options is None:
        options = getattr(cache, "_params", {}).get("OPTIONS")
    if location is None:
        return type(cache), pool
    settings = getattr(pool, "connection_kwargs", {})
    # A site may change its settings in place.
    return type(cache), location, dict(options or {}), [settings.get(name) for name in _ADDRESS]


_ADDRESS = ("host", "port", "path", "db", "username", "password")


def _are_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    try:
        return one == other
    except Exception:  # whatever a site's own values raise, they are not known to be equal
        return False


_DJANGOS = "django.core.cache.backends.redis.RedisCache"
_DJANGO_REDIS = "django_redis.cache.RedisCache"


def find_backend(kind: type) -> str | None:
    """Return the path of the backend for Redis that a class is, or comes from; None where it is another one."""
    paths = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((path for path in paths if path in (_DJANGOS, _DJANGO_REDIS)), None)


def _find_client(cache: Any) -> Any | None:
    """Return the client for writing: a Redis replica may lag itself."""
    backend = find_backend(type(cache))
    if backend is None:
        return None
    if backend == _DJANGOS:
        return cache._cache.get_client(write=True)
    client = cache.client
    # Keys of a sharded cache live on different servers: no one client can merge them.
    is_sharded = hasattr(client, "get_server_name")
    return None if is_sharded else client.get_client(write=True)


@after_fork
def _begin_anew() -> None:
    for _, server in _servers:
        server.forget_connections()  # the parent goes on with their sockets
