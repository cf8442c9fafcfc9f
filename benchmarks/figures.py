"""Figures with their spread, and ratios of what was measured side by side."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, with the smallest and the largest value."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of the values of several rounds."""
        known = sorted(values)
        if not known:
            message = "A spread needs at least one value."
            raise ValueError(message)
        return cls(statistics.median(known), known[0], known[-1], len(known))

    @classmethod
    def of_ratios(cls, values: Sequence[float], bases: Sequence[float]) -> Spread:
        """Return the spread of the ratios, each taken within one round.

        Values of one round were measured within seconds of each other, so that what disturbs the
        machine for a minute disturbs both sides.
        """
        pairs = zip(values, bases, strict=True)
        return cls.of(value / base if base else math.inf for value, base in pairs)

    def scaled(self, factor: float) -> Spread:
        """Return the spread in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.rounds)

    def to_json(self) -> dict[str, float]:
        """Return what JSON can hold."""
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "rounds": self.rounds,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Spread:
        """Return the spread that ``to_json`` has written."""
        return cls(document["median"], document["low"], document["high"], document["rounds"])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    known = sorted(values)
    return known[max(0, math.ceil(share * len(known)) - 1)]


def text_of(value: float) -> str:
    """Return a number with three significant digits, without exponent."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def cell_text(cell: Cell) -> str:
    """Return what stands in a cell."""
    if cell is None:
        return "-"
    if isinstance(cell, Spread):
        if cell.low == cell.high:
            return text_of(cell.median)
        return f"{text_of(cell.median)} ({text_of(cell.low)}-{text_of(cell.high)})"
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    return f"{cell:,}" if isinstance(cell, int) else text_of(cell)


Cell = str | int | float | Spread | None
"""What stands in a table. None is printed as a dash: not measured."""
