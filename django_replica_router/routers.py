"""The class that a site names in ``DATABASE_ROUTERS``."""

from __future__ import annotations

from typing import Any

from django.db import DEFAULT_DB_ALIAS, router

from django_replica_router.commands import get_named_replica
from django_replica_router.conf import get_config
from django_replica_router.errors import ConfigurationError
from django_replica_router.observations import FOR_WRITE, SENTENCES, note_decision, observers
from django_replica_router.recording.stale_saves import adopt
from django_replica_router.routing.reads import route_read
from django_replica_router.scopes.scope import Frame, get_frame, here
from django_replica_router.transactions.blocks import replicas_in_transaction


class ReplicaRouter:
    """Writes to the primary, reads where they may go.

    Other routers of the chain keep their say, wherever they stand: a model that one of them sends
    to another database stays there, and where that database has replicas, they are used.
    """

    def db_for_read(self, model: type[Any], instance: Any = None, **hints: Any) -> str | None:
        """Return the alias that serves a read, or None for what is not in any cluster.

        Django asks up to five times a statement. So what was decided before is found with a few
        look-ups, and what may have changed meanwhile is checked here: the model and the settings
        (whose change empties ``models``), the transaction, and who is signed in.
        """
        frame = get_frame()
        shortcuts = frame.shortcuts
        if shortcuts is not None:
            mine = shortcuts.get(here.thread)
            if mine is not None:
                if instance is None:
                    shortcut = mine.get(DEFAULT_DB_ALIAS)
                else:
                    shortcut = mine.get(instance._state.db or DEFAULT_DB_ALIAS)
                if (
                    shortcut is not None
                    and model in shortcut.models
                    and (
                        not shortcut.connection.in_atomic_block
                        or shortcut.connection.atomic_blocks == shortcut.idle
                    )
                    and not replicas_in_transaction
                ):
                    identity = shortcut.identity
                    if identity.settled or not identity.has_news():
                        return shortcut.alias
                    identity.users()  # drops the shortcuts where it finds another user
                    if shortcuts.get(here.thread) is mine:
                        return shortcut.alias
        if instance is not None:
            hints["instance"] = instance
        return self._route(model, hints, frame)

    def _route(self, model: type[Any], hints: dict[str, Any], frame: Frame) -> str | None:
        config = get_config()
        # Without a call where there is no other router, as on nearly every site.
        others = self._others() if len(router.routers) > 1 else []
        asked = (
            self._alias_for("db_for_read", model, hints, others)
            if others or hints
            else DEFAULT_DB_ALIAS
        )
        primary = config.topology.primary_of.get(asked)
        if primary is None:
            return None
        if asked == get_named_replica():
            return asked
        scope = frame.scope
        if scope is None or frame.override is not None or others or not config.ENABLED:
            return route_read(primary, model, config, frame)[0]
        mine = scope.shortcuts_here()
        alias, shortcut = route_read(primary, model, config, frame)
        if shortcut is not None:
            mine[asked] = shortcut
        return alias

    def db_for_write(self, model: type[Any], **hints: Any) -> str | None:
        """Return the primary, or None for what is not in any cluster.

        Never None for an object of a cluster: Django would save one that was read from a replica
        to that replica.
        """
        config = get_config()
        asked = self._alias_for("db_for_write", model, hints, self._others())
        primary = config.topology.primary_of.get(asked)
        adopt(hints.get("instance"), config)
        if observers.present and primary is not None:
            note_decision(primary, FOR_WRITE, SENTENCES[FOR_WRITE], 0.0)
        return primary

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        """Allow what a primary and its replicas have handed out to be related."""
        config = get_config()
        primary_of = config.topology.primary_of
        first, second = obj1._state.db, obj2._state.db
        primary = primary_of.get(first)
        if primary is None or primary != primary_of.get(second):
            return None
        adopt(obj1, config)
        adopt(obj2, config)
        return None if first == second else True

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        """Forbid migrations on a replica: they arrive there by themselves.

        What names a model wants to know, too, whose tables are there, as ``dumpdata`` does: those that
        the primary has. What would write there is refused by its command, and by the server.
        """
        try:
            topology = get_config().topology
        except ConfigurationError:
            return None  # Django's checks of models ask, and go on, so that the check of the setting tells.
        if not topology.is_replica(db):
            return None
        if "model" not in hints:
            return False
        allowed: bool = router.allow_migrate(topology.primary_of[db], app_label, **hints)
        return allowed

    def _alias_for(
        self, method: str, model: type[Any], hints: dict[str, Any], others: list[Any]
    ) -> str:
        """Return the alias of the database that Django would use without this router."""
        for other in others:
            ask = getattr(other, method, None)
            alias: str | None = ask(model, **hints) if ask is not None else None
            if alias:
                return alias
        instance = hints.get("instance")
        # As Django itself decides when no router answers.
        return (instance is not None and instance._state.db) or DEFAULT_DB_ALIAS

    def _others(self) -> list[Any]:
        """Return the routers that come after this one."""
        routers = router.routers
        # Those in front have been asked by Django, and had nothing to say.
        mine = routers.index(self) if self in routers else -1
        return list(routers[mine + 1 :])
