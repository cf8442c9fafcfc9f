"""Route reads to PostgreSQL replicas without a user ever seeing data older than their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_replica_router.context import current_scope
    from django_replica_router.decorators import scope, use_primary, use_replica
    from django_replica_router.routers import ReplicaRouter
    from django_replica_router.stats import get_stats, pop_stats
    from django_replica_router.writes import note_write

__all__ = [
    "ReplicaRouter",
    "current_scope",
    "get_stats",
    "note_write",
    "pop_stats",
    "scope",
    "use_primary",
    "use_replica",
]

__version__ = "0.1.0"

# Resolved on first use: a settings module, an app's models or a script may import these names
# before Django's settings exist, and importing the package must not read them.
_HOMES = {
    "ReplicaRouter": "django_replica_router.routers",
    "current_scope": "django_replica_router.context",
    "get_stats": "django_replica_router.stats",
    "pop_stats": "django_replica_router.stats",
    "note_write": "django_replica_router.writes",
    "scope": "django_replica_router.decorators",
    "use_primary": "django_replica_router.decorators",
    "use_replica": "django_replica_router.decorators",
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
