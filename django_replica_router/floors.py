"""What a reader must see: asked of the token store once in a scope, and again when a user is found."""

from __future__ import annotations

import time

from django_replica_router.conf import Config
from django_replica_router.context import Scope
from django_replica_router.stores import get_store
from django_replica_router.tokens import Floor, Record


def load_floor(primary: str, scope: Scope, config: Config) -> Floor:
    """Return what the reader must see, asking the store for what was not asked before.

    A session's record names its user, so that the row of the session itself is already read
    under the user's token: it may have been deleted from another device.

    Raises:
        StoreError: the store cannot be read.
    """
    state = scope.cluster(primary)
    users = scope.identity.users()
    floor = state.floor
    if floor is None:
        sessions = scope.identity.sessions()
        new_users = users
        floor = Floor()
    elif users == state.seen_users:
        return floor
    else:
        sessions = ()
        new_users = tuple(user for user in users if user not in state.seen_users)
    records = _load(primary, (*sessions, *new_users), config)
    state.sessions |= {session: records[session] for session in sessions}
    owners = {record.owner for record in records.values() if record is not None and record.owner}
    owners -= {*new_users, *state.seen_users}
    records |= _load(primary, tuple(owners), config)
    now_ms = wall_clock_ms()
    for record in records.values():
        if record is not None:
            floor = floor.raised_by(record, now_ms)
    state.floor, state.seen_users = floor, users
    return floor


def _load(primary: str, keys: tuple[str, ...], config: Config) -> dict[str, Record | None]:
    if not keys:
        return {}
    store = get_store(config.CACHE)
    return dict(zip(keys, store.load([store_key(primary, key) for key in keys]), strict=True))


def store_key(primary: str, key: str) -> str:
    return f"rr:{primary}:{key}"


def wall_clock_ms() -> int:
    return round(time.time() * 1000)


def expiry_ms(config: Config) -> int:
    """Return when a token that is taken now expires."""
    return wall_clock_ms() + round(config.TOKEN_TTL * 1000)
