"""Which views and tasks have saved what they had read from a replica: told by every process to all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from django_replica_router.conf import Config
from django_replica_router.errors import StoreError
from django_replica_router.forking import make_lock
from django_replica_router.logs import fields, logger
from django_replica_router.recording.floors import wall_clock_ms
from django_replica_router.scopes.scope import Scope
from django_replica_router.scopes.sources import names_of
from django_replica_router.stores.store import get_store

KEY = "rr:learned"
"""Under this the cache keeps what all processes have learned, as JSON of name to expiry."""

LIFE = 7 * 24 * 60 * 60.0
"""Seconds for which a name is known after it was last seen to save."""

LOOK_SECONDS = 5.0
"""How old a process's knowledge of what the others have learned may be."""

_FORGOTTEN = "!"
"""In front of a name: with the end that it had, had it been learned when somebody had it forgotten. What was learned
later counts. It is told like a name, so that no process, however long it does not look, brings the older one back."""

# Beyond any number of views that a site has: garbage in the cache must not fill the memory.
_MOST_NAMES = 2000


class _Known:
    """What this process knows: each name with the time of day, in milliseconds, when it ends.

    The dicts are replaced and never changed: requests look into ``names`` without a lock. ``told`` has what was
    forgotten as well.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.told: dict[str, int] = {}
        self.looked_at: dict[str, float] = {}

    def add(self, names: dict[str, int]) -> None:
        """Know these as well; the later end counts."""
        now = wall_clock_ms()
        latest = now + round(LIFE * 1000)
        with _lock:
            merged = {name: end for name, end in self.told.items() if end > now}
            for name, end in names.items():
                if end > now and (name in merged or len(merged) < _MOST_NAMES):
                    merged[name] = max(merged.get(name, 0), min(end, latest))
            self.told = merged
            self.names = {
                name: end
                for name, end in merged.items()
                if not name.startswith(_FORGOTTEN) and end > merged.get(_FORGOTTEN + name, 0)
            }


_lock = make_lock()
_known = _Known()


def learn(scope: Scope, config: Config) -> tuple[str, ...]:
    """Have the scope, and from now on whatever bears its name, read from the primary.

    Returns:
        the names; none where nothing tells what the scope works for.
    """
    scope.learned = True
    scope.shortcuts.clear()
    names = names_of(scope)
    end = wall_clock_ms() + round(LIFE * 1000)
    if any(_known.names.get(name, 0) < end - LIFE * 500 for name in names):
        _known.add(dict.fromkeys(names, end))
        _exchange(config)
    return names


def learned(config: Config) -> dict[str, float]:
    """Return what all processes know by now: each name with the time of day when it ends, in seconds.

    Args:
        config: the settings.

    Raises:
        StoreError: the cache does not answer.
    """
    _share(config)
    return {name: end / 1000 for name, end in _known.names.items()}


def unlearn(names: Iterable[str], config: Config) -> None:
    """Have names forgotten by all processes, within ``LOOK_SECONDS``, until they save again what they had read.

    Args:
        names: of ``learned``.
        config: the settings.

    Raises:
        StoreError: the cache does not answer.
    """
    end = wall_clock_ms() + round(LIFE * 1000)
    _known.add({_FORGOTTEN + name: end for name in names})
    _share(config)


def is_learned(scope: Scope, config: Config) -> bool:
    """Tell whether what the scope works for is known to save what it reads. Remembered in the scope.

    The cache is asked where this process has not done so for ``LOOK_SECONDS``.
    """
    if config.STALE_SAVES != "learn":
        return False
    looked_at = _known.looked_at.get(config.CACHE)
    if looked_at is None or time.monotonic() - looked_at > LOOK_SECONDS:
        _exchange(config)
    names = _known.names
    if names and any(name in names for name in names_of(scope)):
        scope.learned = True
    return scope.learned


def _exchange(config: Config) -> None:
    # First: who comes meanwhile goes by what is known, and does not wait for the same answer.
    _known.looked_at[config.CACHE] = time.monotonic()
    try:
        _share(config)
    except StoreError as error:
        logger.warning(
            "Which views save what they read is not known from other processes: %s",
            error,
            extra=fields("learned_unshared", error, cache=config.CACHE),
        )


def _share(config: Config) -> None:
    """Learn what the cache knows, and put there what it does not: it may have been emptied."""
    store = get_store(config.CACHE)
    stored = _decode(store.load_text(KEY))
    _known.add(stored)
    mine = _known.told
    if any(stored.get(name, 0) < end for name, end in mine.items()):
        store.save_text(KEY, json.dumps(mine), LIFE)


def _decode(text: str | None) -> dict[str, int]:
    try:
        found: Any = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    # A bool is an int to Python, and ends in the year 1970.
    return {name: end for name, end in found.items() if isinstance(end, int)}
