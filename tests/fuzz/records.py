"""Values in the cache: of other versions, of other owners, cut off, or no text at all."""

from __future__ import annotations

from typing import Any

from django_replica_router.tokens import Floor, Position, Record
from tests.fuzz.mutation import Mutator
from tests.fuzz.surface import Surface, require

_DIGITS = frozenset("0123456789abcdef")
_WIDTHS = (8, 16, 12, 12)


def draw_record(draw: Mutator) -> Record:
    """Return a record that the package can store."""
    random = draw.random

    def below(bits: int) -> int:
        edges = (0, 1, (1 << bits) - 1, 1 << (bits - 1), 9, 10, 15, 16)
        return random.choice(edges) if draw.chance(0.4) else random.getrandbits(bits)

    owner = random.choice(("", random.randbytes(16).hex()))
    return Record(Position(below(32), below(64)), below(48), below(48), owner)


def expected_record(value: Any) -> Record | None:
    """Return what a value stands for, by another way than the package's."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return None
    parts = value.split(":")
    if len(parts) != 6 or parts[0] != "1" or not all(set(part) <= _DIGITS for part in parts):
        return None
    if tuple(map(len, parts[1:5])) != _WIDTHS or len(parts[5]) > 32:
        return None
    timeline, lsn, expires, pinned = (int(part, 16) for part in parts[1:5])
    return Record(Position(timeline, lsn), expires, pinned, parts[5])


def check(value: Any) -> None:
    """Require that a value is read as what it is, and as nothing else."""
    record = Record.decode(value)
    require(record == expected_record(value), f"read as {record}")
    if record is not None:
        text = value.decode() if isinstance(value, bytes) else value
        require(record.encode() == text, f"written again as {record.encode()!r}")
        floor = Floor().raised_by(record, 0)
        require(floor.position <= record.position, f"binds to {floor}")


class Records(Surface):
    """Decoding what is found under a key."""

    name = "records"
    what = "values in the cache"
    share = 0.33

    def case(self) -> None:
        """Decode something."""
        draw = self.draw
        if draw.chance(0.2):
            record = draw_record(draw)
            value: Any = record.encode()
            self.tally.kinds["genuine"] += 1
            self.present = value
            require(Record.decode(value) == record, "is not read back")
        elif draw.chance(0.7):
            value = draw.changed(draw_record(draw).encode())
            self.tally.kinds["changed"] += 1
        else:
            value = draw.value()
            self.tally.kinds["anything"] += 1
        if isinstance(value, str) and draw.chance(0.5):
            value = value.encode("utf-8", "surrogatepass")
        self.present = value
        check(value)
