"""What the package does when Django sends a signal."""

from __future__ import annotations

import time
from typing import Any

from django.apps import apps
from django.contrib.auth.signals import user_logged_in
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate, post_save, pre_migrate, pre_save

from django_replica_router.commands import guard_commands, refuse_replica
from django_replica_router.conf import Config, get_config
from django_replica_router.connections.connection import (
    equip,
    equip_new_connections,
    equip_open_connections,
)
from django_replica_router.connections.leading import lead_transactions
from django_replica_router.errors import ReplicaRouterError, StoreError
from django_replica_router.logs import fields, logger
from django_replica_router.recording.floors import EVERYBODY_SECONDS
from django_replica_router.recording.stale_saves import note_saved, on_pre_save
from django_replica_router.recording.writes import find_state, mark_written, store_for_everybody
from django_replica_router.replicas.wrappers import watch_wrappers
from django_replica_router.scopes.scope import current_scope
from django_replica_router.sql.opening import is_under_test
from django_replica_router.stores.store import get_store
from django_replica_router.transactions.atomic_requests import watch_handlers_blocks


def on_connection_created(*, connection: Any, **kwargs: Any) -> None:
    """Give a connection the package's class where that was made past Django's handler of connections."""
    equip(connection)


def on_begin_save(*, instance: Any = None, using: str = DEFAULT_DB_ALIAS, **kwargs: Any) -> None:
    """Remember what was known before an object is saved."""
    state = find_state(using)
    if state is not None:
        state.begin_save(instance)


def on_post_save(
    *,
    sender: Any = None,
    instance: Any = None,
    using: str = DEFAULT_DB_ALIAS,
    created: bool = False,
    **kwargs: Any,
) -> None:
    """Mark the scope as having written, unless the model is one whose writes bind nobody.

    The observer of the connection has seen the statement already; this holds where a database
    backend runs statements past Django's wrappers. Where a position has come with the save there is
    nothing to add. Code that sends the signal by hand often names
    no database, and means the default one, as Django's own receivers do.
    """
    note_saved(instance, created)
    state = find_state(using)
    if state is None or state.has_saved(instance) or _is_ignored(sender, get_config()):
        return
    mark_written(using)


def _is_ignored(model: Any, config: Config) -> bool:
    # The rows of a model that inherits from another by a link lie in that one's table as well.
    return config.ignores_writes(model) and not any(model._meta.parents.values())


def on_user_logged_in(**kwargs: Any) -> None:
    """Have the scope ask anew whom it works for."""
    scope = current_scope()
    if scope is not None:
        scope.identity.look_again()


def on_pre_migrate(*, using: str = DEFAULT_DB_ALIAS, **kwargs: Any) -> None:
    """Refuse to migrate a replica, also to a command that calls another's code for it."""
    refuse_replica(using, "migrate")


def on_post_migrate(
    *, sender: Any = None, using: str = DEFAULT_DB_ALIAS, plan: Any = None, **kwargs: Any
) -> None:
    """Let nobody read from a replica before it has replayed the migrations that have just run.

    Sent once for each app. With the last, the command waits until no process goes by what it knew
    before.
    """
    config = get_config()
    if not plan or not config.ENABLED or not config.topology.clusters.get(using):
        return
    if connections[using].in_atomic_block:
        return  # a test's own migration, which is rolled back with it
    try:
        store_for_everybody(using, config, None)
    except ReplicaRouterError as error:
        logger.error(
            "The migration of %r is not known to other processes: %s Restart them once the "
            "replicas have replayed it.",
            using,
            error,
            extra=fields("migration_untold", error, primary=using),
        )
    with_models = [config for config in apps.get_app_configs() if config.models_module]
    if sender is with_models[-1] and not is_under_test():
        _tell_where_nobody_learns_of_it(using, config)
        time.sleep(EVERYBODY_SECONDS)


def _tell_where_nobody_learns_of_it(using: str, config: Config) -> None:
    """Say so where other processes read on from replicas that have not replayed a migration."""
    try:
        store = get_store(config.CACHE)
    except StoreError:
        return  # told already
    if store.is_lasting:
        return
    logger.warning(
        "The migration of %r is known to this process only: the cache %r of this job is not shared with "
        "the site. Until the replicas have replayed it, a read there may meet a table or column that is "
        "missing, and is run on the primary then. Give the job that migrates the cache of the site.",
        using,
        config.CACHE,
        extra=fields("migration_unshared", primary=using, cache=config.CACHE),
    )


def connect() -> None:
    """Connect the receivers.

    ``post_delete`` and ``m2m_changed`` are left out on purpose. A receiver of ``post_delete`` for
    every model makes ``QuerySet.delete()`` load all objects and delete them one by one
    (``Collector.can_fast_delete``), and one of ``m2m_changed`` makes ``add()`` ask which rows
    exist. The observer of the connection sees both kinds of statement, at no such price.
    """
    connection_created.connect(on_connection_created, dispatch_uid="django_replica_router")
    pre_save.connect(on_pre_save, dispatch_uid="django_replica_router")
    pre_save.connect(on_begin_save, dispatch_uid="django_replica_router.begin_save")
    post_save.connect(on_post_save, dispatch_uid="django_replica_router")
    pre_migrate.connect(on_pre_migrate, dispatch_uid="django_replica_router")
    post_migrate.connect(on_post_migrate, dispatch_uid="django_replica_router")
    user_logged_in.connect(on_user_logged_in, dispatch_uid="django_replica_router")
    watch_handlers_blocks()
    watch_wrappers()
    equip_new_connections()
    equip_open_connections()
    lead_transactions()
    guard_commands()
