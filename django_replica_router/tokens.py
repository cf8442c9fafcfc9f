"""What a user must see: a position in the WAL, and what is remembered of it."""

from __future__ import annotations

import re
from typing import NamedTuple

_FORMAT = re.compile(
    r"1:(?P<timeline>[0-9a-f]{8}):(?P<lsn>[0-9a-f]{16})"
    r":(?P<expires>[0-9a-f]{12}):(?P<pinned>[0-9a-f]{12}):(?P<owner>[0-9a-f]{0,32})",
    re.ASCII,
)
_MAXIMUM_MS = (1 << 48) - 1


class Position(NamedTuple):
    """A place in the WAL. Compares by timeline first: a later history is always ahead."""

    timeline: int
    lsn: int


NOWHERE = Position(0, 0)
"""The position that every server has passed."""


class Record(NamedTuple):
    """What the token store remembers under one key.

    Times are wall-clock milliseconds since the epoch, because they pass between processes.

    Args:
        position: the token; ``NOWHERE`` when the key is merely known.
        expires_ms: from when the position binds nobody any more.
        pinned_until_ms: until when reads must go to the primary, because a write could not be
            located in the WAL.
        owner: the key of the user whom a session belongs to, or "".
    """

    position: Position = NOWHERE
    expires_ms: int = 0
    pinned_until_ms: int = 0
    owner: str = ""

    def merge(self, other: Record) -> Record:
        """Return the record that binds at least as much as both. The other's owner wins."""
        return Record(
            max(self.position, other.position),
            max(self.expires_ms, other.expires_ms),
            max(self.pinned_until_ms, other.pinned_until_ms),
            other.owner or self.owner,
        )

    def encode(self) -> str:
        """Return the record as text whose fields have fixed widths.

        Numbers are zero-padded hexadecimal, so that a Lua script inside the cache server, which
        has no 64-bit integers, can compare them as text.
        """
        return (
            f"1:{self.position.timeline:08x}:{self.position.lsn:016x}"
            f":{min(self.expires_ms, _MAXIMUM_MS):012x}"
            f":{min(self.pinned_until_ms, _MAXIMUM_MS):012x}:{self.owner}"
        )

    @classmethod
    def decode(cls, value: object) -> Record | None:
        """Return the record that the text or bytes stand for, or None when they are none."""
        if isinstance(value, bytes):
            try:
                value = value.decode("ascii")
            except UnicodeDecodeError:
                return None
        if not isinstance(value, str):
            return None
        match = _FORMAT.fullmatch(value)
        if match is None:
            return None
        return cls(
            Position(int(match["timeline"], 16), int(match["lsn"], 16)),
            int(match["expires"], 16),
            int(match["pinned"], 16),
            match["owner"],
        )


class Floor(NamedTuple):
    """What the present reader must see, from all records known of them.

    Args:
        position: the highest token.
        pinned: reads must go to the primary.
        expires_ms: when that token expires, which tells when it was written.
    """

    position: Position = NOWHERE
    pinned: bool = False
    expires_ms: int = 0

    def raised_by(self, record: Record, now_ms: int) -> Floor:
        """Return the floor after also taking a record into account."""
        pinned = self.pinned or record.pinned_until_ms > now_ms
        if record.expires_ms <= now_ms or record.position <= self.position:
            return self._replace(pinned=pinned)
        return Floor(record.position, pinned, record.expires_ms)
