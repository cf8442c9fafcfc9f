"""In which order the replicas of a cluster are tried."""

from __future__ import annotations

import itertools
import math
import random
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence

from django.utils.module_loading import import_string

Balancer = Callable[[str, Mapping[str, float]], Sequence[str]]
"""Takes a text that stands for the reader, or "", and the weight of each replica. Returns the
aliases, the one to prefer first."""

_turns = itertools.count()

# Not the state that the process shares: a forked worker would draw as its siblings do.
_draw = random.SystemRandom()


def _ranked(weights: Mapping[str, float], draw: Callable[[str], float]) -> list[str]:
    # Of numbers -log(u)/w with u drawn evenly from (0, 1], the one of weight w is the smallest in
    # w of every sum-of-weights cases.
    return sorted(weights, key=lambda alias: -math.log(draw(alias)) / weights[alias])


def rendezvous(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Rank by a hash of reader and replica: the same reader meets the same replica everywhere.

    Where a replica leaves or comes, only its own readers move (Thaler and Ravishankar, "Using
    name-based mappings to increase hit rates", 1998). A reader without a name is sent anywhere.
    """
    if not reader:
        return random_order(reader, weights)
    # The hash is mixed once more: CRC-32 alone is linear, and names that differ in one digit
    # would give correlated ranks.
    return _ranked(
        weights,
        lambda alias: (
            (zlib.crc32(f"{alias}:{reader}".encode()) * 0x9E3779B97F4A7C15 % (1 << 64) + 1)
            / (1 << 64)
        ),
    )


def random_order(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Rank at random, by weight."""
    return _ranked(weights, lambda alias: 1.0 - _draw.random())


def round_robin(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Begin one replica further each time. Weights do not count."""
    aliases = list(weights)
    first = next(_turns) % len(aliases) if aliases else 0
    return aliases[first:] + aliases[:first]


class LeastInFlight:
    """Rank by how many scopes of this process work with the replica now, by weight."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}

    def __call__(self, reader: str, weights: Mapping[str, float]) -> list[str]:
        shuffled = random_order(reader, weights)
        return sorted(shuffled, key=lambda alias: self._counts.get(alias, 0) / weights[alias])

    def enter(self, alias: str) -> None:
        """Count one scope more."""
        with self._lock:
            self._counts[alias] = self._counts.get(alias, 0) + 1

    def leave(self, alias: str) -> None:
        """Count one scope less."""
        with self._lock:
            self._counts[alias] -= 1


least_in_flight = LeastInFlight()

_BALANCERS: dict[str, Balancer] = {
    "rendezvous": rendezvous,
    "random": random_order,
    "round_robin": round_robin,
    "least_in_flight": least_in_flight,
}


def get_balancer(name: str) -> Balancer:
    """Return the balancer of that name, or the callable at that dotted path.

    Raises:
        ImportError: there is nothing at the path.
    """
    balancer = _BALANCERS.get(name)
    if balancer is None:
        balancer = import_string(name)
    return balancer
