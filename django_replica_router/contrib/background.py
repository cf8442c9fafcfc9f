"""What all queues of tasks share: what whoever publishes hands on, the scope of a run, and what its result brings back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from django.core.cache import caches

from django_replica_router.callers import find_caller
from django_replica_router.conf import Config, get_config
from django_replica_router.decorators import OpenedScope, scope
from django_replica_router.errors import PositionError
from django_replica_router.logs import fields, logger
from django_replica_router.observations import TASK_TOO_SOON, observers, warn
from django_replica_router.policy import IN_SERVICE, may_serve
from django_replica_router.recording.carrying import (
    OPEN_WAIT,
    own_entry,
    position_in,
    token_of,
    wait_for_transactions,
)
from django_replica_router.recording.floors import pin
from django_replica_router.recording.tracking import store_under, tracked_key
from django_replica_router.replicas.connecting import find_connection
from django_replica_router.replicas.registry import find_monitor, get_monitor
from django_replica_router.replicas.systems import system_of
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.identity import NamedIdentity
from django_replica_router.scopes.keys import digest
from django_replica_router.scopes.scope import Scope, current_scope
from django_replica_router.scopes.signing import Token
from django_replica_router.scopes.written import WriteMark
from django_replica_router.sql import transacting
from django_replica_router.transactions.blocks import keeps_reads
from django_replica_router.values.carried import Entry
from django_replica_router.values.tokens import NOWHERE, Position, Record

_FIRST_LOOK = 0.3
"""Seconds that the first task of a process waits until replicas are known: it can afford that."""

_PAUSE = 0.01
"""Seconds between two looks for a token that is about to be kept."""

_SAME = 1.0
"""Seconds for which the token of a scope is taken for the same where nothing has changed in it."""

_IN_TRANSACTION = (
    "before the transaction is committed: its worker waits for that, at most "
    f"{OPEN_WAIT:g} s. Publish it in transaction.on_commit()"
)
_IN_LOOP = (
    "in an event loop, where its token cannot be asked for: it reads from the primary. Publish it by "
    "sync_to_async(), or by what the package of tasks has for that"
)

_works: ContextVar[bool] = ContextVar("replica_router_works", default=False)
"""This is a worker: what it publishes between two tasks follows from one, whoever has closed its connections."""

_told: set[str] = set()
"""Tasks of which it was told that they are published inside a transaction, or in an event loop."""


# Who publishes.


def token_to_publish(task: str, *, commits_with: bool = False) -> Token:
    """Return what a task that is published here must see. Warns where a transaction is open.

    Outside of a scope nobody has noted what was written: then it is all that there is by now, where this
    thread is connected to the primary at all.

    Args:
        task: its name.
        commits_with: the task is a row that is committed with the transaction.
    """
    config, opened = get_config(), current_scope()
    if not config.ENABLED:
        return Token.read(None if opened is None else opened.carried)
    if asyncio._get_running_loop() is not None:
        _tell(task, _IN_LOOP)
        return Token({0: Entry(pin(config))})
    token = token_now(config, connected=not _works.get()) if opened is None else _token(opened)
    for primary, connection in () if commits_with else _in_transactions(config):
        _tell(task, _IN_TRANSACTION)
        if observers.present:
            warn(TASK_TOO_SOON, task)
        token |= _open_token(primary, connection)
    return token


def note_run_at_once(task: str) -> None:
    """Have whoever observes know of a task that is run at once, where published it would be so before the commit.

    Args:
        task: its name.
    """
    config = get_config()
    if observers.present and config.ENABLED:
        for _ in _in_transactions(config):
            warn(TASK_TOO_SOON, task)


def _token(opened: Scope) -> Token:
    """Return the token of a scope. Of many tasks that are published in a row, the first one asks for it."""
    seen = (
        opened.carried,
        opened.seen_keys,
        opened.identity.users(),
        *map(_known, opened.clusters.values()),
    )
    since, before, token = getattr(opened, "published", (-math.inf, None, None))
    if token is None or before != seen or time.monotonic() - since > _SAME:
        since, token = time.monotonic(), token_of(opened)
        seen = (*seen[:3], *map(_known, opened.clusters.values()))
        if not any(map(_is_open, opened.clusters)):
            opened.published = since, seen, token
    return token


def _known(state: ClusterScope) -> tuple[object, ...]:
    """Return what changes where a scope has written, or has learnt of what it must see."""
    return (
        state.moment,
        state.checkpoint,
        state.wrote,
        state.recorded,
        state.seen_elsewhere_on,
        state.reader.floor,
    )


def _is_open(primary: str) -> bool:
    connection = find_connection(primary)
    return connection is not None and connection.in_atomic_block


def token_now(config: Config, *, connected: bool = False) -> Token:
    """Return the token of all that was written by now.

    Args:
        config: the settings.
        connected: only to where this thread is connected; who never was has written nothing.
    """
    everything = Scope(NamedIdentity())
    for primary in config.topology.clusters:
        connection = find_connection(primary)
        if not connected or (connection is not None and connection.connection is not None):
            everything.cluster(primary).add_write(WriteMark(committed=True))
    return token_of(everything) if everything.clusters else Token()


def _in_transactions(config: Config) -> Iterator[tuple[str, Any]]:
    """Return the primaries on which this thread is in a transaction, with its connection to each."""
    for primary in config.topology.clusters:
        connection = find_connection(primary)
        if connection is None or not keeps_reads(connection):
            continue
        # That of a test case never ends in a commit, and is no fault of the code.
        if not all(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
            yield primary, connection


def _open_token(primary: str, connection: Any) -> Token:
    """Return the token of an open transaction, which may have written nothing so far."""
    try:
        number = transacting.number_transaction(connection.connection)
        return Token({system_of(primary): Entry(Record(), frozenset({number}))})
    except Exception as error:  # one that has failed commits nothing
        logger.debug("The transaction on %r has no number: %s", primary, error)
        return Token()


def _tell(task: str, what: str) -> None:
    if task not in _told:
        _told.add(task)
        logger.warning(
            "%s publishes the task %s %s.",
            find_caller(),
            task,
            what,
            extra=fields("task_too_soon", task=task),
        )


def hand_on(name: str, token: Token) -> None:
    """Keep the token of a task in the cache, where its message has no place for it.

    Args:
        name: of the task: another one for each run.
        token: what it must see.
    """
    config = get_config()
    try:
        caches[config.CACHE].set(_handed_key(name), str(token), config.SESSION_TTL)
    except Exception as error:  # whatever a cache backend raises, the task is published
        logger.warning(
            "The token of a task could not be kept: %s",
            error,
            extra=fields("task_token_unkept", error),
        )


# Who runs it.


def handed_on(name: str, patience: float) -> str | None:
    """Return the token that was kept for a task, "" where it must see nothing, None where nobody has said so.

    Args:
        name: of the task.
        patience: seconds that it may take to come: the task may be published before.
    """
    deadline = time.monotonic() + patience
    try:
        cache, key = caches[get_config().CACHE], _handed_key(name)
        while (text := cache.get(key)) is None and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if text is None:
            return None
        cache.delete(key)  # another run of it may need more: it goes by all that there is then
        return str(text)
    except Exception as error:  # whatever a cache backend raises, the task is run
        logger.warning(
            "The token of a task could not be read: %s",
            error,
            extra=fields("task_token_unread", error),
        )
        return None


def _handed_key(name: str) -> str:
    return f"rr:task:{digest('task', name)}"


class Run:
    """One run of a task, in a scope of its own.

    Args:
        token: what it must see; None where nobody has said so: then all that there is by now.
        function: the task's, by whose code it is known again.
    """

    is_late = False
    """No replica has what it must see, although that was waited for."""

    is_early = False
    """A transaction that it must see has not ended, although that was waited for."""

    def __init__(self, token: str | Token | None, function: object = None) -> None:
        config = get_config()
        if token is None and config.ENABLED:
            token = token_now(config)
        self._block = scope(token=token)
        self.scope: OpenedScope = self._block.__enter__()
        self.scope.source = getattr(function, "__code__", None)
        _works.set(True)
        try:
            _meet_replicas(config)
            self.is_early = not wait_for_transactions(self.scope)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the scope: what was written is stored for whoever is to see it."""
        self._block.__exit__(None, None, None)

    def wait_for_replica(self, timeout: float) -> bool:
        """Wait until a replica of each cluster has what the task must see; tell whether one has.

        Args:
            timeout: seconds that may be waited.
        """
        config, token = get_config(), Token.read(self.scope.carried)
        return all(
            _wait_for_one(primary, token, timeout, config) for primary in config.topology.clusters
        )


