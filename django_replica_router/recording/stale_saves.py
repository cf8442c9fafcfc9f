"""Saves of objects that were read from a replica: they write back what may be old."""

from __future__ import annotations

from typing import Any

from django.db import connections

from django_replica_router.callers import find_caller
from django_replica_router.conf import Config, get_config
from django_replica_router.errors import StaleSaveError
from django_replica_router.logs import fields, logger
from django_replica_router.recording.learning import learn
from django_replica_router.scopes.scope import current_scope
from django_replica_router.stats import count
from django_replica_router.transactions.blocks import keeps_reads

# Of the object's ModelState: where the object was read, and the very text that stands for the
# primary since then. Where Django has put another one there, as after a save or a refresh, the
# object is of the primary. An attribute of the state is pickled and copied along with it.
_MARK = "_replica_router_adopted"

_ADVICE = (
    "Read it with select_for_update() inside atomic() or in a use_primary block, or write with "
    "update(), F() or update_or_create()."
)

_told: set[tuple[str, str]] = set()
_MOST_TOLD = 1000


def adopt(instance: Any, config: Config) -> None:
    """Let an object that was read from a replica and is about to be written count as the primary's.

    Django compares where an object comes from with where it is written to: ``save()`` of one with
    deferred fields would write all fields, and ``add()`` of a related manager would refuse it.
    """
    state = getattr(instance, "_state", None)
    if state is None or state.db is None:
        return
    origin = str(state.db)  # a routed alias is unequal to none of its cluster
    primary = config.topology.primary_of.get(origin, origin)
    if primary != origin:
        alias = "".join([primary[:1], primary[1:]])  # equal to it, and not the same object
        setattr(state, _MARK, (origin, alias))
        state.db = alias


def find_origin(instance: Any, config: Config) -> str | None:
    """Return the alias of the replica that an object was read from, or None."""
    state = instance._state
    mark = state.__dict__.get(_MARK)
    if mark is not None and mark[1] is state.db:
        return str(mark[0])
    alias: str | None = state.db
    return alias if alias is not None and config.topology.is_replica(alias) else None


def on_pre_save(
    *,
    sender: Any,
    instance: Any,
    raw: bool = False,
    using: str | None = None,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    """Count, tell of, learn from or refuse the save of an object that was read from a replica."""
    if raw or instance._state.adding or instance.pk is None:
        return  # new, or a copy of another: nothing is overwritten
    config = get_config()
    if not config.ENABLED or config.STALE_SAVES == "ignore":
        return
    origin = find_origin(instance, config)
    if origin is None:
        _keep_in_mind(sender, using, config)
    elif config.topology.primary_of.get(origin) == using and not _is_computed(
        instance, update_fields
    ):
        _react(sender, instance, origin, config)


def note_saved(instance: Any, is_new: bool) -> None:
    """Count an object from a replica that was inserted again: its row had been deleted meanwhile."""
    state = getattr(instance, "_state", None)
    if state is not None and state.__dict__.pop(_MARK, None) is not None and is_new:
        count("reinserted_from_replica")


def _is_computed(instance: Any, update_fields: Any) -> bool:
    """Tell whether all that is written is computed from the row that is overwritten, or from nothing."""
    return bool(update_fields) and all(
        hasattr(getattr(instance, name), "resolve_expression")
        or getattr(instance._meta.get_field(name), "auto_now", False)
        for name in update_fields
    )


def _keep_in_mind(model: Any, using: str | None, config: Config) -> None:
    """Renew the memory of a view that goes on saving what it reads, now from the primary.

    Not where the primary is the only one that shows it: that says nothing of what the view does else.
    """
    if config.is_primary_only(model):
        return
    scope = current_scope()
    if scope is None or not scope.learned or using is None or using not in config.topology.clusters:
        return
    # In a transaction the code may have been mended meanwhile: it is forgotten after a while.
    if not keeps_reads(connections[using]):
        learn(scope, config)


def _react(model: Any, instance: Any, origin: str, config: Config) -> None:
    # So that it is known afterwards, also where the code has named the alias.
    adopt(instance, config)
    count("saved_from_replica", about=model._meta.label)
    line = find_caller()
    what = f"{model._meta.label} was read from the replica {origin!r} and is saved in {line}"
    if config.STALE_SAVES == "raise":
        message = f"{what}: that may overwrite what others have written meanwhile. {_ADVICE}"
        raise StaleSaveError(message)
    scope = current_scope()
    names = learn(scope, config) if scope is not None and config.STALE_SAVES == "learn" else ()
    place = (names[0] if names else "", line)
    if place in _told or len(_told) > _MOST_TOLD:
        return
    _told.add(place)
    since = f" From now on {names[0]} reads from the primary." if names else ""
    logger.warning(
        "%s: what others have written meanwhile is overwritten.%s %s",
        what,
        since,
        _ADVICE,
        extra=fields("stale_save", alias=origin, model=model._meta.label, line=line),
    )
