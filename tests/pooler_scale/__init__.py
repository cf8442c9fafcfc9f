"""Thousands of clients, all connected at once, over few server connections through PgBouncer."""

from __future__ import annotations
