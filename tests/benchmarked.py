"""What tests of benchmarks have in common."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Table


def rows(table: Table) -> list[dict[str, Any]]:
    """Return the rows by heading."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
