"""Exceptions of the package."""

from __future__ import annotations


class ReplicaRouterError(Exception):
    """Base of all exceptions of this package. Do not raise directly."""


class ConfigurationError(ReplicaRouterError, ValueError):
    """A setting or an argument is not what it should be."""


class StoreError(ReplicaRouterError):
    """The token store could not be read or written."""


class ReplicasLagError(ReplicaRouterError):
    """No replica may serve a read, and the share of reads for the primary is used up.

    The middleware answers 503 where a view raises it.
    """


class StaleSaveError(ReplicaRouterError):
    """An object that was read from a replica was about to be saved, and ``STALE_SAVES`` forbids it."""


class PositionError(ReplicaRouterError):
    """A server did not tell its WAL position in a usable form."""


def tell_import_failure(key: str, path: str, error: ImportError) -> str:
    """Return what to say where the dotted path in a setting cannot be imported."""
    return f"REPLICA_ROUTER[{key!r}] names {path!r}, which cannot be imported: {error}."
