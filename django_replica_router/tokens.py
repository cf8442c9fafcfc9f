"""What a user must see: a position in the WAL, and what is remembered of it."""

from __future__ import annotations

import re
import string
import struct
from binascii import a2b_base64, b2a_base64
from typing import NamedTuple

# The first digit is the version of the form: a record of another version is none.
_FORMAT = re.compile(
    rb"2(?P<numbers>[-0-9A-Z_a-z]{24}(?:(?!-{8})[-0-9A-Z_a-z]{8})?)(?P<owner>[-0-9A-Z_a-z]{16})?"
)
_MAXIMUM_MS = (1 << 48) - 1

# Base64 with the digits that it has in URLs, as the package's keys have, but in the order of their
# bytes: of two texts of one length the higher is that of the higher number.
_DIGITS = ("-" + string.digits + string.ascii_uppercase + "_" + string.ascii_lowercase).encode()
_BASE64 = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/").encode()
_TO_DIGITS = bytes.maketrans(_BASE64, _DIGITS)
_FROM_DIGITS = bytes.maketrans(_DIGITS, _BASE64)
_POSITION = struct.Struct(">IQ")


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
        owner: the key of the user whom a session belongs to, of 16 digits, or "".
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
        """Return the record as text: version, position, expiry, and a pin and an owner if any.

        Widths are fixed, so that the length tells what is there. A number has a multiple of three
        bytes, and so no padding. It can be compared byte by byte, which a Lua script inside the
        cache server must do: that has no integers of 64 bits.
        """
        numbers = _POSITION.pack(*self.position) + _time_bytes(self.expires_ms)
        if self.pinned_until_ms:
            numbers += _time_bytes(self.pinned_until_ms)
        digits = b2a_base64(numbers, newline=False).translate(_TO_DIGITS)
        return f"2{digits.decode()}{self.owner}"

    @classmethod
    def decode(cls, value: object) -> Record | None:
        """Return the record that the text or bytes stand for, or None when they are none."""
        if isinstance(value, str):
            try:
                value = value.encode("ascii")
            except UnicodeEncodeError:
                return None
        if not isinstance(value, bytes):
            return None
        match = _FORMAT.fullmatch(value)
        if match is None:
            return None
        numbers = a2b_base64(match["numbers"].translate(_FROM_DIGITS))
        return cls(
            Position(*_POSITION.unpack_from(numbers)),
            int.from_bytes(numbers[12:18]),
            int.from_bytes(numbers[18:]),
            (match["owner"] or b"").decode(),
        )


def _time_bytes(time_ms: int) -> bytes:
    return min(time_ms, _MAXIMUM_MS).to_bytes(6)


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
