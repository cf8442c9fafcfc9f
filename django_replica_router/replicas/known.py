"""What is known of the servers of a cluster, told by whoever looks at them."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.breaker import Breaker
from django_replica_router.replicas.history import History
from django_replica_router.replicas.looks import Looks
from django_replica_router.replicas.news import News, tell_remark
from django_replica_router.replicas.postgres import ServerIdentity
from django_replica_router.replicas.readings import Reading
from django_replica_router.values.servers import Life, Servers, without

logger = logging.getLogger("django_replica_router")

UNKNOWN = Reading()

_UNWATCHED_KEPT = 64


class Known:
    """Readings of the servers, and samples of the primary.

    Readings are frozen values in a dict and may be read without a lock. They go by the keys of
    ``Servers``: an alias that leads to one server has one reading, which goes by the alias.

    Args:
        aliases: of the replicas that requests go to.
    """

    def __init__(
        self,
        primary: str,
        aliases: Sequence[str],
        interval: float,
        clock: Callable[[], float],
    ) -> None:
        self.primary = primary
        self.aliases = tuple(aliases)
        self.interval = interval
        self.clock = clock
        self.stopped = False
        self.servers = Servers()
        self.history = History()
        self.breaker = Breaker(clock)
        self.primary_looks = Looks(primary, primary, clock)
        self.changed = threading.Condition()
        # These two are replaced where servers come or go: others go through them without the lock.
        self.looks: Mapping[str, Looks] = {}
        self.readings: dict[str, Reading] = {}
        self.unwatched: deque[str] = deque(maxlen=_UNWATCHED_KEPT)
        """Keys by which no looks go, and for which somebody may wait: of scouts, and of servers that were
        dropped."""
        self.ahead: set[str] = set()
        self.doubted: set[str] = set()
        """The replicas that failed here, where only a look of this process's own counts."""
        self._born_at: dict[str, float] = {}
        self._news: list[News] = []
        # Until when somebody else sees to a server, so that its poller may rest.
        self.told: Mapping[str, float] = {}

    @property
    def primary_identity(self) -> ServerIdentity | None:
        """Which server the primary's alias reaches, or None before the first sample."""
        return self.primary_looks.identity if self.history.samples else None

    @property
    def primary_is_down(self) -> bool:
        """The last attempt to sample the primary has failed, or has been waiting for too long."""
        return self.primary_looks.failures > 0 or self.primary_looks.is_waiting

    def reading(self, key: str | None) -> Reading:
        """Return what is known of a server, which may have left a moment ago."""
        return UNKNOWN if key is None else self.readings.get(key, UNKNOWN)

    def refresh(self, max_lag: float) -> None:
        """Have the primary sampled now, if the last sample is too old to prove so small a lag."""
        if self.clock() - self.history.sampled_at > max_lag / 4:
            self.primary_looks.poke()

    def is_told(self, key: str) -> bool:
        """Tell whether a look at a server can wait, since somebody else sees to it.

        Who looks at a replica samples the primary as well: that a replica is ahead shows only
        where both moments are known well.
        """
        if self.servers.alias_of(key) in self.servers.endpoints:
            return False  # each process looks at its servers itself
        is_told = self.clock() < self.told.get(key, -math.inf)
        if key != self.primary:
            return is_told and key not in self.doubted
        return is_told and all(
            self.is_told(replica)
            for replica, reading in self.readings.items()
            if reading.state is ReplicaState.STREAMING
        )

    def take(self, key: str, reading: Reading) -> None:
        """Take a reading into account, of whomever it is. The caller holds the lock."""
        old = self.reading(key)
        reading = reading._replace(told_at=self.clock())
        if key in self.ahead:
            reading = reading._replace(state=ReplicaState.AHEAD)
        elif reading.watermark < self.history.baseline:
            reading = reading._replace(state=ReplicaState.UNKNOWN)
        if reading.state is ReplicaState.STREAMING:
            watermark = max(old.watermark, reading.watermark)
            known, born_at = max(old.fresh_at, reading.fresh_at), self._born_at.get(key, -math.inf)
            fresh_at = self.history.fresh_at(watermark, known, born_at)
            reading = reading._replace(watermark=watermark, fresh_at=fresh_at)
        else:
            reading = reading._replace(watermark=-1)
        self.set(key, reading)

    def forget(self, alias: str, life: Life | None = None) -> None:
        """Forget what a replica had replayed: it is not the server that it was, but begins that life."""
        with self.changed:
            if alias not in self.readings:
                return
            self.breaker.close(alias)
            self.ahead.discard(alias)
            # What others tell may be of the server that it was: a look of one's own comes first.
            self.doubted.add(alias)
            self._born_at[alias] = self.clock()
            self.readings[alias] = Reading(self.readings[alias].state)
            if life is not None:  # at last: who sees the new life sees nothing of the one before
                self.servers.begin_life(alias, life)

    def lose(self, key: str, state: ReplicaState, error: Exception | str) -> None:
        """Take a replica out, until a look at it succeeds."""
        with self.changed:
            if key not in self.readings:
                return
            self.doubted.add(key)
            if (self.readings[key].state, state) == (ReplicaState.SILENT, ReplicaState.UNREACHABLE):
                state = ReplicaState.SILENT  # its connection was ended because of that
            self.set(key, Reading(state, read_at=self.clock()), str(error))
        self.announce()

    # Which servers there are.

    def add(self, alias: str, life: Life) -> str:
        """Add a further server behind an alias, and return its key. The caller holds the lock."""
        self.note_endpoint(alias)
        key = self.servers.add(alias, life)
        # It serves once it has what the primary has now.
        self._born_at[key] = self.clock()
        self.readings = {**self.readings, key: UNKNOWN}
        self.refresh(0.0)
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
            self.servers.endpoints |= {alias}
            if is_led:
                self.servers.led |= {alias}
        if is_new:
            logger.info(
                "Replica %r leads to several servers: each is known by itself.",
                alias,
                extra={"event": "endpoint_found", "alias": alias},
            )

    # Telling the site.

    def set(self, key: str, reading: Reading, detail: str = "") -> None:
        """Put a reading in the place of the one before. The caller holds the lock, and announces."""
        old = self.readings.get(key)
        if old is None:
            return  # it has left meanwhile
        if reading.state is not old.state:
            self._news.append(News(key, old.state, reading.state, detail or reading.remark))
        tell_remark(key, old, reading, self.primary)
        self.readings[key] = reading

    def announce(self) -> None:
        """Tell what is new.

        Outside the lock: who listens may take his time. So several threads may be at it. One that
        hung when the monitor was stopped has no news of the one that came after it.
        """
        while not self.stopped:
            try:
                news = self._news.pop(0)
            except IndexError:
                return
            alias = self.servers.alias_of(news.key)
            others = (key for key in self.servers.keys(alias) if key != news.key)
            has_another = any(self.reading(key).state is ReplicaState.STREAMING for key in others)
            news.tell(alias, self.primary, has_another=has_another)
