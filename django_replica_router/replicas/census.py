"""What each process has counted, told to whoever asks, through the cache.

Each process writes an entry of its own, which runs out a while after the process has ended, and its name
into an index. Two that write the index at the same moment may take each other out of it: each looks again
the next time.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from django_replica_router.forking import after_fork
from django_replica_router.replicas.entries import Entries, open_entries
from django_replica_router.stats import get_stats

EVERY = 5.0
"""Seconds from one entry to the next."""

LIFE = 20
"""Seconds after which an entry runs out, so that no process is told of for longer than that."""

WINDOW = 60.0
"""Seconds of which an entry tells what was counted lately."""

_CLOCK_ERROR = 1.0
_INDEX_LIFE = 7 * 24 * 3600
_VERSION = 2
_INDEX = "rr-processes"


class ProcessCounts(NamedTuple):
    """What one process has counted.

    Args:
        name: of its host, and its process id.
        seconds: since it began to count.
        counts: since then, as ``get_stats()`` gives them.
        lately: of about the last minute.
        told_at: when it told, by the clock of its host (``time.time()``).
        conditions: how it knows each server to be, by its key: "STREAMING", "LAGGING" and so on.
    """

    name: str
    seconds: float
    counts: Mapping[str, int]
    lately: Mapping[str, int]
    told_at: float = 0.0
    conditions: Mapping[str, str] = MappingProxyType({})

    def age(self, now: float) -> float:
        """Return how many seconds ago it told: where clocks differ, the nearest that can be.

        Args:
            now: by this host's clock.
        """
        return min(max(0.0, now - self.told_at), LIFE)

    def has_another_clock(self, now: float) -> bool:
        """Tell whether the clock of its host cannot be the same as this one's: it would have run out, or be to come."""
        return not -_CLOCK_ERROR <= now - self.told_at <= LIFE + _CLOCK_ERROR

    def encode(self) -> str:
        """Return it as text."""
        told = self._replace(conditions=dict(self.conditions))
        return json.dumps([_VERSION, *told], separators=(",", ":"))

    @classmethod
    def decode(cls, value: object) -> ProcessCounts | None:
        """Return what the text stands for, or None where it is none."""
        try:
            version, name, seconds, counts, lately, told_at, conditions = json.loads(str(value))
        except (RecursionError, TypeError, ValueError):
            return None
        if version != _VERSION or not isinstance(name, str):
            return None
        if not (_is_finite(seconds) and _is_finite(told_at)):
            return None
        if not (_are(int, counts) and _are(int, lately) and _are(str, conditions)):
            return None
        return cls(name, seconds, counts, lately, told_at, conditions)


def process_name() -> str:
    """Return the name by which this process tells of itself: of its host, and its process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _is_finite(value: object) -> bool:
    """Tell whether a value that was told is a number, and not one that is none."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _are(kind: type, value: object) -> bool:
    return isinstance(value, dict) and all(type(one) is kind for one in value.values())


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
        self._conditions: dict[str, Mapping[str, str]] = {}

    def note_conditions(self, primary: str, conditions: Mapping[str, str]) -> None:
        """Note how the servers of a cluster are, to be told with the next entry.

        Args:
            primary: alias of the primary.
            conditions: of each server, by its key.
        """
        self._conditions = {**self._conditions, primary: conditions}

    def tell(self, cache: str | None) -> None:
        """Write the entry of this process, where it is due, and there is something to tell.

        Args:
            cache: alias of the cache, or None where nobody is to be told. All that it raises is raised.
        """
        with self._lock:
            now = self._clock()
            if now - self._told_at < EVERY / 2:
                return  # another cluster's thread has told it
            counts = get_stats()
            if counts:
                self._told_at = now
            self._past.append((now, counts))
            while len(self._past) > 2 and now - self._past[0][0] > WINDOW:
                self._past.popleft()
        if counts and cache is not None:
            self._write(open_entries(cache), self.own())

    def own(self) -> ProcessCounts:
        """Return what this process would tell now."""
        now, counts = self._clock(), get_stats()
        return ProcessCounts(
            process_name(),
            round(now - self._began_at, 1),
            counts,
            dict(Counter(counts) - Counter(self._past[0][1])),
            round(time.time(), 1),
            {key: how for one in self._conditions.values() for key, how in one.items()},
        )

    def _write(self, entries: Entries, told: ProcessCounts) -> None:
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
    entries = open_entries(cache)
    found = entries.read([_key(name) for name in _names(entries)])
    told = (ProcessCounts.decode(entry) for entry in found)
    return sorted((one for one in told if one is not None), key=lambda one: one.name)


def _names(entries: Entries) -> list[str]:
    try:
        names = json.loads(str(entries.read([_INDEX])[0]))
    except ValueError:
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _key(name: str) -> str:
    return f"{_INDEX}:{name}"


own_census = Census()
"""That of this process."""

after_fork(own_census.begin_anew)
