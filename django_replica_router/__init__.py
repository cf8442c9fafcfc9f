"""Route reads to PostgreSQL replicas without a user ever seeing data older than their own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django_replica_router.cqrs import command, query
    from django_replica_router.decorators import ignore_writes, scope, use_primary, use_replica
    from django_replica_router.recording.writes import note_write
    from django_replica_router.routers import ReplicaRouter
    from django_replica_router.scopes.scope import current_scope
    from django_replica_router.stats import get_stats, pop_stats
    from django_replica_router.tokens import (
        Token,
        acurrent_token,
        await_for_replicas,
        current_token,
        see,
        track,
        wait_for_replicas,
    )

__all__ = [
    "ReplicaRouter",
    "Token",
    "acurrent_token",
    "await_for_replicas",
    "command",
    "current_scope",
    "current_token",
    "get_stats",
    "ignore_writes",
    "note_write",
    "pop_stats",
    "query",
    "scope",
    "see",
    "track",
    "use_primary",
    "use_replica",
    "wait_for_replicas",
]

__version__ = "0.1.0"

# Resolved on first use: a settings module, an app's models or a script may import these names
# before Django's settings exist, and importing the package must not read them.
_HOMES = {
    "ReplicaRouter": "django_replica_router.routers",
    "command": "django_replica_router.cqrs",
    "current_scope": "django_replica_router.scopes.scope",
    "get_stats": "django_replica_router.stats",
    "ignore_writes": "django_replica_router.decorators",
    "pop_stats": "django_replica_router.stats",
    "note_write": "django_replica_router.recording.writes",
    "query": "django_replica_router.cqrs",
    "scope": "django_replica_router.decorators",
    "use_primary": "django_replica_router.decorators",
    "use_replica": "django_replica_router.decorators",
    **dict.fromkeys(
        (
            "Token",
            "acurrent_token",
            "await_for_replicas",
            "current_token",
            "see",
            "track",
            "wait_for_replicas",
        ),
        "django_replica_router.tokens",
    ),
}


if not TYPE_CHECKING:  # who checks types knows the names, and is to be told of others

    def __getattr__(name: str) -> Any:
        try:
            home = _HOMES[name]
        except KeyError:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message) from None
        try:
            value = getattr(importlib.import_module(home), name)
        except ImportError:
            from django_replica_router.driver import find_problem

            problem = find_problem()
            if problem is None:
                raise
            raise ImportError(problem) from None
        globals()[name] = value
        return value
