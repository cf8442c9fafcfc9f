"""Keys of the code's own, such as an order: what one writes under it, another who names it will see."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import DEFAULT_DB_ALIAS, transaction

from django_replica_router.conf import Config, get_config
from django_replica_router.errors import StoreError
from django_replica_router.recording.finishing import hold_for_unstored
from django_replica_router.recording.floors import record_at
from django_replica_router.recording.writes import locate
from django_replica_router.scopes.keys import digest, store_key
from django_replica_router.scopes.scope import current_scope
from django_replica_router.scopes.written import WriteMark
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import Record


def tracked_key(key: object) -> str:
    """Return what stands in the token store for a key that the code names."""
    return digest("tracked", str(key))


def track(key: object, *, using: str = DEFAULT_DB_ALIAS) -> None:
    """Let whoever calls ``see(key=...)`` see what was written so far, and what the present scope will write.

    For what several actors work on, such as an order, a tenant or a document: whoever they are. What
    was committed by now is remembered at once; what an open transaction writes, when it has been
    committed; what the scope writes later, when it ends.

    Args:
        key: a text, or something whose text names it, such as ``f"order:{order.pk}"``.
        using: alias of the primary that is written to.
    """
    config, name = get_config(), tracked_key(key)
    if not config.ENABLED or using not in config.topology.clusters:
        return
    scope = current_scope()
    if scope is not None and name not in scope.tracked:
        scope.tracked = (*scope.tracked, name)
    transaction.on_commit(lambda: _store(using, name, config), using=using)


def _store(primary: str, name: str, config: Config) -> None:
    store_under(primary, [name], record_at(locate(primary, WriteMark()), config), config)


def store_under(primary: str, names: Iterable[str], record: Record, config: Config) -> None:
    """Raise what is remembered under keys. Where the store refuses it, see to it that nobody needs it.

    Args:
        primary: alias of the primary.
        names: the keys, as ``tracked_key`` returns them.
        record: what whoever names one of them must see.
        config: the settings.
    """
    keys = [store_key(primary, name) for name in names]
    records, lives = dict.fromkeys(keys, record), dict.fromkeys(keys, config.TOKEN_TTL)
    try:
        get_store(config.CACHE).merge(records, lives)
    except StoreError as error:
        hold_for_unstored(primary, config, record, error)
