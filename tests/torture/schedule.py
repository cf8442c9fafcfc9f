"""Which fault comes when: drawn from a seed, the same each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import NamedTuple

import psycopg

from testproject.cluster import ClusterError
from tests.torture.arena import Arena
from tests.torture.faults import FAULTS, LAGS

PAIRED_SHARE = 0.5
HOLD_SECONDS = (0.6, 2.2)
CALM_SECONDS = (0.1, 0.8)
LAG_CHANGE_SECONDS = 0.5
QUIET_SECONDS = 1.0
OVER = object()


class Step(NamedTuple):
    """Faults that are there at the same time.

    Args:
        faults: name and target of each; a target that a fault has no use for is left out.
        seed: of what the faults themselves draw.
        hold: seconds for which they last.
        calm: seconds before the next.
    """

    faults: tuple[tuple[str, int], ...]
    seed: int
    hold: float
    calm: float


def schedule(
    seed: int,
    names: Sequence[str],
    targets: Sequence[int],
    *,
    hold: tuple[float, float] = HOLD_SECONDS,
) -> Iterator[list[Step]]:
    """Yield rounds without end. Each round has every fault once, in another order.

    Args:
        seed: decides all.
        names: of the faults. Where there are none, a round is a while in which nothing happens.
        targets: the replicas that faults may take, counted from 0.
        hold: least and most seconds that faults last.
    """
    random = Random(f"schedule {seed}")
    while True:
        order = list(names)
        random.shuffle(order)
        steps = []
        while order:
            first = order.pop()
            target = random.choice(targets)
            faults = [(first, target)]
            partner = _partner(first, order) if random.random() < PAIRED_SHARE else None
            others = [place for place in targets if place != target]
            if partner is not None and others:
                order.remove(partner)
                faults.append((partner, random.choice(others)))
            steps.append(
                Step(
                    tuple(faults),
                    random.randrange(1 << 32),
                    random.uniform(*hold),
                    random.uniform(*CALM_SECONDS),
                )
            )
        yield steps or [Step((), 0, QUIET_SECONDS, 0.0)]


def _partner(first: str, others: Sequence[str]) -> str | None:
    if FAULTS[first].scope == "cluster":
        return None
    # Of the replicas there are several; what has been killed cannot be emptied, nor hang.
    taken = {"cluster", FAULTS[first].scope} - {"replica"}
    return next((name for name in others if FAULTS[name].scope not in taken), None)


class Director:
    """Puts steps into effect, with the replicas' lag changing in between.

    Args:
        arena: where.
        seed: of the lags.
        changes_lag: let idle replicas replay more or less late all the time.
    """

    def __init__(self, arena: Arena, seed: int, *, changes_lag: bool) -> None:
        self.injected: Counter[str] = Counter()
        self._arena = arena
        self._random = Random(f"lag {seed}")
        self._changes_lag = changes_lag

    def perform(self, step: Step) -> None:
        """Break what the step says, wait, and mend it."""
        arena = self._arena
        random = Random(step.seed)
        hold = max([step.hold, *(FAULTS[name].least for name, _ in step.faults)])
        aliases = sorted(arena.replicas)
        targets = [(name, aliases[place]) for name, place in step.faults]
        arena.busy = {alias for name, alias in targets if FAULTS[name].scope == "replica"}
        try:
            running = []
            for name, alias in targets:
                with arena.window(name, alias):
                    fault = FAULTS[name].run(arena, alias, random)
                    next(fault)
                self.injected[name] += 1
                running.append((name, alias, fault))
            self._wait(hold)
            # Backwards, as blocks nest. Some have more than one act.
            while running:
                name, alias, fault = running.pop()
                with arena.window(f"{name}, end of", alias):
                    is_over = next(fault, OVER) is OVER
                if not is_over:
                    self._wait(step.hold)
                    running.append((name, alias, fault))
        finally:
            arena.busy = set()
        self._wait(step.calm)

    def _wait(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            part = min(left, LAG_CHANGE_SECONDS)
            self._arena.ended.wait(part)
            left -= part
            self._change_lag()

    def _change_lag(self) -> None:
        idle = sorted(self._arena.idle())
        alias, seconds = (self._random.choice(idle or [""]), self._random.choice(LAGS))
        if not self._changes_lag or not idle or self._arena.ended.is_set():
            return
        # A replica that follows a primary which has just been replaced may be restarting.
        with suppress(ClusterError, psycopg.Error):
            self._arena.replicas[alias].set_delay(seconds)
