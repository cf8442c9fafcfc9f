"""What a visitor of the window is told instead of what was asked for."""

from __future__ import annotations


class WindowError(Exception):
    """Base class. Do not raise directly."""


class UnknownError(WindowError):
    """There is no such server, action or story."""


class RefusedError(WindowError):
    """What was asked for cannot be done now."""
