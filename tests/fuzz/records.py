"""Values in the cache: of other versions, of other owners, cut off, or no text at all."""

from __future__ import annotations

from typing import Any

from django_replica_router.values.tokens import NOWHERE, Floor, Position, Record
from tests.fuzz.mutation import Mutator
from tests.fuzz.surface import Surface, require

_DIGITS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
_WIDTHS = {24: (0, 0), 32: (8, 0), 40: (0, 16), 48: (8, 16)}
"""Of pin and owner, by the number of digits."""


def draw_record(draw: Mutator) -> Record:
    """Return a record that the package can store."""
    random = draw.random

    def below(bits: int) -> int:
        edges = (0, 1, (1 << bits) - 1, 1 << (bits - 1), 9, 10, 15, 16)
        return random.choice(edges) if draw.chance(0.4) else random.getrandbits(bits)

    owner = random.choice(("", "".join(random.choices(_DIGITS, k=16))))
    record = Record(Position(below(32), below(64)), below(48), below(48), owner)
    seen = Position(below(32), below(64)) if draw.chance(0.5) else NOWHERE
    return record._replace(seen=seen) if seen > record.position else record


def expected_record(value: Any) -> Record | None:
    """Return what a value stands for, by another way than the package's."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        return None
    version, digits, seen = value[:1], value[1:], NOWHERE
    if version not in {"2", "3"} or not set(digits) <= set(_DIGITS):
        return None
    if version == "3":
        seen = _position(digits[24:40])
        digits = digits[:24] + digits[40:] if len(digits) >= 40 else ""
    if len(digits) not in _WIDTHS:
        return None
    pin_width, owner_width = _WIDTHS[len(digits)]
    pinned = _number(digits[24 : 24 + pin_width])
    if pin_width and not pinned:
        return None
    position = _position(digits[:16])
    if version == "3" and seen <= position:
        return None
    owner = digits[len(digits) - owner_width :]
    return Record(position, _number(digits[16:24]), pinned, owner, seen)


def _position(digits: str) -> Position:
    return Position(*divmod(_number(digits), 1 << 64))


def _number(digits: str) -> int:
    number = 0
    for digit in digits:
        number = number * 64 + _DIGITS.index(digit)
    return number


def check(value: Any) -> None:
    """Require that a value is read as what it is, and as nothing else."""
    record = Record.decode(value)
    require(record == expected_record(value), f"read as {record}")
    if record is not None:
        text = value.decode() if isinstance(value, bytes) else value
        require(record.encode() == text, f"written again as {record.encode()!r}")
        floor = Floor().raised_by(record, 0)
        require(floor.position <= max(record.position, record.seen), f"binds to {floor}")
        require(floor.written <= record.position, f"has written up to {floor}")


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
