"""Whom sessions belonged to when they were last looked up.

So a session's record and its user's come with one plain question to the cache, and where it has
changed hands a second one follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django_replica_router.values.tokens import Record

_last: dict[str, str] = {}
_MOST = 10_000


def guess(prefix: str, names: Sequence[str]) -> list[str]:
    """Return the owners that the records of these names had; none of those that are not remembered."""
    # Asked once for each: another thread may empty it meanwhile.
    return [owner for name in names if (owner := _last.get(prefix + name))]


def find_missing(names: Sequence[str], found: Mapping[str, Record | None]) -> list[str]:
    """Return the owners that these names' records name, and whose own were not found."""
    missing = []
    for name in names:
        record = found[name]
        if record is not None and record.owner and record.owner not in found:
            missing.append(record.owner)
    return missing


def keep_owned(
    prefix: str, names: Sequence[str], found: Mapping[str, Record | None]
) -> dict[str, Record | None]:
    """Return the records of these names and of their owners: no wrong guess. Remember who owns what."""
    if len(_last) > _MOST:
        _last.clear()
    kept: dict[str, Record | None] = {}
    for name in names:
        record = kept[name] = found[name]
        if record is not None and record.owner:
            owner = _last[prefix + name] = record.owner
            kept[owner] = found[owner]
    return kept
