"""What is new of a replica, told to the site: by the log, and by signals."""

from __future__ import annotations

import threading
from typing import NamedTuple

from django_replica_router import signals
from django_replica_router.logs import fields, logger
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.mirrors import is_test_mirror
from django_replica_router.replicas.readings import Reading
from django_replica_router.values.servers import Servers

UNKNOWN = Reading()


class News(NamedTuple):
    """A server is in another state than before."""

    key: str
    before: ReplicaState
    state: ReplicaState
    detail: str

    def tell(self, alias: str, primary: str, *, has_another: bool) -> None:
        """Tell it. Signals tell of aliases: not where another server behind the alias serves."""
        if self.state is ReplicaState.STREAMING:
            logger.info(
                "Replica %r serves.",
                self.key,
                extra=fields("replica_restored", alias=alias, server=self.key, primary=primary),
            )
            if not has_another:
                signals.replica_restored.send_robust(sender=alias)
        elif self.state is ReplicaState.PRIMARY and is_test_mirror(alias, primary):
            logger.debug("Replica %r is a mirror, as in every test run.", alias)
        else:
            logger.warning(
                "Replica %r does not serve: %s",
                self.key,
                f"{self.state.value}. {self.detail}".rstrip(),
                extra=fields(
                    "replica_lost",
                    alias=alias,
                    server=self.key,
                    primary=primary,
                    state=self.state.name,
                ),
            )
            if self.before is ReplicaState.STREAMING and not has_another:
                # Else there is only another reason.
                signals.replica_lost.send_robust(sender=alias, state=self.state)


def tell_remark(key: str, old: Reading, reading: Reading, primary: str) -> None:
    """Tell what is unusual about a server, where that is new."""
    # The news of one that does not serve tells it as well.
    is_told = reading.state not in (old.state, ReplicaState.STREAMING)
    if reading.remark != old.remark and not is_told and not is_test_mirror(key, primary):
        logger.warning(
            "Replica %r: %s.",
            key,
            reading.remark or "nothing unusual any more",
            extra=fields("replica_remark", server=key, primary=primary, remark=reading.remark),
        )


class Latest:
    """The latest reading of each server. Tells the site what is new in it.

    Readings are frozen values in a dict and may be read without a lock. They go by the keys of
    ``Servers``: an alias that leads to one server has one reading, which goes by the alias.

    Args:
        primary: alias of the primary.
    """

    def __init__(self, primary: str) -> None:
        self.primary = primary
        self.stopped = False
        self.changed = threading.Condition()
        self.servers = Servers()
        # Replaced where servers come or go: others go through it without the lock.
        self.readings: dict[str, Reading] = {}
        self._news: list[News] = []

    def reading(self, key: str | None) -> Reading:
        """Return what is known of a server, which may have left a moment ago."""
        return UNKNOWN if key is None else self.readings.get(key, UNKNOWN)

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
