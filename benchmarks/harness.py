"""What a benchmark is, how contenders take turns, and how results are kept.

A benchmark is a module of this package, named in ``MODULES``, with a ``BENCHMARK``::

    BENCHMARK = Benchmark("decision", measures="...", target="...", run=run)

    def run(options: Options) -> Result: ...

``run`` starts the servers that it needs, lets the contenders take turns by ``take_turns``, and
returns tables, plots and notes. It never asserts a time.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.figures import Cell, Spread

Key = TypeVar("Key")
Value = TypeVar("Value")

MODULES = (
    "decision",
    "request",
    "costing",
    "calls",
    "roundtrips",
    "offload",
    "sites",
    "freshness",
    "scaling",
    "growth",
    "failover",
)
"""The benchmarks in the order of the report; one whose module is absent is left out."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run.

    Args:
        quick: as little of everything as shows that it works. The figures mean nothing.
        rounds: how often each contender takes its turn.
        seed: what the order of turns is drawn from.
        beside: a checkout of another build of the package, for benchmarks that can measure it as well.
    """

    quick: bool = False
    rounds: int = 5
    seed: int = 1
    beside: Path | None = None

    def pick(self, full: Value, quick: Value) -> Value:
        """Return the first, or in the quick form the second."""
        return quick if self.quick else full

    def log(self, text: str) -> None:
        """Tell whoever waits what goes on."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@dataclass(slots=True)
class Table:
    """A table of the report.

    Args:
        title: what it shows, with the unit.
        columns: the headings; by custom the first two are the contender and the case.
        rows: one cell for each column.
        note: a sentence below the table.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    note: str = ""

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        if len(cells) != len(self.columns):
            message = f"{len(cells)} cells do not fit {len(self.columns)} columns: {cells!r}."
            raise ValueError(message)
        self.rows.append(list(cells))


@dataclass(slots=True)
class Plot:
    """A plot of the report.

    Args:
        slug: what the file is called after the benchmark's name.
        series: by name, the points (x, median, low, high), or for bars one such point for each
            of ``ticks``.
        kind: "line", or "bar" with groups named by ``ticks``.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
    """

    slug: str
    title: str
    x_label: str
    y_label: str
    series: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)
    kind: str = "line"
    ticks: list[str] = field(default_factory=list)
    log: str = ""

    def add(self, name: str, x: float, y: Spread | float) -> None:
        """Add a point to a series."""
        known = y if isinstance(y, Spread) else Spread(y, y, y, 1)
        self.series.setdefault(name, []).append((x, known.median, known.low, known.high))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a target was reached, by which figure. None where it could not be measured."""

    target: str
    figure: str
    reached: bool | None


@dataclass(slots=True)
class Result:
    """What a benchmark has found.

    Args:
        tables: the figures.
        plots: what shows them.
        verdicts: the targets beside what was measured.
        notes: paragraphs of Markdown: how it was measured, and why a figure falls short.
        left_out: contenders that could not take part, with the reason.
    """

    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark.

    Args:
        name: what the command line calls it.
        measures: one sentence.
        target: what the project wants to reach.
        run: measures, and returns what it has found.
    """

    name: str
    measures: str
    target: str
    run: Callable[[Options], Result]


def find_benchmarks() -> dict[str, Benchmark]:
    """Return the benchmarks that there are, by name, in the order of the report."""
    found: dict[str, Benchmark] = {}
    for name in MODULES:
        path = f"benchmarks.{name}"
        if importlib.util.find_spec(path) is not None:
            found[name] = importlib.import_module(path).BENCHMARK
    return found


def take_turns(
    contenders: Sequence[Key],
    measure: Callable[[Key], Value],
    *,
    rounds: int,
    seed: int = 1,
) -> dict[Key, list[Value]]:
    """Measure each contender once in each round, in an order drawn anew for each round.

    So what changes on the machine over minutes meets all of them, and none always follows the
    same other.
    """
    draw = random.Random(seed)
    values: dict[Key, list[Value]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender in draw.sample(contenders, len(contenders)):
            values[contender].append(measure(contender))
    return values


def to_json(benchmark: Benchmark, options: Options, result: Result, seconds: float) -> Any:
    """Return what JSON can hold of a result."""
    return {
        "name": benchmark.name,
        "measures": benchmark.measures,
        "target": benchmark.target,
        "quick": options.quick,
        "rounds": options.rounds,
        "seconds": round(seconds, 1),
        "tables": [
            {
                "title": table.title,
                "columns": table.columns,
                "rows": [[_cell_to_json(cell) for cell in row] for row in table.rows],
                "note": table.note,
            }
            for table in result.tables
        ],
        "plots": [
            {name: getattr(plot, name) for name in Plot.__dataclass_fields__}
            for plot in result.plots
        ],
        "verdicts": [[item.target, item.figure, item.reached] for item in result.verdicts],
        "notes": result.notes,
        "left_out": result.left_out,
    }


def from_json(document: Mapping[str, Any]) -> Result:
    """Return the result that ``to_json`` has written."""
    return Result(
        tables=[
            Table(
                table["title"],
                table["columns"],
                [[_cell_from_json(cell) for cell in row] for row in table["rows"]],
                table["note"],
            )
            for table in document["tables"]
        ],
        plots=[Plot(**plot) for plot in document["plots"]],
        verdicts=[Verdict(*item) for item in document["verdicts"]],
        notes=document["notes"],
        left_out=document["left_out"],
    )


def _cell_to_json(cell: Cell) -> Any:
    return cell.to_json() if isinstance(cell, Spread) else cell


def _cell_from_json(cell: Any) -> Cell:
    return Spread.from_json(cell) if isinstance(cell, dict) else cell
