"""Notes, tags, comments and an audit table: enough of a site to read and write."""

from __future__ import annotations
