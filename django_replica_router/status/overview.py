"""All that is told of a site: its servers, now and in the last minutes, and what all processes have counted."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from django_replica_router.conf import Config, get_config
from django_replica_router.logs import logger
from django_replica_router.replicas.census import ProcessCounts, own_census
from django_replica_router.replicas.registry import find_trail, get_monitor
from django_replica_router.replicas.telling import point_now, read_trail
from django_replica_router.replicas.trail import WINDOW, Point
from django_replica_router.status.reads import Reads, read_told, sum_up
from django_replica_router.status.servers import ClusterStatus, are_met, describe
from django_replica_router.status.serving import Verdict, judge, needed_primaries

NOBODY = "no process has told of itself yet"

PATIENCE = 1.0
"""Seconds for which servers that this process has not met yet are waited for."""

_DECISIONS = ("reads_", "shadow_reads_")


class Past(NamedTuple):
    """How the servers of a cluster were in the last minutes, as one process has seen them.

    Args:
        process: its name.
        age: seconds since it has told so.
        points: the oldest first; their moments are seconds before now, negative or zero.
    """

    process: str
    age: float
    points: Sequence[Point]


class Process(NamedTuple):
    """What one process has told.

    Args:
        name: of its host, and its process id.
        age: seconds since it has told so.
        seconds: for which it had been counting.
        reads: that it has decided in the last minute.
        conditions: how it knows each server to be.
    """

    name: str
    age: float
    seconds: float
    reads: int
    conditions: Mapping[str, str]


class Overview(NamedTuple):
    """All of it.

    Args:
        verdict: whether the site can serve, by what this process knows.
        clusters: how each server is, by what this process knows.
        pasts: by the alias of the primary.
        why_alone: why what follows is of this process alone; empty where it is of all.
        processes: that have told of themselves.
        clocks_differ: a process has told of a moment that cannot be: its age is a guess.
        reads: first decisions of the last minute.
        lately: what else was counted in the last minute.
        counts: the same, since each process has begun to count.
    """

    verdict: Verdict
    clusters: Sequence[ClusterStatus]
    pasts: Mapping[str, Past]
    why_alone: str
    processes: Sequence[Process]
    clocks_differ: bool
    reads: Reads
    lately: Mapping[str, int]
    counts: Mapping[str, int]


def take_overview() -> Overview:
    """Return all of it."""
    config, now = get_config(), time.time()
    primaries = needed_primaries()
    clusters = list(map(_meet, primaries))
    told, why_alone = read_told(config)
    if not told:
        told, why_alone = [own_census.own()], why_alone or NOBODY
    return Overview(
        judge(primaries),
        clusters,
        {primary: _read_past(primary, config, now) for primary in primaries},
        why_alone,
        [_process(one, now) for one in told],
        any(one.has_another_clock(now) for one in told),
        sum_up(told),
        _others(one.lately for one in told),
        _others(one.counts for one in told),
    )


def _meet(primary: str) -> ClusterStatus:
    monitor = get_monitor(primary)
    monitor.waiting.wait_for(lambda: are_met(monitor) or None, PATIENCE)
    return describe(monitor)


def _read_past(primary: str, config: Config, wall: float) -> Past:
    """Return the last minutes as all processes tell them, or as this one has seen them."""
    clock = get_monitor(primary).clock
    if config.SHARE_COUNTS:
        try:
            told = read_trail(config.CACHE, primary)
        except Exception as error:  # whatever a cache backend raises
            logger.debug("The last minutes cannot be read from %r: %s", config.CACHE, error)
            told = None
        if told is not None:
            age = told.age(wall)
            points = [point for point in told.timed(age, 0.0) if point.at >= -WINDOW]
            return Past(told.name, age, points)
    trail, now = find_trail(primary), clock()
    seen = [] if trail is None else trail.points(now)
    present = point_now(get_monitor(primary))
    points = [point._replace(at=point.at - now) for point in seen]
    return Past(own_census.own().name, 0.0, [*points, present._replace(at=0.0)])


def _process(one: ProcessCounts, now: float) -> Process:
    reads = sum(sum_up([one]).by_reason.values())
    return Process(one.name, one.age(now), one.seconds, reads, one.conditions)


def _others(told: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of what was counted, but for decisions, which are told of by themselves."""
    counts: Counter[str] = Counter()
    for one in told:
        counts.update(one)
    return {name: n for name, n in sorted(counts.items()) if not name.startswith(_DECISIONS)}


def as_document(overview: Overview) -> dict[str, Any]:
    """Return it as values that JSON has.

    Args:
        overview: all of it.
    """
    return {
        "verdict": as_verdict(overview.verdict),
        "clusters": {
            cluster.primary: [server._asdict() for server in cluster.servers]
            for cluster in overview.clusters
        },
        "past": {primary: _as_past(past) for primary, past in overview.pasts.items()},
        "all_processes": not overview.why_alone,
        "why_alone": overview.why_alone,
        "clocks_differ": overview.clocks_differ,
        "processes": [
            one._replace(conditions=dict(one.conditions), age=round(one.age, 1))._asdict()
            for one in overview.processes
        ],
        "reads": overview.reads._asdict(),
        "counts": {"last_minute": overview.lately, "since_start": overview.counts},
    }


def as_verdict(verdict: Verdict) -> dict[str, Any]:
    """Return whether the site can serve as values that JSON has.

    Args:
        verdict: whether it can.
    """
    age = None if verdict.age is None else round(verdict.age, 1)
    reasons = [trouble._asdict() for trouble in verdict.reasons]
    return {"serve": verdict.serve, "age": age, "reasons": reasons}


def _as_past(past: Past) -> dict[str, Any]:
    return {
        "process": past.process,
        "age": round(past.age, 1),
        "points": [
            {
                "seconds": round(point.at, 1),
                "timeline": point.timeline,
                "servers": {key: mark._asdict() for key, mark in point.marks.items()},
            }
            for point in past.points
        ],
    }
