"""The client libraries of Redis and Valkey, redis-py and valkey-py: what of each is used, told by name.

Neither is imported by name, since a site may have either; and one may be given parts of the other:
django-redis gives valkey-py's connections redis-py's parser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from copy import copy
from importlib import import_module
from typing import Any

_CLIENTS = {"redis": "Redis", "valkey": "Valkey"}


class UnusableClientError(Exception):
    """The client leads to no one server by a pool of connections, as redis-py's and valkey-py's do."""


def is_a(error: BaseException, name: str) -> bool:
    """Tell whether an error is of a class of that name, of whichever library, or of one below it."""
    return any(kind.__name__ == name for kind in type(error).__mro__)


def raise_error(answer: Any) -> Any:
    """Return an answer. Raise an error that a parser returns to a connection that does not know it."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def find_pool(client: Any) -> Any:
    """Return the pool of a client.

    Raises:
        UnusableClientError: it has none.
    """
    pool = getattr(client, "connection_pool", None)
    if pool is None:
        kind = type(client)
        message = (
            f"its client {kind.__module__}.{kind.__qualname__} has no connection pool, as that of a "
            f"cluster has none: tokens need one server, through Redis of redis-py or Valkey of valkey-py"
        )
        raise UnusableClientError(message)
    return pool


def can_be_bounded(pool: Any) -> bool:
    """Tell whether another pool can be made that leads to where this one does.

    To one known server, or to the one that a Sentinel names. Not one that a site has taught to connect in
    its own way.
    """
    library = _library_of(type(pool))
    if library not in _CLIENTS or _library_of(pool.connection_class) not in _CLIENTS:
        return False
    if "connection_pool" in pool.connection_kwargs and not isinstance(
        pool, _sentinels_pool(library)
    ):
        return False
    known = {f"{library}.connection", f"{library}.sentinel"}
    methods = type(pool).get_connection, type(pool).make_connection
    return all(method.__module__ in known for method in methods)


def make_bounded(pool: Any, timeout: float) -> Any:
    """Return a client for where a pool leads to whose connections give up after a time-out.

    Without one, the libraries wait for long for a server that hangs; and redis-py tries again since
    its version 6, with pauses, where it is refused.
    """
    given = pool.connection_kwargs
    settings = {
        **given,
        "socket_timeout": min(timeout, given.get("socket_timeout") or timeout),
        "socket_connect_timeout": min(timeout, given.get("socket_connect_timeout") or timeout),
        "decode_responses": False,
        # Once more and at once: the connection may be one of before the server's restart.
        **_trying_again(pool.connection_class, 1),
        "connection_class": pool.connection_class,
    }
    library = _library_of(pool.connection_class)
    if _library_of(settings.get("parser_class")) != library:
        # Its errors would be none to the connection, which would return them as answers.
        settings.pop("parser_class", None)
    client = getattr(import_module(library), _CLIENTS[library])
    kind = import_module(f"{library}.connection").ConnectionPool
    if settings.pop("connection_pool", None) is not None:
        kind = _sentinels_pool(library)
        manager = settings["sentinel_manager"] = copy(pool.sentinel_manager)
        manager.sentinels = [
            make_bounded(one.connection_pool, timeout) for one in manager.sentinels
        ]
        settings["service_name"] = pool.service_name
    return client(connection_pool=kind(**settings))


def _sentinels_pool(library: str) -> Any:
    """Return the class of pools whose connections ask a Sentinel where the server is."""
    return import_module(f"{library}.sentinel").SentinelConnectionPool


def make_connection(pool: Any) -> Any:
    """Return a connection as those of a bounded pool, which does not try to connect again."""
    kind = pool.connection_class
    return kind(**{**pool.connection_kwargs, **_trying_again(kind, 0)})


def _trying_again(kind: type, times: int) -> dict[str, Any]:
    library = _library_of(kind)
    no_backoff = import_module(f"{library}.backoff").NoBackoff()
    # Not where nobody answers in time: that would be one time-out more.
    broken = (import_module(f"{library}.exceptions").ConnectionError,)
    return {
        "retry": import_module(f"{library}.retry").Retry(no_backoff, times, broken),
        "retry_on_timeout": False,
        "retry_on_error": [],
    }


def _library_of(kind: Any) -> str:
    """Return the package that a class comes from, or that which a site has derived it from."""
    bases = [base.__module__.partition(".")[0] for base in getattr(kind, "__mro__", ())]
    return next((base for base in bases if base in _CLIENTS), "")


class Script:
    """A script that a server runs. It is sent once, and named afterwards.

    The libraries' own knows a server that has lost it by the errors of its library only.

    Args:
        client: who sends it.
        text: the script.
    """

    def __init__(self, client: Any, text: str) -> None:
        self._client = client
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(self, keys: Sequence[str], args: Sequence[str | int]) -> Any:
        """Run the script with these ``KEYS`` and ``ARGV``, and return its answer."""
        values = (len(keys), *keys, *args)
        execute = self._client.execute_command
        try:
            return raise_error(execute("EVALSHA", self._digest, *values))
        except Exception as error:
            if not is_a(error, "NoScriptError"):
                raise
        return raise_error(execute("EVAL", self._text, *values))
