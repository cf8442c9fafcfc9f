"""One module for each command, by its name."""

from __future__ import annotations
