"""What each process has counted, told to whoever asks, through the cache.

Each process writes an entry of its own, which runs out a while after the process has ended, and its name
into an index. Two that write the index at the same moment may take each other out of it: each looks again
the next time.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import connections

from django_replica_router.stats import get_stats
from django_replica_router.stores.store import RedisStore, get_store

EVERY = 5.0
"""Seconds from one entry to the next."""

LIFE = 20
"""Seconds after which an entry runs out, so that no process is told of for longer than that."""

WINDOW = 60.0
"""Seconds of which an entry tells what was counted lately."""

_INDEX_LIFE = 7 * 24 * 3600
_VERSION = 1
_INDEX = "rr-processes"

logger = logging.getLogger("django_replica_router")

_draw = random.SystemRandom()


class ProcessCounts(NamedTuple):
    """What one process has counted.

    Args:
        name: of its host, and its process id.
        seconds: since it began to count.
        counts: since then, as ``get_stats()`` gives them.
        lately: of about the last minute.
    """

    name: str
    seconds: float
    counts: Mapping[str, int]
    lately: Mapping[str, int]

    def encode(self) -> str:
        """Return it as text."""
        return json.dumps([_VERSION, *self], separators=(",", ":"))

    @classmethod
    def decode(cls, value: object) -> ProcessCounts | None:
        """Return what the text stands for, or None where it is none."""
        try:
            version, name, seconds, counts, lately = json.loads(str(value))
        except (TypeError, ValueError):
            return None
        if version != _VERSION or not isinstance(name, str) or type(seconds) not in (int, float):
            return None
        if not (_are_counts(counts) and _are_counts(lately)):
            return None
        return cls(name, seconds, counts, lately)


def _are_counts(value: object) -> bool:
    return isinstance(value, dict) and all(type(number) is int for number in value.values())


class Census:
    """Tells what this process has counted.

    Args:
        clock: a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin as a process of its own, as after a fork."""
        self._lock = threading.Lock()
        self._began_at = self._clock()
        self._told_at = -EVERY
        self._id = secrets.token_hex(8)
        self._past: deque[tuple[float, Mapping[str, int]]] = deque([(self._began_at, {})])

    def tell(self, cache: str) -> None:
        """Write the entry of this process, where it is due, and there is something to tell.

        Args:
            cache: alias of the cache. All that it raises is raised.
        """
        with self._lock:
            now = self._clock()
            if now - self._told_at < EVERY / 2:
                return  # another cluster's thread has told it
            self._told_at = now
        counts = get_stats()
        if counts:
            self._write(_open(cache), now, counts)

    def _write(self, entries: _Entries, now: float, counts: Mapping[str, int]) -> None:
        self._past.append((now, counts))
        while len(self._past) > 2 and now - self._past[0][0] > WINDOW:
            self._past.popleft()
        lately = dict(Counter(counts) - Counter(self._past[0][1]))
        name = f"{socket.gethostname()}:{os.getpid()}"
        told = ProcessCounts(name, round(now - self._began_at, 1), counts, lately)
        entries.write(_key(self._id), told.encode(), LIFE)
        known = _names(entries)
        if self._id not in known:
            alive = entries.read([_key(one) for one in known])
            names = [name for name, entry in zip(known, alive, strict=True) if entry is not None]
            entries.write(_INDEX, json.dumps([*names, self._id]), _INDEX_LIFE)


def read_census(cache: str) -> list[ProcessCounts]:
    """Return what the processes have told that are there. What the cache raises is raised.

    Args:
        cache: alias of the cache.
    """
    entries = _open(cache)
    found = entries.read([_key(name) for name in _names(entries)])
    told = (ProcessCounts.decode(entry) for entry in found)
    return sorted((one for one in told if one is not None), key=lambda one: one.name)


class _Entries:
    """Texts in a Django cache."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def read(self, keys: Sequence[str]) -> list[object]:
        """Return what stands under each key, or None where nothing does."""
        found = self._cache.get_many(keys)
        return [found.get(key) for key in keys]

    def write(self, key: str, text: str, life: int) -> None:
        """Write a text that runs out after so many seconds."""
        self._cache.set(key, text, life)


class _RedisEntries(_Entries):
    """The same in Redis or Valkey, asked by the package's own client, which waits no longer than it may."""

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store._client)
        self._make_key = store._cache.make_key

    def read(self, keys: Sequence[str]) -> list[object]:
        found = self._cache.mget([str(self._make_key(key)) for key in keys]) if keys else []
        return [one.decode() if isinstance(one, bytes) else one for one in found]

    def write(self, key: str, text: str, life: int) -> None:
        self._cache.set(str(self._make_key(key)), text, life)


def _open(cache: str) -> _Entries:
    store = get_store(cache)
    return _RedisEntries(store) if isinstance(store, RedisStore) else _Entries(store._cache)


def _names(entries: _Entries) -> list[str]:
    try:
        names = json.loads(str(entries.read([_INDEX])[0]))
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _key(name: str) -> str:
    return f"{_INDEX}:{name}"


_census = Census()


class Teller(threading.Thread):
    """Tells what this process has counted, again and again.

    Args:
        cache: alias of the cache.
    """

    def __init__(self, cache: str) -> None:
        super().__init__(name="replica-router-census", daemon=True)
        self.cache = cache
        self._ended = threading.Event()

    def end(self, timeout: float = 1.0) -> None:
        """Stop the thread, and wait at most ``timeout`` seconds for it."""
        self._ended.set()
        if self.is_alive():
            self.join(timeout)

    def run(self) -> None:
        # Jitter, so that many processes do not write at the same moment.
        while not self._ended.wait(EVERY * _draw.uniform(0.8, 1.0)):
            try:
                _census.tell(self.cache)
            except Exception as error:  # whatever a cache backend raises: nobody depends on it
                logger.debug("What was counted cannot be told through %r: %s", self.cache, error)
        connections.close_all()  # those of this thread, where the cache is in a database


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_census.begin_anew)
