"""What a token carries from one process to another: for each cluster what its bearer must see."""

from __future__ import annotations

import struct
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Self

from django_replica_router.values.tokens import NOWHERE, Position, Record

_VERSION = "1"
_HEAD = struct.Struct(">QBB")  # system identifier, what else there is, open transactions
_POSITION = struct.Struct(">IQ")
_TRANSACTION = struct.Struct(">Q")
_HAS_SEEN, _HAS_PIN = 1, 2

MOST_CLUSTERS = 16
"""A request that goes through more of them than that carries those of the latest writes."""

MOST_OPEN = 8
"""Transactions of one cluster that a token can name."""

LONGEST = 4096
"""Characters beyond which a text is no token."""


class Entry(NamedTuple):
    """What the bearer must see of one cluster.

    Args:
        record: its positions, when they expire, and until when reads must go to the primary.
        open: numbers of transactions that were open when the token was made, and have written. What
            they write has a position only when they have ended.
    """

    record: Record
    open: frozenset[int] = frozenset()

    def merge(self, other: Entry) -> Entry:
        """Return the entry that binds at least as much as both."""
        record = self.record.merge(other.record)._replace(owner="")
        return Entry(record, self.open | other.open)

    def covers(self, other: Entry) -> bool:
        """Tell whether who sees what this one binds to sees what the other one does."""
        mine, others = self.record, other.record
        return (
            mine.position >= others.position
            and mine.token >= others.token
            and mine.pinned_until_ms >= others.pinned_until_ms
            and self.open >= other.open
        )

    def encode(self, system: int) -> bytes:
        """Return the entry of the cluster with that system identifier as bytes."""
        record = self.record
        parts = [
            _POSITION.pack(*record.position),
            record.expires_ms.to_bytes(6),
        ]
        flags = 0
        if record.seen > record.position:
            flags |= _HAS_SEEN
            parts.append(_POSITION.pack(*record.seen))
        if record.pinned_until_ms:
            flags |= _HAS_PIN
            parts.append(record.pinned_until_ms.to_bytes(6))
        parts += [_TRANSACTION.pack(number) for number in sorted(self.open)]
        return _HEAD.pack(system, flags, len(self.open)) + b"".join(parts)


class _Reader:
    """Takes numbers from bytes, one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes.

        Raises:
            ValueError: there are fewer.
        """
        part = self.data[self.at : self.at + size]
        if len(part) < size:
            message = "The token ends early."
            raise ValueError(message)
        self.at += size
        return part

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Yield each cluster's system identifier and entry.

        Raises:
            ValueError: there is something else.
        """
        while self.at < len(self.data):
            system, flags, transactions = _HEAD.unpack(self.take(_HEAD.size))
            position = self._position()
            expires_ms = int.from_bytes(self.take(6))
            seen = self._position() if flags & _HAS_SEEN else NOWHERE
            pinned_until_ms = int.from_bytes(self.take(6)) if flags & _HAS_PIN else 0
            numbers = [_TRANSACTION.unpack(self.take(8))[0] for _ in range(transactions)]
            yield (
                system,
                Entry(Record(position, expires_ms, pinned_until_ms, seen=seen), frozenset(numbers)),
            )

    def _position(self) -> Position:
        return Position(*_POSITION.unpack(self.take(_POSITION.size)))


class Carried:
    """What a token carries. Never changed: ``|`` makes another one, which binds at least as much as both.

    ``a >= b`` tells whether who sees all that ``a`` binds to sees all that ``b`` does. Of two tokens neither may
    cover the other: each may be ahead in a cluster of its own.

    Args:
        entries: by the cluster's system identifier, which a primary and its standbys share.
    """

    __slots__ = ("entries",)

    def __init__(self, entries: Mapping[int, Entry] | None = None) -> None:
        self.entries: Mapping[int, Entry] = dict(entries or {})

    def __or__(self, other: Carried) -> Self:
        merged = dict(self.entries)
        for system, entry in other.entries.items():
            merged[system] = merged[system].merge(entry) if system in merged else entry
        return type(self)(merged)

    def __ge__(self, other: Carried) -> bool:
        return all(
            system in self.entries and self.entries[system].covers(entry)
            for system, entry in other.entries.items()
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Carried) and self.entries == other.entries

    def __hash__(self) -> int:
        return hash(frozenset(self.entries.items()))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def replace(self, system: int, entry: Entry) -> Self:
        """Return the same with another entry of one cluster."""
        return type(self)({**self.entries, system: entry})

    def encode(self) -> str:
        """Return it as text, in characters that need no quotes anywhere: its version, and Base64 for URLs."""
        latest = sorted(self.entries.items(), key=lambda item: item[1].record.expires_ms)
        data = b"".join(entry.encode(system) for system, entry in latest[-MOST_CLUSTERS:])
        return _VERSION + urlsafe_b64encode(data).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what a text stands for.

        Raises:
            ValueError: it is of another version, or broken.
        """
        digits = text[1:] + "=" * (-(len(text) - 1) % 4)
        try:
            if text.startswith(_VERSION) and len(text) <= LONGEST:
                data = b64decode(digits, altchars=b"-_", validate=True)
                return cls(dict(_Reader(data).entries()))
        except ValueError as error:
            message = f"The token is broken: {error}"
            raise ValueError(message) from error
        message = (
            f"The token is none: it begins with {_VERSION} and has at most {LONGEST} characters."
        )
        raise ValueError(message)
