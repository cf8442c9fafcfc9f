"""Writes results as a Markdown page with plots."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.contenders import ALL, UNFIT
from benchmarks.figures import cell_text
from benchmarks.harness import MODULES, Result, Table, from_json
from benchmarks.plots import draw

PAGE = "performance.md"
PLOTS = "performance"

# Written by hand: what a figure is, a machine can tell; why it is so, it cannot.
_SHORTFALLS = Path(__file__).with_name("shortfalls.md")


def write_report(documents: Mapping[str, Any], directory: Path) -> Path:
    """Write the page and its plots into a directory, and return the path of the page."""
    plots = directory / PLOTS
    plots.mkdir(parents=True, exist_ok=True)
    results = {name: from_json(documents[name]) for name in MODULES if name in documents}
    for name, result in results.items():
        for plot in result.plots:
            draw(plot, plots / f"{name}-{plot.slug}.svg")
    page = directory / PAGE
    page.write_text(render(documents, results))
    return page


def render(documents: Mapping[str, Any], results: Mapping[str, Result]) -> str:
    """Return the page."""
    parts = [
        "# Performance",
        "Every contender is measured in the same run, in turns whose order is drawn anew for each "
        "round. A figure is the median of the rounds, with the smallest and the largest in "
        "brackets; a ratio is taken within each round. What falls short is here too.",
        *_quick_warning(documents),
        "## Targets",
        _verdicts(results),
        _SHORTFALLS.read_text(encoding="utf-8").rstrip(),
        "## Contenders",
        _contenders(),
        *(part for name, result in results.items() for part in _section(documents[name], result)),
        "## Machine and versions",
        _runs(documents),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _quick_warning(documents: Mapping[str, Any]) -> list[str]:
    names = [name for name, document in documents.items() if document["quick"]]
    if not names:
        return []
    return [f"**From the quick form, whose figures mean nothing: {', '.join(names)}.**"]


def _verdicts(results: Mapping[str, Result]) -> str:
    table = Table("", ["benchmark", "target", "measured", "reached"])
    words = {True: "yes", False: "**no**", None: "not measured"}
    for name, result in results.items():
        for item in result.verdicts:
            table.add(name, item.target, item.figure, words[item.reached])
    return markdown_table(table)


def _contenders() -> str:
    table = Table("", ["name", "what it does", "version"])
    for contender in ALL:
        known = None if contender.missing else contender.version
        table.add(f"`{contender.name}`", contender.title, known or None)
    unfit = [f"Not compared: {name}, which {reason}." for name, reason in UNFIT.items()]
    return "\n\n".join([markdown_table(table), *unfit])


def _section(document: Mapping[str, Any], result: Result) -> list[str]:
    name = document["name"]
    parts = [f"## {name}", document["measures"], f"Target: {document['target']}"]
    for table in result.tables:
        parts += [f"**{table.title}**", markdown_table(table), table.note]
    parts += [f"![{plot.title}]({PLOTS}/{name}-{plot.slug}.svg)" for plot in result.plots]
    parts += result.notes
    if result.left_out:
        reasons = "; ".join(f"`{who}`: {why}" for who, why in result.left_out.items())
        parts.append(f"Not measured here: {reasons}.")
    return parts


def markdown_table(table: Table) -> str:
    """Return the table in Markdown."""
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|" + "---|" * len(table.columns),
        *("| " + " | ".join(map(cell_text, row)) + " |" for row in table.rows),
    ]
    return "\n".join(lines)


def _runs(documents: Mapping[str, Any]) -> str:
    """Return what each run was made on, together where several were made on the same."""
    groups: dict[str, list[str]] = {}
    for name, document in documents.items():
        run = document["run"]
        machine = run["machine"]
        text = "\n".join(
            [
                f"- Machine: {machine['processor']}, {machine['cores']} cores for everything, "
                f"{machine['memory_gb']} GB, {machine['system']}",
                f"- Commit: {run['commit']}, {run['date']}",
                f"- Command: `{run['command']}`",
                "- Versions: "
                + ", ".join(f"{key} {value}" for key, value in run["versions"].items()),
            ]
        )
        groups.setdefault(text, []).append(name)
    return "\n\n".join(f"{', '.join(names)}:\n\n{text}" for text, names in groups.items())
