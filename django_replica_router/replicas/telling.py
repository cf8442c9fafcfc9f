"""What this process knows and has counted, noted every few seconds, and told to the others."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable

from django.db import connections

from django_replica_router.conf import get_config
from django_replica_router.logs import logger
from django_replica_router.policy import Replica
from django_replica_router.replicas.census import EVERY, own_census, process_name
from django_replica_router.replicas.ending import EndingThread, jittered
from django_replica_router.replicas.entries import Entries, open_entries
from django_replica_router.replicas.health import PRIMARY, condition
from django_replica_router.replicas.monitor import Monitor
from django_replica_router.replicas.trail import WINDOW, Mark, Point, ToldTrail, Trail

_TURN_LIFE = round(3 * EVERY)
_TRAIL_LIFE = round(WINDOW)


class Trails:
    """Whether processes keep how servers were in the last minutes: an app that shows it says so."""

    are_kept = False


class Teller(EndingThread):
    """Notes how the servers of a cluster are, and tells that and what was counted, again and again.

    Args:
        monitor: looks at them.
        cache: alias of the cache through which it tells, or None where nobody is to be told.
    """

    def __init__(self, monitor: Monitor, cache: str | None) -> None:
        super().__init__("replica-router-census")
        self.monitor = monitor
        self.cache = cache
        self.trail = Trail()
        self._turn = _Turn(monitor.primary)

    def run(self) -> None:
        while not self._ended.wait(jittered(EVERY)):
            try:
                self.tell()
            except Exception as error:  # whatever a cache backend raises: nobody depends on it
                logger.debug("What was counted cannot be told through %r: %s", self.cache, error)
        connections.close_all()  # those of this thread, where the cache is in a database

    def tell(self) -> None:
        """Note how the servers are now, and tell it. All that the cache raises is raised."""
        point = point_now(self.monitor)
        conditions = {key: mark.condition for key, mark in point.marks.items()}
        own_census.note_conditions(self.monitor.primary, conditions)
        if Trails.are_kept:
            self.trail.add(point)
        own_census.tell(self.cache)
        if Trails.are_kept and self.cache is not None:
            self._turn.tell(open_entries(self.cache), self.trail, self.monitor.clock)


class _Turn:
    """One process at a time tells how servers were; another takes its place when it is gone.

    Args:
        primary: alias of the primary of the cluster.
    """

    def __init__(self, primary: str) -> None:
        self._id = secrets.token_hex(8)
        self._turn_key, self._trail_key = f"rr-trail-turn:{primary}", _trail_key(primary)

    def tell(self, entries: Entries, trail: Trail, clock: Callable[[], float]) -> None:
        """Tell the trail where it is this process's turn."""
        (owner,) = entries.read([self._turn_key])
        if owner is None:
            if not entries.add(self._turn_key, self._id, _TURN_LIFE):
                return
            self._follow_on(entries, trail, clock)
        elif owner != self._id:
            return
        else:
            entries.write(self._turn_key, self._id, _TURN_LIFE)
        now = clock()
        points = [point._replace(at=point.at - now) for point in trail.points(now)]
        told = ToldTrail(process_name(), time.time(), points)
        entries.write(self._trail_key, told.encode(), _TRAIL_LIFE)

    def _follow_on(self, entries: Entries, trail: Trail, clock: Callable[[], float]) -> None:
        told = ToldTrail.decode(entries.read([self._trail_key])[0])
        if told is not None:
            trail.follow_on(told.timed(told.age(time.time()), clock()))


def read_trail(cache: str, primary: str) -> ToldTrail | None:
    """Return what was told of the last minutes of a cluster, or None. What the cache raises is raised.

    Args:
        cache: alias of the cache.
        primary: alias of the primary.
    """
    return ToldTrail.decode(open_entries(cache).read([_trail_key(primary)])[0])


def _trail_key(primary: str) -> str:
    return f"rr-trail:{primary}"


def point_now(monitor: Monitor) -> Point:
    """Return how the servers of a cluster are at this moment, as a monitor knows it. It asks nobody."""
    known, max_lag = monitor.known, get_config().MAX_LAG
    how = monitor.health.primary_condition()
    samples = known.history.samples
    is_known = how == PRIMARY and bool(samples)
    marks = {monitor.primary: Mark(how, None, samples[-1].position.lsn if is_known else None)}
    for alias in known.aliases:
        for key in monitor.servers.keys(alias):
            marks[key] = _mark(monitor.health.of_key(alias, key), max_lag)
    return Point(monitor.clock(), known.history.timeline if is_known else None, marks)


def _mark(replica: Replica, max_lag: float) -> Mark:
    return Mark(
        condition(replica, max_lag),
        replica.age if math.isfinite(replica.age) else None,
        replica.watermark if replica.watermark >= 0 else None,
    )
