"""Where tokens are kept between requests: Django's cache, merged so that a token never falls."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache, default_key_func
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.utils.module_loading import import_string

from django_replica_router.conf import get_config
from django_replica_router.errors import StoreError
from django_replica_router.forking import make_lock
from django_replica_router.logs import fields, logger
from django_replica_router.sql.opening import is_under_test
from django_replica_router.stores import owners, scripts
from django_replica_router.stores.clients import Script, is_a
from django_replica_router.stores.redis import Pause, RedisServer, find_backend, find_server
from django_replica_router.values.tokens import NOWHERE, Record

T = TypeVar("T")

# Seconds for which a store that failed is not read: one time-out, and not one for each request.
_PAUSE = 0.5

# What a check keeps for a second.
_TRIAL = "rr:check"

# How often a cache without an atomic operation is asked whether another process has meanwhile
# overwritten what was merged.
_VERIFICATIONS = 5


def _text(value: bytes | str) -> str:
    # A client whose pool is its own affair may be set to decode what it receives.
    return value if isinstance(value, str) else value.decode("ascii")


class TokenStore(ABC):
    """Keeps records under keys. One for each cache backend object, and so for each thread.

    Args:
        cache: the Django cache.
        pause: that of the cache's server, where its other stores are known.
    """

    is_shared = True
    """Other processes see what this one stores."""

    is_atomic = True
    """Two merges at the same moment cannot lose one."""

    @property
    def is_lasting(self) -> bool:
        """Whether what is stored is there for other processes, and at all."""
        return self.is_shared and not isinstance(self._cache, DummyCache)

    def __init__(self, cache: BaseCache, pause: Pause | None = None) -> None:
        self._cache = cache
        self._pause = pause or Pause()

    def life(self) -> str:
        """Return what stands for the present life of the cache's server; "" where nobody knows.

        One that is started anew may hold what it had saved a while ago, and one that takes its place
        what it had been sent by then. What is loaded afterwards is of that life, or fails.

        Raises:
            StoreError: the cache does not answer.
        """
        return ""

    def load(self, keys: Sequence[str]) -> list[Record | None]:
        """Return the record of each key; None where there is none that can be read.

        Raises:
            StoreError: the cache does not answer.
        """
        return self._read(self._load, keys)

    def load_with_owners(self, prefix: str, names: Sequence[str]) -> dict[str, Record | None]:
        """Return the record of each name, and of each owner that one of these records names.

        Args:
            prefix: what comes before a name in its key.
            names: what to load.

        Raises:
            StoreError: the cache does not answer.
        """
        return self._read(self._load_guessing, prefix, names)

    def _load_guessing(self, prefix: str, names: Sequence[str]) -> dict[str, Record | None]:
        guesses = owners.guess(prefix, names)
        if not guesses:
            found = self._load_with_owners(prefix, names)
        else:
            found = self._load_named(prefix, [*names, *guesses])
            missing = owners.find_missing(names, found)
            if missing:
                found |= self._load_named(prefix, missing)
        return owners.keep_owned(prefix, names, found)

    def _read(self, ask: Callable[..., T], *args: Any) -> T:
        """Return what the cache is asked.

        Raises:
            StoreError: it does not answer, or did not a moment ago.
        """
        if time.monotonic() < self._pause.until:
            message = "The token store did not answer a moment ago."
            raise StoreError(message)
        try:
            return ask(*args)
        except Exception as error:  # whatever a cache backend raises, the site goes on
            self._pause.until = time.monotonic() + _PAUSE
            message = f"The token store could not be read: {error}"
            raise StoreError(message) from error

    @staticmethod
    def _write(write: Callable[..., None], *args: Any) -> None:
        try:
            write(*args)
        except Exception as error:  # whatever a cache backend raises, the site goes on
            message = f"The token store could not be written: {error}"
            raise StoreError(message) from error

    def merge(self, records: Mapping[str, Record], lives: Mapping[str, float]) -> None:
        """Raise the record of each key to at least the given one.

        Args:
            records: what to merge, by key.
            lives: for each key the seconds that the record must be kept.

        Raises:
            StoreError: the cache does not answer.
        """
        self._write(self._merge, records, lives)

    def load_text(self, key: str) -> str | None:
        """Return the text under a key that is no record's, or None where there is none.

        Raises:
            StoreError: the cache does not answer.
        """
        value = self._read(self._load_text, key)
        return value if isinstance(value, str) else None

    def save_text(self, key: str, text: str, life: float) -> None:
        """Keep a text for so many seconds, whatever was under the key before.

        Raises:
            StoreError: the cache does not answer.
        """
        self._write(self._save_text, key, text, life)

    def _load_text(self, key: str) -> Any:
        return self._cache.get(key)

    def _save_text(self, key: str, text: str, life: float) -> None:
        self._cache.set(key, text, life)

    def eviction_policy(self) -> str | None:
        """Return the name of the rule by which the server drops keys, or None.

        None also where the server is not asked, or does not tell.
        """
        return None

    def find_refusal(self) -> str | None:
        """Return why the cache does not do with a record what it is asked; None where it does.

        None also where it cannot be reached.
        """
        return None

    def may_forget(self) -> bool:
        """Tell whether a record may be dropped before its time: then to find none says nothing.

        So it is with every cache that has a limit to what it keeps, as Django's own have.
        """
        return True

    def _load_with_owners(self, prefix: str, names: Sequence[str]) -> dict[str, Record | None]:
        found = self._load_named(prefix, names)
        missing = owners.find_missing(names, found)
        return found | self._load_named(prefix, missing) if missing else found

    def _load_named(self, prefix: str, names: Sequence[str]) -> dict[str, Record | None]:
        return dict(zip(names, self._load([prefix + name for name in names]), strict=True))

    @abstractmethod
    def _load(self, keys: Sequence[str]) -> list[Record | None]: ...

    @abstractmethod
    def _merge(self, records: Mapping[str, Record], lives: Mapping[str, float]) -> None: ...


class GenericStore(TokenStore):
    """Any cache that has no atomic operation to offer: reads, merges, writes, and looks again."""

    is_atomic = False

    def _load(self, keys: Sequence[str]) -> list[Record | None]:
        values = self._cache.get_many(keys)
        return [Record.decode(values.get(key)) for key in keys]

    def _merge(self, records: Mapping[str, Record], lives: Mapping[str, float]) -> None:
        for key, record in records.items():
            for _ in range(_VERIFICATIONS):
                stored = Record.decode(self._cache.get(key))
                if stored is not None and stored.merge(record) == stored:
                    break
                # What was written up to now is not known where a record may have been dropped.
                merged = record.as_written() if stored is None else stored.merge(record)
                self._cache.set(key, merged.encode(), lives[key])
            else:
                self._verify(key, record)

    def _verify(self, key: str, record: Record) -> None:
        stored = Record.decode(self._cache.get(key))
        if stored is None or stored.merge(record) != stored:
            message = f"The cache did not keep the record of {key!r}."
            raise StoreError(message)


class LocMemStore(GenericStore):
    """The cache in the memory of this process: a lock makes the merge atomic."""

    is_shared = False
    is_atomic = True
    _lock = make_lock()

    def _merge(self, records: Mapping[str, Record], lives: Mapping[str, float]) -> None:
        with self._lock:
            super()._merge(records, lives)


class RedisStore(TokenStore):
    """Redis or Valkey.

    Serializers, compressors and ``IGNORE_EXCEPTIONS`` of the backend are passed by: an ignored
    error would read as "no token".
    """

    def __init__(self, cache: BaseCache, server: RedisServer) -> None:
        super().__init__(cache, server.pause)
        self._server = server
        self._client = client = server.client
        self._script = Script(client, scripts.MERGE)
        self._load_script = Script(client, scripts.LOAD)
        self._life: str | None = None
        self._start = _plain_start(cache)

    def life(self) -> str:
        """Return the server's ``run_id``, or "" where it does not tell.

        Raises:
            StoreError: the cache does not answer.
        """
        self._life = self._server.life
        if self._life is None:
            self._life = self._read(self._server.ask_life)
        return self._life

    def _load_with_owners(self, prefix: str, names: Sequence[str]) -> dict[str, Record | None]:
        start = str(self._cache.make_key(prefix))
        keys = [self._cache.make_key(prefix + name) for name in names]
        if any(str(key) != start + name for key, name in zip(keys, names, strict=True)):
            # A KEY_FUNCTION that does more than put something in front.
            return super()._load_with_owners(prefix, names)
        life, *values = self._load_script.run(keys, [start])
        self._server.check_life(_text(life), self._life)
        found = {name: Record.decode(value) for name, value in zip(names, values, strict=False)}
        followed = values[len(names) :]
        for owner, value in zip(followed[::2], followed[1::2], strict=True):
            found.setdefault(_text(owner), Record.decode(value))
        return found

    def _load(self, keys: Sequence[str]) -> list[Record | None]:
        start = self._start
        if start is None:
            full = [self._cache.make_key(key) for key in keys]
        else:
            full = [start + key for key in keys]
        return list(map(Record.decode, self._server.mget(full, self._life)))

    def _load_text(self, key: str) -> Any:
        value = self._client.get(self._cache.make_key(key))
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _save_text(self, key: str, text: str, life: float) -> None:
        self._client.set(self._cache.make_key(key), text, px=round(life * 1000))

    def _merge(self, records: Mapping[str, Record], lives: Mapping[str, float]) -> None:
        args: list[str | int] = []
        for key, record in records.items():
            args += [record.encode(), max(1, round(lives[key] * 1000))]
        has_seen = any(record.seen != NOWHERE for record in records.values())
        args.append(int(has_seen and self.may_forget()))
        self._script.run([self._cache.make_key(key) for key in records], args)

    def eviction_policy(self) -> str | None:
        """Return the server's ``maxmemory-policy`` where it drops keys by it, else None."""
        try:
            return self._server.eviction_policy()
        except Exception:  # whatever it does not tell, the tokens may be safe
            return None

    def find_refusal(self) -> str | None:
        """Return why the server, or its client, does not keep a record; None where it does.

        None also where it cannot be reached.
        """
        try:
            self._merge({_TRIAL: Record()}, {_TRIAL: 1.0})
            self._load_with_owners("", [_TRIAL])
        except Exception as error:  # whatever a client raises is what is to be told
            is_away = any(
                is_a(error, name) for name in ("ConnectionError", "TimeoutError", "OSError")
            )
            return str(error) if is_a(error, "AuthenticationError") or not is_away else None
        return None

    def may_forget(self) -> bool:
        """Tell whether the server drops keys when its memory is full, or does not tell."""
        return self._server.drops_keys()


