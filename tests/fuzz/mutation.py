"""Values that nobody expects, drawn from a seed."""

from __future__ import annotations

import json
import pickle
import string
from random import Random
from typing import Any

STRANGE = (
    "",
    " ",
    "\n",
    "\0",
    "\x7f",
    "\u0660\u0661\u0662",  # digits, but not those of ASCII
    "\uff11\uff21",
    "\udc80",  # half a pair
    "\u202e",
    "\U0001f600",
    "None",
    "null",
    "NaN",
    "-1",
    "1e309",
    "0x10",
    "../../etc/passwd",
    "' OR 1=1 --",
    "%s%n{}",
    "a" * 300,
)
NUMBERS = (
    0,
    -1,
    1,
    255,
    -(1 << 31),
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 48) - 1,
    1 << 48,
    (1 << 63) - 1,
    1 << 64,
    10**400,
    0.0,
    -0.0,
    0.5,
    5e-324,
    1.7e308,
    float("inf"),
    float("-inf"),
    float("nan"),
)
HUGE = 100_000
_ALPHABET = string.ascii_letters + string.digits + string.punctuation + " \t\n\0é\u0661\udc80"


class Mutator:
    """Draws values and changes them.

    Args:
        random: decides.
    """

    def __init__(self, random: Random) -> None:
        self.random = random

    def chance(self, share: float) -> bool:
        """Tell whether something happens that happens in that share of all cases."""
        return self.random.random() < share

    def text(self, most: int = 40) -> str:
        """Return a text that may hold anything."""
        if self.chance(0.2):
            return self.random.choice(STRANGE)
        if self.chance(0.001):
            return self.random.choice(_ALPHABET) * HUGE
        length = self.random.randrange(most)
        return "".join(self.random.choices(_ALPHABET, k=length))

    def changed(self, text: str) -> str:
        """Return a text with a few changes, mostly such as are easily overlooked."""
        for _ in range(self.random.choice((1, 1, 1, 2, 3))):
            text = self._changed(text)
        return text

    def _changed(self, text: str) -> str:
        random = self.random
        at = random.randrange(len(text) + 1)
        way = random.randrange(9)
        if way == 0:
            return text[:at] + text[at + 1 :]
        if way == 1:
            return text[:at] + random.choice(_ALPHABET) + text[at:]
        if way == 2:
            return text[:at] + random.choice(_ALPHABET) + text[at + 1 :]
        if way == 3:
            return text[:at]
        if way == 4:
            return text[:at] + text[at:].upper()
        if way == 5:
            return text + random.choice(("\n", " ", "\0", ":", "0"))
        if way == 6:
            return random.choice(("\n", " ", "0", "\ufeff")) + text
        if way == 7:
            return text + text
        return text[:at] + random.choice(STRANGE) + text[at:]

    def value(self, depth: int = 2) -> Any:
        """Return a value of any kind."""
        kinds = 12 if depth else 8
        kind = self.random.randrange(kinds)
        if kind == 0:
            return None
        if kind == 1:
            return self.chance(0.5)
        if kind in (2, 3):
            return self.number()
        if kind in (4, 5):
            return self.text()
        if kind == 6:
            return self.bytes()
        if kind == 7:
            return self.random.choice((1j, object, frozenset({1}), 0.1, b"", ()))
        if kind == 8:
            return [self.value(depth - 1) for _ in range(self.random.randrange(3))]
        if kind == 9:
            return tuple(self.value(depth - 1) for _ in range(self.random.randrange(3)))
        if kind == 10:
            return {self.text(8): self.value(depth - 1) for _ in range(self.random.randrange(3))}
        return {self.random.choice((1, None, True, ("a",))): self.value(depth - 1)}

    def number(self) -> int | float:
        """Return a number at some edge, or anywhere."""
        if self.chance(0.6):
            return self.random.choice(NUMBERS)
        if self.chance(0.5):
            return self.random.randrange(1 << self.random.choice((4, 16, 32, 63, 65)))
        return self.random.uniform(-10, 100)

    def bytes(self) -> bytes:
        """Return bytes: at random, or of something that others might have stored."""
        way = self.random.randrange(4)
        if way == 0:
            return self.random.randbytes(self.random.randrange(60))
        if way == 1:
            return pickle.dumps(self.text(10).encode(errors="replace").decode())
        if way == 2:
            return json.dumps(self.text(10)).encode()
        return self.text().encode("utf-8", "surrogatepass")
