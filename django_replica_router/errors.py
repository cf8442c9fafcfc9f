"""Exceptions of the package."""

from __future__ import annotations

import math
from collections.abc import Mapping


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


class TooStale(ReplicasLagError):  # noqa: N818 - a state of the replicas, as Http404 is one of a page
    """No replica has what is asked for, and the code has asked not to have the primary instead.

    Args:
        message: what was asked for.
        replicas: of each replica that is late the seconds that its data may be old, by alias.
    """

    def __init__(self, message: str, replicas: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.replicas: Mapping[str, float] = dict(replicas or {})


class WriteInQuery(ReplicaRouterError):  # noqa: N818 - as TooStale
    """A ``query`` was about to write, or to lock. Nothing was written.

    Args:
        message: which query, and what it was about to do.
        table: what it was about to write to, or to lock, where that is known; else empty.
    """

    def __init__(self, message: str, table: str = "") -> None:
        super().__init__(message)
        self.table = table


class StaleSaveError(ReplicaRouterError):
    """An object that was read from a replica was about to be saved, and ``STALE_SAVES`` forbids it."""


class PositionError(ReplicaRouterError):
    """A server did not tell its WAL position in a usable form."""


def tell_ages(late: Mapping[str, float]) -> str:
    """Return how old the data of replicas may be, by alias, in seconds; infinite where nobody knows."""
    told = (
        f"{alias!r} ({f'{age:.1f} s old' if math.isfinite(age) else 'nobody knows yet how old'})"
        for alias, age in late.items()
    )
    return ", ".join(told) or "there is none"


def tell_import_failure(key: str, path: str, error: ImportError) -> str:
    """Return what to say where the dotted path in a setting cannot be imported."""
    return f"REPLICA_ROUTER[{key!r}] names {path!r}, which cannot be imported: {error}."
