"""What the page shows: values that its template puts in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils.formats import number_format
from django.utils.translation import gettext as _

from django_replica_router.conf import get_config
from django_replica_router.contrib.status.charts import (
    STYLES,
    draw_lags,
    draw_positions,
    draw_strips,
    kind_of,
    names_of,
)
from django_replica_router.contrib.status.sentences import told, told_of_count
from django_replica_router.policy import Reason
from django_replica_router.replicas.trail import Mark, Point
from django_replica_router.status.overview import Overview, Past, take_overview
from django_replica_router.status.reads import NOT_SHARED, Reads
from django_replica_router.status.servers import ClusterStatus, ServerStatus
from django_replica_router.status.serving import Trouble

REFRESHES = (5, 15, 60)
"""Seconds after which the page may be had to load itself again."""

FIGURES_EVERY = 30.0
"""Seconds from one row of the table of figures to the next."""

NOT_KNOWN = "-"

_RETRIES = ("retried_", "repeated_")


class Bar(NamedTuple):
    """A share of a whole.

    Args:
        name: of what.
        sentence: what that means; may be empty.
        number: how many.
        percent: of the whole, from 0 to 100.
    """

    name: str
    sentence: str
    number: int
    percent: float


class Count(NamedTuple):
    """How often something has happened.

    Args:
        name: as ``get_stats()`` gives it.
        sentence: what that means; may be empty.
        lately: in the last minute.
        ever: since each process has begun to count.
    """

    name: str
    sentence: str
    lately: int
    ever: int


def page_context(request: HttpRequest) -> dict[str, Any]:
    """Return what the template needs.

    Args:
        request: asks for the page.
    """
    overview = take_overview()
    reads = overview.reads
    return {
        "title": _("Replicas"),
        "refreshes": REFRESHES,
        "refresh": _refresh(request),
        "overview": overview,
        "verdict": overview.verdict,
        "troubles": [_trouble(one) for one in overview.verdict.reasons],
        "tiles": list(_tiles(overview)),
        "age": max((process.age for process in overview.processes), default=0.0),
        "why_alone": told(overview.why_alone),
        "is_not_shared": overview.why_alone == NOT_SHARED,
        "clusters": [
            {**_cluster(one, overview), "number": str(number)}
            for number, one in enumerate(overview.clusters, 1)
        ],
        "reasons": _reasons(reads.by_reason),
        "shadow_reasons": _reasons(reads.shadow_by_reason),
        "shadow_servers": _bars(reads.shadow_by_alias),
        "counts": [
            Count(name, told_of_count(name), overview.lately.get(name, 0), ever)
            for name, ever in overview.counts.items()
        ],
        "processes": overview.processes,
    }


def _refresh(request: HttpRequest) -> int | None:
    wanted = request.GET.get("refresh", "")
    return int(wanted) if wanted in map(str, REFRESHES) else None


def _trouble(trouble: Trouble) -> dict[str, str]:
    return {**trouble._asdict(), "sentence": told(trouble.sentence), "kind": kind_of(trouble.state)}


def _tiles(overview: Overview) -> Iterator[tuple[str, str]]:
    """Return the few figures that tell how it goes: each with what it is of."""
    servers = [server for one in overview.clusters for server in one.servers]
    replicas = [server for server in servers if server.role == "replica"]
    serving = sum(server.serves for server in replicas)
    yield (
        _("replicas in service"),
        _("%(serving)d of %(all)d") % {"serving": serving, "all": len(replicas)},
    )
    lags = [one.seconds_behind for one in replicas if one.seconds_behind is not None]
    yield _("furthest behind"), _seconds(max(lags, default=None))
    by_alias = overview.reads.by_alias
    total = sum(by_alias.values())
    away = sum(by_alias.get(alias, 0) for alias in {one.alias for one in replicas})
    yield _("of the reads on replicas"), f"{_number(100 * away / total)} %" if total else NOT_KNOWN
    yield _("reads in the last minute"), _number(total)
    retries = sum(n for name, n in overview.lately.items() if name.startswith(_RETRIES))
    yield _("retries in the last minute"), _number(retries)
    yield _("tokens written in the last minute"), _number(overview.lately.get("tokens_stored", 0))


def _cluster(cluster: ClusterStatus, overview: Overview) -> dict[str, Any]:
    past, aliases = overview.pasts[cluster.primary], [one.alias for one in cluster.servers]
    styles = {name: place % STYLES for place, name in enumerate(names_of(past.points))}
    lags = draw_lags(past.points, get_config().MAX_LAG)
    positions = draw_positions(past.points)
    return {
        "primary": cluster.primary,
        "servers": [
            _server(one, overview.reads, dict.fromkeys(aliases), styles) for one in cluster.servers
        ],
        "dissent": list(_dissent(cluster, overview)),
        "past": past,
        "lags": lags,
        "lags_top": _round_seconds(lags.top),
        "lags_middle": _round_seconds(lags.top / 2),
        "max_lag": _round_seconds(get_config().MAX_LAG),
        "positions": positions,
        "positions_top": filesizeformat(positions.top),
        "positions_middle": filesizeformat(positions.top / 2),
        "strips": draw_strips(past.points),
        "figures": _figures(past),
        "figure_names": names_of(past.points),
    }


def _server(
    server: ServerStatus, reads: Reads, aliases: Mapping[str, None], styles: Mapping[str, int]
) -> dict[str, Any]:
    share = reads.share(server.alias, aliases)
    behind = "" if server.bytes_behind is None else filesizeformat(server.bytes_behind)
    return {
        **server._asdict(),
        "sentence": told(server.sentence),
        "kind": kind_of(server.state),
        "style": styles.get(server.alias, 0),
        "seconds": "" if server.role == "primary" else _seconds(server.seconds_behind),
        "bytes": behind,
        "share": None if share is None else round(100 * share, 1),
    }


def _dissent(cluster: ClusterStatus, overview: Overview) -> Iterator[dict[str, Any]]:
    """Return the servers that some processes know to be in another state than this one does."""
    told_of = [process for process in overview.processes if process.conditions]
    for server in cluster.servers:
        others: dict[str, int] = {}
        for process in told_of:
            how = process.conditions.get(server.alias)
            if how is not None and how != server.state:
                others[how] = others.get(how, 0) + 1
        for how, number in sorted(others.items()):
            yield {
                "alias": server.alias,
                "condition": how,
                "number": number,
                "of": len(told_of),
                "kind": kind_of(how),
            }


def _reasons(numbers: Mapping[str, int]) -> list[Bar]:
    return [bar._replace(sentence=told(Reason[bar.name].value)) for bar in _bars(numbers)]


def _bars(numbers: Mapping[str, int]) -> list[Bar]:
    """Return the shares of a whole, the largest first."""
    total = sum(numbers.values())
    return [
        Bar(name, "", number, round(100 * number / total, 1))
        for name, number in sorted(numbers.items(), key=lambda item: -item[1])
        if number
    ]


def _figures(past: Past) -> list[dict[str, Any]]:
    """Return the figures of the drawings as rows, from now back, one every half a minute."""
    names, rows, last = names_of(past.points), [], None
    for point in reversed(past.points):
        if last is None or last - point.at >= FIGURES_EVERY:
            last = point.at
            ago = _seconds(-point.at, decimals=0)
            rows.append({"ago": ago, "cells": list(_cells(point, names))})
    return rows


def _cells(point: Point, names: Sequence[str]) -> Iterator[str]:
    primary = point.marks.get(names[0]) if names else None
    for name in names:
        yield _cell(point.marks.get(name), None if primary is None else primary.lsn)


def _cell(mark: Mark | None, lsn: int | None) -> str:
    if mark is None:
        return NOT_KNOWN
    parts = [mark.condition]
    if mark.seconds is not None:
        parts.append(_seconds(mark.seconds))
    if mark.seconds is not None and mark.lsn is not None and lsn is not None:
        parts.append(filesizeformat(max(0, lsn - mark.lsn)))
    return ", ".join(parts)


def _number(value: float) -> str:
    return number_format(round(value))


def _seconds(value: float | None, decimals: int = 1) -> str:
    return NOT_KNOWN if value is None else f"{number_format(value, decimals)} s"


def _round_seconds(value: float) -> str:
    return _seconds(value, decimals=0 if value == round(value) else 1)
