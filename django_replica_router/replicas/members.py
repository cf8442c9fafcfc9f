"""Which servers of a cluster there are: they come and go, behind an alias or with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from django_replica_router.logs import fields, logger
from django_replica_router.replicas.breaker import Breaker
from django_replica_router.replicas.looks import Looks
from django_replica_router.replicas.news import UNKNOWN, Latest
from django_replica_router.values.servers import Life, without

_UNWATCHED_KEPT = 64


class Members(Latest):
    """The servers of which something is known, or about to be, and the looks at them.

    Args:
        primary: alias of the primary.
        clock: a monotonic clock.
    """

    def __init__(self, primary: str, clock: Callable[[], float]) -> None:
        super().__init__(primary)
        self.clock = clock
        self.breaker = Breaker(clock)
        self.primary_looks = Looks(primary, primary, clock)
        # Replaced where servers come or go: others go through it without the lock.
        self.looks: Mapping[str, Looks] = {}
        self.unwatched: deque[str] = deque(maxlen=_UNWATCHED_KEPT)
        """Keys by which no looks go, and for which somebody may wait: of scouts, and of servers that were
        dropped."""
        self.ahead: set[str] = set()
        self.doubted: set[str] = set()
        """The replicas that failed here, where only a look of this process's own counts."""
        self._born_at: dict[str, float] = {}

    def add(self, alias: str, life: Life) -> str:
        """Add a further server behind an alias, and return its key. The caller holds the lock."""
        self.note_endpoint(alias)
        key = self.servers.add(alias, life)
        # It serves once it has what the primary has now.
        self._born_at[key] = self.clock()
        self.readings = {**self.readings, key: UNKNOWN}
        self.primary_looks.poke()
        return key

    def look_at(self, alias: str, life: Life | None = None) -> Looks:
        """Have something known of the server of an alias, or of a further one that has that life.

        The caller holds the lock, and looks at it.
        """
        key = alias if life is None else self.add(alias, life)
        self.readings = {**self.readings, key: UNKNOWN}
        self.looks = {**self.looks, key: Looks(alias, key, self.clock)}
        return self.looks[key]

    def drop(self, key: str) -> bool:
        """Note that a further server is looked at no more; tell whether it is missed."""
        with self.changed:
            self.looks = without(self.looks, key)
            alias = self.servers.alias_of(key)
            has_left, is_led = alias == key, alias in self.servers.led
            if has_left or is_led:  # where a pooler leads to it, who answers tells of it
                return False
            self.remove(key)
            self.unwatched.append(key)
            return True

    def remove(self, key: str) -> None:
        """Forget a further server. The caller holds the lock."""
        self.servers.remove(key)
        self._leave(key)

    def leave(self, alias: str) -> tuple[str, ...]:
        """Forget all that is known of an alias; return the keys of its servers."""
        with self.changed:
            keys = self.servers.keys(alias)
            self.servers.forget(alias)
            for key in keys:
                self._leave(key)
            self.breaker.forget(alias)
            return keys

    def _leave(self, key: str) -> None:
        self.readings, self.looks = without(self.readings, key), without(self.looks, key)
        self.ahead.discard(key)
        self.doubted.discard(key)
        self._born_at.pop(key, None)

    def note_endpoint(self, alias: str, *, is_led: bool = False) -> None:
        """Remember that an alias leads to several servers, or that a pooler leads each statement to any."""
        with self.changed:
            if alias not in self.readings:
                return
            is_new = alias not in self.servers.endpoints
            self.servers.note_endpoint(alias, is_led=is_led)
        if is_new:
            logger.info(
                "Replica %r leads to several servers: each is known by itself.",
                alias,
                extra=fields("endpoint_found", alias=alias),
            )