def _meet_replicas(config: Config) -> None:
    """Have the replicas looked at before the first task of a process, which may have been forked for it alone."""
    for primary in config.topology.clusters if config.ENABLED else ():
        if find_monitor(primary) is None and asyncio._get_running_loop() is None:
            _wait_for_any(primary, NOWHERE, _FIRST_LOOK, config)


def _wait_for_one(primary: str, token: Token, timeout: float, config: Config) -> bool:
    """Wait until one replica has a token; tell whether one has, or none ever will while it is asked for."""
    try:
        position = position_in(token, primary)
    except PositionError:
        return True  # only the primary has that
    if not position.lsn or config.routes_nobody:
        return True
    return _wait_for_any(primary, position, timeout, config)


def _wait_for_any(primary: str, position: Position, timeout: float, config: Config) -> bool:
    """Wait until a replica may serve who must see a position; tell whether one may, or none is in service."""
    monitor = get_monitor(primary)
    deadline = monitor.clock() + timeout

    def has_one() -> bool | None:
        replicas = monitor.health.replicas()
        return any(may_serve(one, position, config.MAX_LAG) for one in replicas) or None

    while not has_one() and (left := deadline - monitor.clock()) > 0:
        if not any(one.state in IN_SERVICE for one in monitor.health.replicas()):
            return True
        monitor.waiting.wait_closely(position.lsn, config.MAX_LAG, has_one, min(timeout / 10, left))
    return bool(has_one())


# Who waits for its result.


def remember_result(names: Iterable[str]) -> None:
    """Let whoever learns of a result see what the present scope has written and seen.

    Call it before the result is stored. Outside of a scope, as where a worker was killed in a run, what was
    written is not known: then who learns of it reads from the primary.

    Args:
        names: of the result.
    """
    config, opened = get_config(), current_scope()
    if not config.ENABLED:
        return
    token = Token({0: Entry(pin(config))}) if opened is None else token_of(opened)
    for primary, record in _records(token, config):
        store_under(primary, map(tracked_key, names), record, config)


def _records(token: Token, config: Config) -> Iterator[tuple[str, Record]]:
    """Return what a token binds to in each cluster that is known here."""
    for primary in config.topology.clusters if token else ():
        entry = token.entries.get(0)
        _, own = own_entry(primary, token, config)
        if own is not None:
            entry = own if entry is None else entry.merge(own)
        if entry is not None:
            yield primary, entry.record.merge(pin(config)) if entry.open else entry.record


def see_result(name: str) -> None:
    """Have the present scope see what was remembered of a result. Outside of one it does nothing."""
    opened = current_scope()
    if opened is not None:
        opened.see_key(tracked_key(name))
