"""Two common ways of routing reads, to compare the package with."""

from __future__ import annotations
