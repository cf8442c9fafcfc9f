"""The class that a site names in ``DATABASE_ROUTERS``."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, router

from django_replica_router.conf import Config, get_config
from django_replica_router.context import current_frame
from django_replica_router.reads import route_read


class ReplicaRouter:
    """Writes to the primary, reads where they may go.

    Other routers of the chain keep their say, wherever they stand: a model that one of them sends
    to another database stays there, and where that database has replicas, they are used.
    """

    def db_for_read(self, model: type[Any], **hints: Any) -> str | None:
        """Return the alias that serves a read, or None for what is not in any cluster."""
        config = get_config()
        primary = self._primary_for("db_for_read", model, hints, config)
        if primary is None:
            return None
        return route_read(primary, model, config, current_frame.get())

    def db_for_write(self, model: type[Any], **hints: Any) -> str | None:
        """Return the primary, or None for what is not in any cluster.

        Never None for an object of a cluster: Django would save one that was read from a replica
        to that replica.
        """
        config = get_config()
        primary = self._primary_for("db_for_write", model, hints, config)
        _adopt(hints.get("instance"), config)
        return primary

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        """Allow what a primary and its replicas have handed out to be related."""
        config = get_config()
        primary_of = config.topology.primary_of
        first, second = obj1._state.db, obj2._state.db
        primary = primary_of.get(first)
        if primary is None or primary != primary_of.get(second):
            return None
        _adopt(obj1, config)
        _adopt(obj2, config)
        return None if first == second else True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Forbid migrations on a replica: they arrive there by themselves."""
        return False if get_config().topology.is_replica(db) else None

    def _primary_for(
        self, method: str, model: type[Any], hints: dict[str, Any], config: Config
    ) -> str | None:
        alias = self._others_say(method, model, hints)
        if alias is None:
            instance = hints.get("instance")
            # As Django itself decides when no router answers.
            alias = (instance is not None and instance._state.db) or DEFAULT_DB_ALIAS
        return config.topology.primary_of.get(alias)

    def _others_say(self, method: str, model: type[Any], hints: dict[str, Any]) -> str | None:
        routers = router.routers
        if len(routers) == 1:
            return None
        # Those in front have been asked by Django, and had nothing to say.
        mine = routers.index(self) if self in routers else -1
        for other in routers[mine + 1 :]:
            ask = getattr(other, method, None)
            alias: str | None = ask(model, **hints) if ask is not None else None
            if alias:
                return alias
        return None


def _adopt(instance: Any, config: Config) -> None:
    """Let an object that was read from a replica and is about to be written count as the primary's.

    Django compares where an object comes from with where it is written to: ``save()`` of one with
    deferred fields would write all fields, and ``add()`` of a related manager would refuse it.
    """
    state = getattr(instance, "_state", None)
    if state is not None and state.db is not None:
        state.db = config.topology.primary_of.get(state.db, state.db)
