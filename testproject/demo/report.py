"""Says what a run has shown: as a table, as a document, and in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from testproject.demo.run import Cell, Plan
from testproject.demo.tally import Tally, percentile_ms, replica_share, total

TITLES = {"random": "random", "pin": "15 s pin", "package": "package"}
COLUMNS = ["lag", "reads", "replicas", "quiet", "stale", "log-outs", "errors", "p50", "p95"]
CAPTION = (
    "Times in ms. replicas: reads that replicas served; "
    "quiet: the same, of users who had written nothing for longer than the lag."
)
TARGET_SHARE = 0.95


def failures(cells: Iterable[Cell]) -> list[str]:
    """Return a sentence for each thing that makes the run a failure."""
    cells = list(cells)
    package = total(cell.tally for cell in cells if cell.routing == "package")
    control = total(cell.tally for cell in cells if cell.routing == "random" and cell.lag_ms)
    counted = {
        "stale read": package.stale.total(),
        "unexpected log-out": package.logouts,
        "error": package.errors,
    }
    sentences = [
        f"This package had {number} {what}{'s' if number > 1 else ''}."
        for what, number in counted.items()
        if number
    ]
    if not control.stale.total():
        sentences.append(
            "The random router had no stale read at a lag above 0, so the run proves nothing."
        )
    return sentences


def examples(cells: Iterable[Cell]) -> list[str]:
    """Return the first things that went wrong with the package, one sentence each."""
    return total(cell.tally for cell in cells if cell.routing == "package").examples


def document(plan: Plan, cells: list[Cell]) -> dict[str, Any]:
    """Return everything as plain values."""
    failed = failures(cells)
    return {
        "ok": not failed,
        "failures": failed,
        "target_share": TARGET_SHARE,
        "seconds": plan.seconds,
        "users": plan.users,
        "workers": plan.workers,
        "replicas": plan.replicas,
        "seed": plan.seed,
        "cells": [
            {"routing": cell.routing, "lag_ms": cell.lag_ms, **_figures(cell.tally)}
            for cell in cells
        ],
    }


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "reads": len(tally.read_seconds),
        "writes": len(tally.write_seconds),
        "replica_share": _rounded(replica_share(tally.served)),
        "replica_share_quiet": _rounded(replica_share(tally.served_quiet)),
        "stale_reads": tally.stale.total(),
        "stale_reads_older_than_written": tally.stale["own"],
        "stale_reads_older_than_seen": tally.stale["seen"],
        "logouts": tally.logouts,
        "errors": tally.errors,
        "read_p50_ms": percentile_ms(tally.read_seconds, 50),
        "read_p95_ms": percentile_ms(tally.read_seconds, 95),
        "write_p50_ms": percentile_ms(tally.write_seconds, 50),
        "write_p95_ms": percentile_ms(tally.write_seconds, 95),
        "queries": dict(sorted(tally.served.items())),
        "workers_seen": len(tally.workers),
        "examples": tally.examples,
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def table(cells: Iterable[Cell]) -> Table:
    """Return the table for a terminal."""
    result = Table(title="What visitors saw", caption=CAPTION, box=SIMPLE_HEAD, padding=0)
    result.add_column("routing")
    for heading in COLUMNS:
        result.add_column(heading, justify="right")
    for routing, group in groupby(cells, key=lambda cell: cell.routing):
        result.add_section()
        for cell in group:
            result.add_row(TITLES[routing], *_row(cell))
    return result


def _row(cell: Cell) -> list[str]:
    tally = cell.tally
    return [
        str(cell.lag_ms),
        str(len(tally.read_seconds)),
        _percent(replica_share(tally.served)),
        _percent(replica_share(tally.served_quiet)),
        _alarming(tally.stale.total()),
        _alarming(tally.logouts),
        _alarming(tally.errors),
        str(percentile_ms(tally.read_seconds, 50)),
        str(percentile_ms(tally.read_seconds, 95)),
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _alarming(number: int) -> str:
    return f"[red]{number}[/red]" if number else "[green]0[/green]"
