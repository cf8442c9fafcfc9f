"""What a reader must see: asked of the token store once in a scope, and again when a user is found."""

from __future__ import annotations

import math
import time

from django_replica_router.conf import Config
from django_replica_router.context import ClusterScope, Scope
from django_replica_router.keys import EVERYBODY, store_key, stored_name
from django_replica_router.stores import get_store
from django_replica_router.tokens import Floor, Record

EVERYBODY_SECONDS = 1.0
"""How old the knowledge of that record may be for who is nobody in particular.

A migration ends this much later than it is noted, so that no process reads under older knowledge
afterwards."""


def load_floor(primary: str, scope: Scope, config: Config) -> Floor:
    """Return what the reader must see, asking the store for what was not asked before.

    A session's record names its user, so that the row of the session itself is already read
    under the user's token: it may have been deleted from another device.

    Raises:
        StoreError: the store cannot be read.
    """
    state = scope.cluster(primary)
    users = scope.identity.users()
    if state.floor is not None and users == state.seen_users:
        return state.floor
    if state.floor is None:
        _load(primary, state, config, users, scope.identity.session(), scope.identity.credential())
    else:
        _load(primary, state, config, users)
    now_ms = wall_clock_ms()
    floor = Floor()
    for key, record in list(state.records.items()):  # another thread of the scope may add to them
        if record is not None:
            # What binds everybody does so for as long as it stands.
            floor = floor.raised_by(record, 0 if key == EVERYBODY else now_ms)
    carried = scope.identity.carried(primary)
    if carried is not None:
        floor = floor.raised_by(_clamped(carried, expiry_ms(config)), now_ms)
    state.floor, state.seen_users = floor, users
    return floor


def _clamped(record: Record, latest_ms: int) -> Record:
    # Signed by this site, but perhaps under other settings, or by a clock that was wrong.
    return record._replace(
        expires_ms=min(record.expires_ms, latest_ms),
        pinned_until_ms=min(record.pinned_until_ms, latest_ms),
    )


# What the record for everybody was, and when it was asked for. Who is nobody in particular has
# written nothing: for them it is the floor of the last migration alone, which waits for this.
_last_everybody: dict[tuple[str, str], tuple[float, Record | None]] = {}


def _load(
    primary: str, state: ClusterScope, config: Config, users: tuple[str, ...], *carried: str | None
) -> None:
    new = [key for key in (*users, *carried) if key is not None and key not in state.records]
    asks_for_everybody = EVERYBODY not in state.records
    place = (config.CACHE, primary)
    if asks_for_everybody and not new:
        asked_at, record = _last_everybody.get(place, (-math.inf, None))
        if time.monotonic() - asked_at < EVERYBODY_SECONDS:
            state.records[EVERYBODY] = record
            return
    if asks_for_everybody:
        new.append(EVERYBODY)
    if new:
        now = time.monotonic()
        store = get_store(config.CACHE)
        life = store.life() if asks_for_everybody else ""
        if any(carried):
            names = [stored_name(key, life) for key in new]
            found = store.load_with_owners(store_key(primary, ""), names)
            if asks_for_everybody:
                found[EVERYBODY] = found.pop(stored_name(EVERYBODY, life))
            state.records.update(found)
        else:
            records = store.load([store_key(primary, key, life) for key in new])
            state.records.update(zip(new, records, strict=True))
        if asks_for_everybody and state.records[EVERYBODY] is not None:
            _last_everybody[place] = (now, state.records[EVERYBODY])


def forget_everybody() -> None:
    """Have the record for everybody asked for anew by the next reader."""
    _last_everybody.clear()


def known_owners(state: ClusterScope) -> tuple[str, ...]:
    """Return the users whom the records of session and credential name."""
    # A copy: another thread of the scope may add to them.
    records = list(state.records.values())
    return tuple({record.owner for record in records if record and record.owner})


def may_be_forgotten(state: ClusterScope, config: Config) -> bool:
    """Tell whether the store has no record of the reader, or of a user of theirs, but may have had one.

    Where the cache drops keys to make room, whoever is known has a record for as long as a session's
    is kept, so that one that is missing shows.

    Raises:
        StoreError: the store cannot be opened any more.
    """
    # A copy: another thread of the scope may add to them.
    return None in list(state.records.values()) and get_store(config.CACHE).may_forget()


def wall_clock_ms() -> int:
    """Return the time of day in milliseconds: it passes between processes."""
    return round(time.time() * 1000)


def expiry_ms(config: Config) -> int:
    """Return when a token that is taken now expires."""
    return wall_clock_ms() + round(config.TOKEN_TTL * 1000)


def record_of_everybody(record: Record | None, timeline: int | None) -> Record | None:
    """Return the record that binds everybody, or None where it does not hold.

    One of an older timeline does not: what it counts as lying before it may lie behind the fork.
    """
    if record is None or (timeline is not None and record.position.timeline < timeline):
        return None
    return record
