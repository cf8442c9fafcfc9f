"""Drives a real site on real servers through faults, and checks every read: `python -m tests.torture`."""

from __future__ import annotations
