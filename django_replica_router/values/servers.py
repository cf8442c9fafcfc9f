"""Which servers are known behind each alias: one as a rule, several behind a reader endpoint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Life = tuple[Any, ...]
"""Which server, and which life of it: start time, address, port."""

_NONE: Mapping[Life, str] = {}

endpoints_met: set[str] = set()
"""Aliases that this process has ever known to lead to several servers. Nearly always empty: each statement asks."""

# Servers of an alias that are to tell all of themselves: some may never answer again.
_MOST_CURIOUS = 8


def without(mapping: Mapping[K, V], key: K) -> dict[K, V]:
    """Return the same without one key: who reads it without a lock goes on with the old one."""
    return {other: value for other, value in mapping.items() if other != key}


class Servers:
    """The keys by which what is known of a server goes.

    The server that the alias's own poller looks at goes by the alias itself; each further one by a
    key of its own. Whoever changes this holds the monitor's lock; it is read without any.
    """

    def __init__(self) -> None:
        self.endpoints: frozenset[str] = frozenset()
        """Aliases that have led to several servers at the same time. They count as such for good:
        what is shown of one of them must be remembered, whatever becomes of the others."""
        self.led: frozenset[str] = frozenset()
        """Of these the ones where a pooler leads each statement to any of the servers."""
        self._curious: dict[str, set[Life]] = {}
        # Never changed, but replaced.
        self._lives: Mapping[str, Life] = {}
        self._keys: Mapping[str, Mapping[Life, str]] = {}
        self._aliases: Mapping[str, str] = {}
        self._numbers = itertools.count(2)

    def alias_of(self, key: str) -> str:
        """Return the alias that leads to the server of that key."""
        return self._aliases.get(key, key)

    def life(self, alias: str) -> Life | None:
        """Return which server an alias reaches, and which life of it, as last seen.

        Of an endpoint, the one that the alias's own poller looks at.
        """
        return self._lives.get(alias)

    def begin_life(self, alias: str, life: Life) -> None:
        """Note which server, and which life of it, the alias's own poller looks at from now on."""
        self._lives = {**self._lives, alias: life}

    def key(self, alias: str, life: Life) -> str | None:
        """Return the key of the server behind an alias that has that life, or None where none has."""
        return alias if self.life(alias) == life else self._keys.get(alias, _NONE).get(life)

    def knows(self, alias: str, life: Life) -> bool:
        """Tell whether a server is one that an alias is known to lead to."""
        return self.key(alias, life) is not None

    def waiting_key(self, alias: str, life: Life | None) -> str:
        """Return the key by which the waiting for a server goes, over a connection that leads there."""
        if life is None or alias not in self.endpoints or alias in self.led:
            return alias
        return self.key(alias, life) or alias

    def keys(self, alias: str) -> tuple[str, ...]:
        """Return the keys of all servers of an alias."""
        return (alias, *self._keys.get(alias, _NONE).values())

    def lives(self, alias: str) -> list[Life]:
        """Return the lives of the further servers of an alias."""
        return list(self._keys.get(alias, _NONE))

    def wonder(self, alias: str, life: Life) -> None:
        """Have statements ask all of the server that answers them, until that one has told it."""
        lives = self._curious.setdefault(alias, set())
        if len(lives) >= _MOST_CURIOUS:
            lives.clear()
        lives.add(life)

    def is_curious(self, alias: str) -> bool:
        """Tell whether statements are to ask all of the server that answers them."""
        return bool(self._curious.get(alias))

    def has_told(self, alias: str, life: Life) -> None:
        """Note that a server has told all of itself."""
        self._curious.get(alias, set()).discard(life)

    def note_endpoint(self, alias: str, *, is_led: bool = False) -> None:
        """Note that an alias leads to several servers, or that a pooler leads each statement to any."""
        endpoints_met.add(alias)
        self.endpoints |= {alias}
        if is_led:
            self.led |= {alias}

    def add(self, alias: str, life: Life) -> str:
        """Add a further server, and return its key."""
        key = f"{alias} #{next(self._numbers)}"
        self._aliases = {**self._aliases, key: alias}
        self._keys = {**self._keys, alias: {**self._keys.get(alias, _NONE), life: key}}
        self.note_endpoint(alias)
        return key

    def forget(self, alias: str) -> None:
        """Forget all that is known of an alias, as if it had never been there."""
        for key in self.keys(alias)[1:]:
            self.remove(key)
        self._keys = without(self._keys, alias)
        self._lives = without(self._lives, alias)
        self.endpoints -= {alias}
        self.led -= {alias}
        self._curious.pop(alias, None)

    def remove(self, key: str) -> None:
        """Remove a further server."""
        alias = self._aliases[key]
        others = {life: other for life, other in self._keys[alias].items() if other != key}
        self._keys = {**self._keys, alias: others}
        self._aliases = without(self._aliases, key)