def _plain_start(cache: BaseCache) -> str | None:
    """Return what a cache puts in front of its keys; None where it may do something else with them."""
    is_plain = type(cache).make_key is BaseCache.make_key and cache.key_func is default_key_func
    return str(cache.make_key("")) if is_plain else None


def open_store(cache: BaseCache, timeout: float) -> TokenStore:
    """Return the best store that the cache allows.

    Args:
        cache: the Django cache.
        timeout: seconds after which Redis or Valkey counts as down.

    Raises:
        StoreError: the cache's client cannot be made.
    """
    try:
        server = find_server(cache, timeout)
        if server is not None:
            return RedisStore(cache, server)
    except Exception as error:  # whatever a cache backend raises, the site goes on
        message = f"The token store could not be opened: {error}"
        raise StoreError(message) from error
    if isinstance(cache, LocMemCache):
        return LocMemStore(cache)
    return GenericStore(cache)


class _Here(threading.local):
    """What was found in one thread."""

    def __init__(self) -> None:
        self.known: dict[str, tuple[object, TokenStore | None]] = {}
        """By alias: the settings of caches, and a store that is not kept with an object of Django's."""


_here = _Here()


def get_store(alias: str) -> TokenStore:
    """Return the store in the cache of that alias. Each thread has its own, as it has of Django's caches.

    That of Redis or Valkey has a backend object of its own. Django looks for its objects by an exception, and
    closes after each request those that were used, which takes django-redis two more.

    Raises:
        StoreError: there is no such cache, or its client cannot be made.
    """
    present = caches.settings
    known, store = _here.known.get(alias, (None, None))
    if known is not present:
        store = _open_own(alias)
        _here.known[alias] = present, store
    return _open_djangos(alias) if store is None else store


