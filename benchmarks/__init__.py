"""Measures the package beside other ways of routing: `python -m benchmarks`."""

from __future__ import annotations
