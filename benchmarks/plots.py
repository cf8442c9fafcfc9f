"""Draws plots as SVG."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from benchmarks.contenders import BY_NAME
from benchmarks.harness import Plot

_TICK_WIDTH = 14
_NAMES = list(BY_NAME)


def draw(plot: Plot, path: Path) -> None:
    """Write a plot to an SVG file, the same bytes for the same figures."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(7.0, 3.6), layout="constrained")
        try:
            (_draw_bars if plot.kind == "bar" else _draw_lines)(plot, axes)
            axes.set_title(plot.title, loc="left")
            axes.set_xlabel(plot.x_label)
            axes.set_ylabel(plot.y_label)
            axes.grid(axis="y", alpha=0.3)
            if len(plot.series) > 1:
                axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
            figure.savefig(path, format="svg", metadata={"Date": None})
        finally:
            pyplot.close(figure)


def _draw_lines(plot: Plot, axes: Any) -> None:
    _set_scales(plot, axes)
    for name, points in plot.series.items():
        xs, middle, low, high = zip(*points, strict=True)
        [line] = axes.plot(xs, middle, marker="o", markersize=3, label=name, color=_colour(name))
        axes.fill_between(xs, low, high, alpha=0.15, color=line.get_color())
    if "y" not in plot.log:
        axes.set_ylim(bottom=0)


def _set_scales(plot: Plot, axes: Any) -> None:
    """Make axes logarithmic as the plot says, with a linear part where there is a 0 to show."""
    points = [point for series in plot.series.values() for point in series]
    if "x" in plot.log:
        axes.set_xscale("log" if all(point[0] > 0 for point in points) else "symlog")
    if "y" in plot.log:
        axes.set_yscale("log" if all(min(point[1:]) > 0 for point in points) else "symlog")


def _draw_bars(plot: Plot, axes: Any) -> None:
    _set_scales(plot, axes)
    width = 0.8 / max(1, len(plot.series))
    for number, (name, points) in enumerate(plot.series.items()):
        xs = [x + (number - (len(plot.series) - 1) / 2) * width for x, *_ in points]
        middle = [point[1] for point in points]
        errors = [
            [max(0.0, point[1] - point[2]) for point in points],
            [max(0.0, point[3] - point[1]) for point in points],
        ]
        style = {"color": _colour(name), "error_kw": {"linewidth": 0.8}}
        axes.bar(xs, middle, width, yerr=errors, label=name, **style)
    ticks = [textwrap.fill(tick, _TICK_WIDTH) for tick in plot.ticks]
    axes.set_xticks(range(len(ticks)), ticks)


def _colour(name: str) -> Any:
    """Return the same colour for the same contender in every plot, else None for the next one."""
    from matplotlib import colormaps

    return colormaps["tab20"](_NAMES.index(name)) if name in _NAMES else None
