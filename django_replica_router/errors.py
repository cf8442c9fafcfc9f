"""Exceptions of the package."""

from __future__ import annotations


class ReplicaRouterError(Exception):
    """Base of all exceptions of this package. Do not raise directly."""


class ConfigurationError(ReplicaRouterError, ValueError):
    """A setting or an argument is not what it should be."""


class StoreError(ReplicaRouterError):
    """The token store could not be read or written."""


class PositionError(ReplicaRouterError):
    """A server did not tell its WAL position in a usable form."""
