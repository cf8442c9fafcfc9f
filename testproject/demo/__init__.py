"""Drives users over real HTTP against the project and counts what they saw."""

from __future__ import annotations
