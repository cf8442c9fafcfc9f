"""Which views the settings send to the primary, or to a replica, whose code cannot be touched."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from django_replica_router.conf import Config
from django_replica_router.scopes.scope import Override

_PRIMARY = Override(primary=True)
_REPLICA = Override(primary=False)


def names_views(config: Config) -> bool:
    """Tell whether the settings name any view."""
    return bool(config.PRIMARY_VIEWS or config.REPLICA_VIEWS)


def override_for(match: Any, config: Config) -> Override | None:
    """Return what the settings ask for in a view; None where they do not name it.

    Args:
        match: what Django has resolved the request's path to.
        config: the settings.
    """
    names = (match.view_name, match._func_path)
    if names not in config.views:
        override = None
        if _is_among(names, config.PRIMARY_VIEWS):
            override = _PRIMARY
        elif _is_among(names, config.REPLICA_VIEWS):
            override = _REPLICA
        config.views[names] = override
    found: Override | None = config.views[names]
    return found


def _is_among(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns if name)
