"""What a user must see: a position in the WAL, and what is remembered of it."""

from __future__ import annotations

import re
import string
import struct
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

# The first digit is the version of the form: a record of another version is none.
_FORMAT = re.compile(
    rb"(?P<numbers>(?:2D{24}|3D{40})(?:(?!-{8})D{8})?)(?P<owner>D{16})?".replace(
        b"D", b"[-0-9A-Z_a-z]"
    )
)
_LONGEST = 1 + 40 + 8 + 16
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
        position: at or behind everything that was written, as far as is known; ``NOWHERE`` when the
            key is merely known.
        expires_ms: from when the positions bind nobody any more.
        pinned_until_ms: until when reads must go to the primary, because a write could not be
            located in the WAL.
        owner: the key of the user whom a session belongs to, of 16 digits, or "".
        seen: at or behind everything that was shown, where that lies behind what was written; else
            ``NOWHERE``.
    """

    position: Position = NOWHERE
    expires_ms: int = 0
    pinned_until_ms: int = 0
    owner: str = ""
    seen: Position = NOWHERE

    @property
    def token(self) -> Position:
        """The position at or behind everything that was written or shown."""
        return max(self.position, self.seen)

    def as_written(self) -> Record:
        """Return the record with what was seen counting as written: it is not known to be less."""
        return self._replace(position=self.token, seen=NOWHERE)

    def merge(self, other: Record) -> Record:
        """Return the record that binds at least as much as both. The other's owner wins."""
        position, seen = max(self.position, other.position), max(self.seen, other.seen)
        return Record(
            position,
            max(self.expires_ms, other.expires_ms),
            max(self.pinned_until_ms, other.pinned_until_ms),
            other.owner or self.owner,
            seen if seen > position else NOWHERE,
        )

    def encode(self) -> str:
        """Return the record as text: version, position, expiry, and what was seen, a pin and an owner if any.

        Version 3 has what was seen, and version 2 has not. Widths are fixed, so that the length
        tells what else is there. A number has a multiple of three bytes, and so no padding. It can
        be compared byte by byte, which a Lua script inside the cache server must do: that has no
        integers of 64 bits.
        """
        numbers = _POSITION.pack(*self.position) + _time_bytes(self.expires_ms)
        version = 2
        if self.seen > self.position:
            version = 3
            numbers += _POSITION.pack(*self.seen)
        if self.pinned_until_ms:
            numbers += _time_bytes(self.pinned_until_ms)
        digits = b2a_base64(numbers, newline=False).translate(_TO_DIGITS)
        return f"{version}{digits.decode()}{self.owner}"

    @classmethod
    def decode(cls, value: object) -> Record | None:
        """Return the record that the text or bytes stand for, or None when they are none."""
        if isinstance(value, str):
            try:
                value = value.encode("ascii")
            except UnicodeEncodeError:
                return None
        if not isinstance(value, bytes) or len(value) > _LONGEST:
            return None
        return _decode(value)


@lru_cache(maxsize=512)
def _decode(value: bytes) -> Record | None:
    # That of everybody is asked for again and again, and so is that of who goes from page to page.
    match = _FORMAT.fullmatch(value)
    if match is None:
        return None
    numbers = a2b_base64(match["numbers"][1:].translate(_FROM_DIGITS))
    position, seen, rest = Position(*_POSITION.unpack_from(numbers)), NOWHERE, 18
    if value.startswith(b"3"):
        seen, rest = Position(*_POSITION.unpack_from(numbers, 18)), 30
        if seen <= position:
            return None
    return Record(
        position,
        int.from_bytes(numbers[12:18]),
        int.from_bytes(numbers[rest:]),
        (match["owner"] or b"").decode(),
        seen,
    )


def _time_bytes(time_ms: int) -> bytes:
    return min(time_ms, _MAXIMUM_MS).to_bytes(6)


@dataclass(frozen=True, slots=True)
class Floor:
    """What the present reader must see, from all records known of them.

    Args:
        position: the highest token.
        pinned: reads must go to the primary.
        expires_ms: when that token expires, which tells when it was written or shown.
        written: the part of it that is never given up: at or behind everything that was written.
    """

    position: Position = NOWHERE
    pinned: bool = False
    expires_ms: int = 0
    written: Position = NOWHERE

    def raised_by(self, record: Record, now_ms: int) -> Floor:
        """Return the floor after also taking a record into account."""
        pinned = self.pinned or record.pinned_until_ms > now_ms
        if record.expires_ms <= now_ms:
            return Floor(self.position, pinned, self.expires_ms, self.written)
        written, token = max(self.written, record.position), record.token
        if token <= self.position:
            return Floor(self.position, pinned, self.expires_ms, written)
        return Floor(token, pinned, record.expires_ms, written)


NO_FLOOR = Floor()
"""The floor of who has written and seen nothing."""
