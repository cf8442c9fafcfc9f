"""Texts by which processes tell each other something, through a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django_replica_router.stores.store import RedisStore, get_store


class Entries:
    """Texts in a Django cache. All methods raise what that raises."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def read(self, keys: Sequence[str]) -> list[object]:
        """Return what stands under each key, or None where nothing does."""
        found = self._cache.get_many(keys)
        return [found.get(key) for key in keys]

    def write(self, key: str, text: str, life: int) -> None:
        """Write a text that runs out after so many seconds."""
        self._cache.set(key, text, life)

    def add(self, key: str, text: str, life: int) -> bool:
        """Write it where nothing stands there; tell whether it was written."""
        return bool(self._cache.add(key, text, life))

    def delete(self, key: str) -> None:
        """Have nothing stand there."""
        self._cache.delete(key)


class _RedisEntries(Entries):
    """The same in Redis or Valkey, asked by the package's own client, which waits no longer than it may.

    It reads from the server that is written to: a copy of that may lag, and show what is gone.
    """

    def __init__(self, store: RedisStore) -> None:
        super().__init__(store._client)
        self._make_key = store._cache.make_key

    def read(self, keys: Sequence[str]) -> list[object]:
        found = self._cache.mget([str(self._make_key(key)) for key in keys]) if keys else []
        return [one.decode(errors="replace") if isinstance(one, bytes) else one for one in found]

    def write(self, key: str, text: str, life: int) -> None:
        self._cache.set(str(self._make_key(key)), text, ex=life)

    def add(self, key: str, text: str, life: int) -> bool:
        return bool(self._cache.set(str(self._make_key(key)), text, ex=life, nx=True))

    def delete(self, key: str) -> None:
        self._cache.delete(str(self._make_key(key)))


def open_entries(cache: str) -> Entries:
    """Return what stands in a cache.

    Args:
        cache: its alias.

    Raises:
        StoreError: there is no such cache, or its client cannot be made.
    """
    store = get_store(cache)
    return _RedisEntries(store) if isinstance(store, RedisStore) else Entries(store._cache)
