"""Helpers for the tests of sites that use the package: their names are found here, by whatever module they are in."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_replica_router.testing.asserting import assert_queries, assert_reads_from
    from django_replica_router.testing.lagging import lagging_replicas
    from django_replica_router.testing.mirrors import (
        mirrors_are_replicas,
        point_mirrors_to_primaries,
        treat_mirrors_as_replicas,
    )
    from django_replica_router.testing.stale import stale_prone

__all__ = [
    "assert_queries",
    "assert_reads_from",
    "lagging_replicas",
    "mirrors_are_replicas",
    "point_mirrors_to_primaries",
    "stale_prone",
    "treat_mirrors_as_replicas",
]

# Resolved on first use: pytest loads the plugin, and so this package, in every project where it is
# installed, also where nobody uses Django.
_HOMES = {
    "assert_queries": "django_replica_router.testing.asserting",
    "assert_reads_from": "django_replica_router.testing.asserting",
    "lagging_replicas": "django_replica_router.testing.lagging",
    "mirrors_are_replicas": "django_replica_router.testing.mirrors",
    "point_mirrors_to_primaries": "django_replica_router.testing.mirrors",
    "stale_prone": "django_replica_router.testing.stale",
    "treat_mirrors_as_replicas": "django_replica_router.testing.mirrors",
}


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message) from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value
