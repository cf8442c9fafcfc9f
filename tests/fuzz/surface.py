"""What all surfaces have in common: cases out of a seed, and a tally of what they came to."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from testproject.cluster.managed import Managed
from tests.fuzz.mutation import Mutator

KEPT = 5
SHOWN = 300


class BrokenError(Exception):
    """Something that must hold does not."""


def require(condition: bool, what: str) -> None:
    """Have a case fail unless something holds.

    Raises:
        BrokenError: it does not.
    """
    if not condition:
        raise BrokenError(what)


@dataclass(slots=True)
class Tally:
    """What the cases of one surface came to.

    Args:
        kinds: how many cases there were of each kind: a kind without any proves nothing.
        findings: the first of what was found.
        found: how much was found.
    """

    cases: int = 0
    seconds: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    found: int = 0

    def add(self, error: Exception, case: Any) -> None:
        """Note something that was found."""
        self.found += 1
        if len(self.findings) < KEPT:
            self.findings.append(f"{type(error).__name__}: {error}; case: {case!r}"[:SHOWN])


class Surface(Managed):
    """A way by which values come in that nobody here has made.

    Args:
        random: decides on all cases.
        tally: is told of them.
    """

    name: ClassVar[str]
    what: ClassVar[str]
    share: ClassVar[float]
    """Of all cases: those that cost more are fewer."""

    per_call: ClassVar[int] = 1
    needs: ClassVar[str] = ""
    """The servers that must be there: "cluster", or none."""

    def __init__(self, random: Random, tally: Tally) -> None:
        self.random = random
        self.draw = Mutator(random)
        self.tally = tally
        self.present: Any = None

    def _open(self, stack: ExitStack) -> None:
        """Change what the run needs otherwise; most need nothing."""

    @abstractmethod
    def case(self) -> None:
        """Draw a case, note it as the present one, and require what must hold."""

    def end(self) -> None:
        """Require what must hold of all cases together."""


def run(kind: type[Surface], seed: int, cases: int) -> Tally:
    """Run cases of one surface."""
    tally = Tally()
    began = time.monotonic()
    with kind(Random(f"{seed} {kind.name}"), tally) as surface:
        while tally.cases < cases:
            tally.cases += surface.per_call
            try:
                surface.case()
            except Exception as error:  # nothing at all may be raised: that is what is looked for
                tally.add(error, surface.present)
        try:
            surface.end()
        except Exception as error:
            tally.add(error, "all together")
    tally.seconds = time.monotonic() - began
    return tally
