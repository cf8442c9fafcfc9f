"""What a reader must see: asked of the token store once in a scope, and again when a user is found."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

from django_replica_router.conf import Config
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.keys import EVERYBODY, store_key, stored_name
from django_replica_router.scopes.scope import Identity, Scope
from django_replica_router.stores.store import TokenStore, get_store
from django_replica_router.values.tokens import NO_FLOOR, Floor, Position, Record

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
    state, identity = scope.cluster(primary), scope.identity
    users, reader = identity.users(), state.reader
    if reader.floor is None:
        is_nobody = not (users or scope.seen_keys or reader.records) and identity.carries_nothing()
        floor = _take_last_everybody(primary, state, config) if is_nobody else None
        if floor is not None:
            reader.floor = floor
            return floor
        carried = [key for key in (identity.session(), identity.credential()) if key]
        named = (*users, *scope.seen_keys)
        if named or carried or _take_last_everybody(primary, state, config) is None:
            _load(primary, state, config, named, carried)
            owners = known_owners(state) if carried else ()
            # The user where one is known, so that all devices of a user meet the same replica; and before
            # whomever IDENTITY names: those are known sooner than the user, or later.
            signed_in = users if config.IDENTITY is None else filter(None, [identity.owner()])
            reader.name = next(iter((*signed_in, *owners, *users, *carried)), "")
            reader.is_stranger = not users and not owners
    elif users == reader.users:
        return reader.floor
    else:
        _load(primary, state, config, users)
        reader.name, reader.is_stranger = users[0], False
    reader.floor, reader.users = _floor_of(primary, state, identity, config), users
    return reader.floor


def _floor_of(primary: str, state: ClusterScope, identity: Identity, config: Config) -> Floor:
    """Return what all records bind the reader to, those in the store and the browser's own."""
    known = dict(state.reader.records)  # another thread of the scope may add to them
    floor = _floor_of_everybody(known.pop(EVERYBODY, None))
    carried = identity.carried(primary)
    if not known and carried is None:
        return floor
    mine = [record for record in known.values() if record is not None]
    if carried is not None:
        mine.append(clamped(carried, expiry_ms(config)))
    now_ms = wall_clock_ms()
    for record in mine:
        floor = floor.raised_by(record, now_ms)
    return floor


@lru_cache(maxsize=16)
def _floor_of_everybody(record: Record | None) -> Floor:
    # What binds everybody does so for as long as it stands.
    return NO_FLOOR if record is None else NO_FLOOR.raised_by(record, 0)


def clamped(record: Record, latest_ms: int) -> Record:
    """Return a record that came from outside, binding no longer than one that is taken now.

    It was signed by one who knows the key, but perhaps under other settings, or by a clock that was wrong.
    """
    return record._replace(
        expires_ms=min(record.expires_ms, latest_ms),
        pinned_until_ms=min(record.pinned_until_ms, latest_ms),
    )


# What the record for everybody was, and when it was asked for. Who is nobody in particular has
# written nothing: for them it is the floor of the last migration alone, which waits for this.
_last_everybody: dict[tuple[str, str], tuple[float, Record]] = {}


def _take_last_everybody(primary: str, state: ClusterScope, config: Config) -> Floor | None:
    """Take the record for everybody as it was a moment ago; return its floor, or None where there is none."""
    last = _last_everybody.get((config.CACHE, primary))
    if last is None or time.monotonic() - last[0] >= EVERYBODY_SECONDS:
        return None
    state.reader.records[EVERYBODY] = last[1]
    return _floor_of_everybody(last[1])


def _load(
    primary: str,
    state: ClusterScope,
    config: Config,
    users: tuple[str, ...],
    carried: Sequence[str] = (),
) -> None:
    """Ask the store for the records of these keys, and for that of everybody, once each."""
    known = state.reader.records
    new = [key for key in (*users, *carried) if key not in known]
    asks_for_everybody = EVERYBODY not in known
    if not new and not asks_for_everybody:
        return
    now = time.monotonic()
    store = get_store(config.CACHE)
    names = new
    if asks_for_everybody:
        everybody = stored_name(EVERYBODY, store.life())
        names = [*new, everybody]
    prefix = store_key(primary, "")
    if carried:
        found = store.load_with_owners(prefix, names)
    else:
        found = dict(zip(names, store.load([prefix + name for name in names]), strict=True))
    if asks_for_everybody:
        known[EVERYBODY] = record = found.pop(everybody)
        if record is not None:
            _last_everybody[config.CACHE, primary] = now, record
    state.reader.may_be_forgotten = may_be_forgotten(found, store) or state.reader.may_be_forgotten
    known.update(found)


def forget_everybody() -> None:
    """Have the record for everybody asked for anew by the next reader."""
    _last_everybody.clear()


def known_owners(state: ClusterScope) -> tuple[str, ...]:
    """Return the users whom the records of session and credential name, that of the session first."""
    # A copy: another thread of the scope may add to them.
    records = list(state.reader.records.values())
    owners = [record.owner for record in records if record and record.owner]
    return tuple(dict.fromkeys(owners))  # a credential may be one for all, as that of a test site


def may_be_forgotten(records: Mapping[str, Record | None], store: TokenStore) -> bool:
    """Tell whether the store has no record of the reader, or of a user of theirs, but may have had one.

    Where the cache drops keys to make room, whoever is known has a record for as long as a session's
    is kept, so that one that is missing shows.
    """
    return None in records.values() and store.may_forget()


def wall_clock_ms() -> int:
    """Return the time of day in milliseconds: it passes between processes."""
    return round(time.time() * 1000)


def expiry_ms(config: Config) -> int:
    """Return when a token that is taken now expires."""
    return wall_clock_ms() + round(config.TOKEN_TTL * 1000)


def pin(config: Config) -> Record:
    """Return the record that sends reads to the primary for as long as a token lives."""
    return Record(pinned_until_ms=expiry_ms(config))


def record_at(position: Position | None, config: Config, *, is_seen: bool = False) -> Record:
    """Return the record of a position, or of a write without one: a pin to the primary.

    Args:
        position: the position.
        config: the settings.
        is_seen: up to there something was seen, and nothing written.
    """
    if position is None:
        return pin(config)
    if is_seen:
        return Record(expires_ms=expiry_ms(config), seen=position)
    return Record(position, expiry_ms(config))


def record_of_everybody(record: Record | None, timeline: int | None) -> Record | None:
    """Return the record that binds everybody, or None where it does not hold.

    One of an older timeline does not: what it counts as lying before it may lie behind the fork.
    """
    if record is None or (timeline is not None and record.position.timeline < timeline):
        return None
    return record