def _open_own(alias: str) -> TokenStore | None:
    """Return a store of Redis or Valkey, on a backend object of its own; None where there is no such one."""
    try:
        kind = import_string(caches.settings[alias]["BACKEND"])
    except (KeyError, ImportError):
        return None  # Django says so
    if find_backend(kind) is None:
        return None
    store = open_store(_made(caches.create_connection, alias), get_config().STORE_TIMEOUT)
    return store if isinstance(store, RedisStore) else None


def _open_djangos(alias: str) -> TokenStore:
    """Return the store that is kept with Django's object of a cache."""
    cache: Any = _made(caches.__getitem__, alias)
    store: TokenStore | None = cache.__dict__.get("_replica_router_store")
    if store is None:
        store = cache._replica_router_store = open_store(cache, get_config().STORE_TIMEOUT)
        if not store.is_lasting and alias not in _told:
            _tell_unshared(alias)
    return store


_told: set[str] = set()
"""Aliases of caches of which this process has told that they are not shared."""


def _tell_unshared(alias: str) -> None:
    """Tell once that tokens stay in this process, where a site is at work: ``check`` tells only with ``--deploy``."""
    _told.add(alias)
    if not (settings.DEBUG or is_under_test()):
        logger.warning(
            "The cache %r is not shared between processes: the others may show a user older data than is written in this "
            "one. Use Redis or Valkey where there are several.",
            alias,
            extra=fields("tokens_unshared", cache=alias),
        )


def _made(make: Callable[[str], BaseCache], alias: str) -> BaseCache:
    try:
        return make(alias)
    except Exception as error:  # InvalidCacheBackendError, or what a backend's constructor raises
        message = f"The token store could not be opened: {error}"
        raise StoreError(message) from error
