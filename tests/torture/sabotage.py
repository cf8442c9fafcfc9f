"""Sabotages of the package, applied in the workers at their start: each must be found out."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from django.db import connections

from django_replica_router import policy
from django_replica_router.conf import get_config
from django_replica_router.connections import leading, mending, on_primary, on_replica, proving
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import finishing, floors
from django_replica_router.recording.floors import known_owners
from django_replica_router.replicas import answers, connecting, inflight, known, registry, sights
from django_replica_router.routing import deciding
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.sql import rows, wal
from django_replica_router.stores import store as stores
from django_replica_router.values.statements import might_write
from django_replica_router.values.tokens import NOWHERE, Position

# How much later than its write a token is stored now and then, so that two of them cross.
LATE_SECONDS = 0.6
LATE_SHARE = 0.4


def put(owner: Any, name: str, value: Any) -> None:
    """Replace an attribute, which must be there.

    A sabotage of something that has been renamed would do nothing, and prove nothing.

    Raises:
        AttributeError: it is not there.
    """
    getattr(owner, name)
    setattr(owner, name, value)


def token_compare_always_true() -> None:
    """Take every replica in good health for one that has replayed the token."""
    original = policy.may_serve

    def may_serve(replica: Any, floor: Position, *args: Any) -> bool:
        return original(replica, NOWHERE, *args)

    put(policy, "may_serve", may_serve)


def retry_without_verification() -> None:
    """Run a read that has failed on a replica again on another, whatever that has replayed."""
    original: Callable[..., Any] = getattr(mending, "run_on_primary")  # noqa: B009 - not exported

    def run_anywhere(primary: str, cursor: Any, sql: Any, *args: Any) -> Any:
        failed = cursor.db.alias
        others = [alias for alias in get_config().topology.clusters[primary] if alias != failed]
        if others and not might_write(sql):
            return original(random.choice(others), cursor, sql, *args)
        return original(primary, cursor, sql, *args)

    put(mending, "run_on_primary", run_anywhere)


def token_lowered_by_plain_set() -> None:
    """Store the token that comes last, be it lower than the one that is there."""

    def merge(self: Any, records: Any, lives: Any) -> None:
        if random.random() < LATE_SHARE:
            time.sleep(random.uniform(0, LATE_SECONDS))
        for key, record in records.items():
            life = max(1, round(lives[key] * 1000))
            self._client.set(self._cache.make_key(key), record.encode(), px=life)

    put(stores.RedisStore, "_merge", merge)


def lsn_taken_before_commit() -> None:
    """Take the position right after the statement, where a transaction has not committed yet."""
    taken: dict[int, Position] = {}
    ask = wal.read_token
    mark: Callable[..., None] = getattr(on_primary, "mark_written")  # noqa: B009 - not exported

    def mark_written(primary: str, **options: Any) -> None:
        mark(primary, **options)
        raw = connections[primary].connection
        if connections[primary].in_atomic_block:
            row = raw.execute(wal._POSITION_SQL).fetchone()
            lsn, wal_file, _ = row
            taken[threading.get_ident()] = Position(
                rows.read_timeline(wal_file), rows.read_lsn(lsn)
            )

    def read_token(connection: Any, **options: Any) -> Position:
        return taken.pop(threading.get_ident(), None) or ask(connection, **options)

    put(on_primary, "mark_written", mark_written)
    put(wal, "read_token", read_token)


def old_timeline_replica_accepted() -> None:
    """Take a replica of another history, or ahead of the primary, for a good one."""
    foreign = {ReplicaState.AHEAD, ReplicaState.TIMELINE, ReplicaState.UNKNOWN}

    def publish_reading(self: Any, alias: str, reading: Any) -> None:
        with self.known.changed:
            if reading.state in foreign and reading.watermark >= 0:
                reading = replace(reading, state=ReplicaState.STREAMING)
            self.known.set(alias, replace(reading, fresh_at=self.known.clock()))
            self.known.changed.notify_all()

    def publish_sample(self: Any, sample: Any) -> None:
        with self.known.changed:
            self.known.history.samples.append(sample)
            self.known.history.timeline = sample.position.timeline
            self.known.changed.notify_all()

    put(answers.Answers, "publish_reading", publish_reading)
    put(answers.Answers, "publish_sample", publish_sample)


def watermark_kept_over_rebuild() -> None:
    """Believe what a replica once had replayed, although it is not the server that it was."""
    highest: dict[str, Any] = {}
    original = known.Known.set

    def set_reading(self: Any, alias: str, reading: Any, *args: Any) -> None:
        if reading.state is ReplicaState.STREAMING:
            best = highest.get(alias, reading)
            reading = replace(
                reading,
                watermark=max(reading.watermark, best.watermark),
                fresh_at=max(reading.fresh_at, best.fresh_at),
            )
            highest[alias] = reading
        original(self, alias, reading, *args)

    def forget(self: Any, alias: str, life: Any = None) -> None:
        if life is not None:
            self.servers.begin_life(alias, life)

    put(known.Known, "set", set_reading)
    put(known.Known, "forget", forget)
    put(connecting, "_is_known_server", lambda *args: True)
    put(connecting, "_is_watched", lambda *args: True)
    for alias in connections:
        # Nobody meets the end of a connection that was kept over the restart, and is warned.
        connections.settings[alias]["CONN_MAX_AGE"] = 0


def tokens_of_old_timeline_bind_for_ever() -> None:
    """Keep whoever has a token of another timeline on the primary, without an end."""
    load = deciding.load_floor
    bound: dict[str, int] = {}

    def load_floor(primary: str, scope: Any, config: Any) -> Any:
        floor = load(primary, scope, config)
        state = scope.cluster(primary)
        monitor = registry.find_monitor(primary)
        for user in (*scope.identity.users(), *known_owners(state)):
            timeline = bound.setdefault(user, floor.position.timeline or 1 << 31)
            if monitor is not None and timeline < (monitor.history.timeline or 0):
                state.reader.floor = floor = replace(floor, pinned=True)
        return floor

    put(deciding, "load_floor", load_floor)


def early_session_token_ignored() -> None:
    """Read the session's own row as if nobody's token were known yet."""
    put(RequestIdentity, "session", lambda self: None)
    put(deciding, "identifies_unknown_reader", lambda *args: False)


def dropped_tokens_not_missed() -> None:
    """Take whom a cache that drops keys does not know for somebody who has written nothing."""
    put(floors, "may_be_forgotten", lambda *args: False)


def kept_objects_followed_blindly() -> None:
    """Read what is asked for by the alias of an object there, whatever has happened since."""
    put(leading, "_find_server", lambda alias, *args, **kwargs: alias)


def every_write_ignored() -> None:
    """Have what the ORM writes bind nobody, whatever the model."""
    put(on_primary, "is_ignored", lambda sql: isinstance(sql, str) and sql.startswith("UPDATE"))


def writes_yield_as_well() -> None:
    """Remember what was written as if it had only been seen."""
    record = finishing._record

    def take_for_seen(position: Position | None, config: Any, **options: Any) -> Any:
        return record(position, config, is_seen=True)

    put(finishing, "_record", take_for_seen)


def locks_waited_for() -> None:
    """Let a read on a replica wait for a lock for as long as it takes: no ``LOCK_WAIT``."""
    for user in (sights, on_replica, proving):
        put(user, "lock_wait_ms", lambda: 0)


def hanging_servers_waited_for() -> None:
    """End no read that waits for a replica which has stopped answering."""
    put(inflight.InFlight, "end", lambda self, alias, patience: 0)


def hanging_store_waited_for() -> None:
    """Wait for the answer of the token store for as long as it takes: no ``STORE_TIMEOUT``."""
    original = stores.open_store

    def open_store(cache: Any, timeout: float) -> Any:
        return original(cache, 60.0)

    put(stores, "open_store", open_store)


SABOTAGES: dict[str, Callable[[], None]] = {
    sabotage.__name__: sabotage
    for sabotage in (
        token_compare_always_true,
        retry_without_verification,
        token_lowered_by_plain_set,
        lsn_taken_before_commit,
        old_timeline_replica_accepted,
        watermark_kept_over_rebuild,
        early_session_token_ignored,
        tokens_of_old_timeline_bind_for_ever,
        dropped_tokens_not_missed,
        kept_objects_followed_blindly,
        every_write_ignored,
        writes_yield_as_well,
        locks_waited_for,
        hanging_servers_waited_for,
        hanging_store_waited_for,
    )
}
