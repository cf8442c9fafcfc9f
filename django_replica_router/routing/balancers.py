"""In which order the replicas of a cluster are tried."""

from __future__ import annotations

import itertools
import math
import random
import zlib
from array import array
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence

from django.utils.module_loading import import_string

from django_replica_router.errors import ConfigurationError, tell_import_failure
from django_replica_router.forking import after_fork, make_lock

Balancer = Callable[[str, Mapping[str, float]], Sequence[str]]
"""Takes a text that stands for the reader, or "", and the weight of each replica. Returns the
aliases, the one to prefer first."""

_turns = itertools.count()

# Not the state that the process shares: tests seed that.
_draw = random.Random()  # noqa: S311 - who draws well gains nothing
after_fork(_draw.seed)  # else a forked worker would draw as its siblings do


def _ranked(weights: Mapping[str, float], draw: Callable[[str], float]) -> list[str]:
    # Of numbers -log(u)/w with u drawn evenly from (0, 1], the one of weight w is the smallest in
    # w of every sum-of-weights cases.
    return sorted(weights, key=lambda alias: -math.log(draw(alias)) / weights[alias])


def rendezvous(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Rank by a hash of reader and replica: the same reader meets the same replica everywhere.

    Where a replica leaves or comes, only its own readers move (Thaler and Ravishankar, "Using
    name-based mappings to increase hit rates", 1998). A reader without a name is sent anywhere.
    """
    return _ranked_by_slot(_slot(reader), weights) if reader else random_order(reader, weights)


_SLOTS = 1 << 16


def _slot(reader: str) -> int:
    """Return the slot that the reader shares with few others: the fewer, the evener the load."""
    return zlib.crc32(reader.encode("utf-8", "surrogatepass")) % _SLOTS


def _ranked_by_slot(slot: int, weights: Mapping[str, float]) -> list[str]:
    # The hash is mixed once more: CRC-32 alone is linear, and names that differ in one digit
    # would give correlated ranks.
    return _ranked(
        weights,
        lambda alias: (
            (zlib.crc32(f"{alias}:{slot}".encode()) * 0x9E3779B97F4A7C15 % (1 << 64) + 1)
            / (1 << 64)
        ),
    )


class RendezvousTable:
    """The first replica of each slot, worked out once: a first decision does not rank them all.

    Args:
        weights: the weight of each replica.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self._aliases = list(weights)
        self._places = {alias: place for place, alias in enumerate(self._aliases, 1)}
        self._firsts = array("H", bytes(2 * _SLOTS))

    def first(self, reader: str) -> str:
        """Return what ``rendezvous`` ranks first for a reader with a name."""
        slot = _slot(reader)
        place = self._firsts[slot]
        if not place:
            place = self._places[_ranked_by_slot(slot, self.weights)[0]]
            self._firsts[slot] = place
        return self._aliases[place - 1]


def random_order(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Rank at random, by weight."""
    return _ranked(weights, lambda alias: 1.0 - _draw.random())


class RandomTable:
    """Draws who comes first without ranking the rest.

    Args:
        weights: the weight of each replica.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.weights = weights
        self._aliases = list(weights)
        self._sums = list(itertools.accumulate(weights.values()))

    def draw(self) -> str:
        """Return a replica at random, by weight."""
        # As ``choices`` does, without what it takes to look at its arguments for each reader.
        place = bisect(self._sums, _draw.random() * self._sums[-1])
        return self._aliases[min(place, len(self._aliases) - 1)]


def _rank_behind(first: str, weights: Mapping[str, float]) -> list[str]:
    """Rank the others at random, by weight, behind one that was drawn."""
    others = {alias: weight for alias, weight in weights.items() if alias != first}
    return [first, *random_order("", others)]


def round_robin(reader: str, weights: Mapping[str, float]) -> list[str]:
    """Begin one replica further each time. Weights do not count."""
    aliases = list(weights)
    first = next(_turns) % len(aliases) if aliases else 0
    return aliases[first:] + aliases[:first]


class LeastInFlight:
    """Rank by how many scopes of this process work with the replica now, by weight."""

    def __init__(self) -> None:
        self._lock = make_lock()
        self.counts: dict[str, int] = {}
        """How many scopes work with each replica. Empty where nothing is ranked by that."""

    def __call__(self, reader: str, weights: Mapping[str, float]) -> list[str]:
        shuffled = random_order(reader, weights)
        return sorted(shuffled, key=lambda alias: self.counts.get(alias, 0) / weights[alias])

    def enter(self, alias: str) -> None:
        """Count one scope more."""
        with self._lock:
            self.counts[alias] = self.counts.get(alias, 0) + 1

    def leave(self, alias: str) -> None:
        """Count one scope less. One that began before this process was forked is not counted here."""
        with self._lock:
            self.counts[alias] = max(0, self.counts.get(alias, 0) - 1)


least_in_flight = LeastInFlight()
after_fork(least_in_flight.counts.clear)  # the scopes of the parent's threads end there

_BALANCERS: dict[str, Balancer] = {
    "rendezvous": rendezvous,
    "random": random_order,
    "round_robin": round_robin,
    "least_in_flight": least_in_flight,
}


class Order:
    """The replicas in the order in which one reader should meet them, ranked when asked for.

    Args:
        first: alias of the replica to prefer, or None where there is none.
        rank: returns all of them.
    """

    __slots__ = ("_all", "_rank", "first")

    def __init__(self, first: str | None, rank: Callable[[], Sequence[str]]) -> None:
        self.first = first
        self._rank = rank
        self._all: Sequence[str] | None = None

    def all(self) -> Sequence[str]:
        """Return all replicas, the one to prefer first."""
        if self._all is None:
            self._all = self._rank()
        return self._all


UNRANKED = ("rendezvous", "random")
"""Balancers whose first replica is known without ranking all."""

_rendezvous: dict[str, RendezvousTable] = {}
_random: dict[str, RandomTable] = {}


def order_for(name: str, primary: str, reader: str, weights: Mapping[str, float]) -> Order:
    """Return the order in which a reader should meet the replicas of a primary.

    Args:
        name: of the balancer, or its dotted path.
        primary: alias of the primary.
        reader: a text that stands for the reader, or "".
        weights: the weight of each replica.
    """
    if name not in UNRANKED or not weights:
        ranked = [alias for alias in get_balancer(name)(reader, weights) if alias in weights]
        return Order(ranked[0] if ranked else None, lambda: ranked)
    if name == "rendezvous" and reader:
        usual = rendezvous_table(primary, weights).first(reader)
        return Order(usual, lambda: rendezvous(reader, weights))
    drawn = random_table(primary, weights).draw()
    return Order(drawn, lambda: _rank_behind(drawn, weights))


def rendezvous_table(primary: str, weights: Mapping[str, float]) -> RendezvousTable:
    """Return the table of the replicas of a primary, made where their weights are others."""
    table = _rendezvous.get(primary)
    if table is None or table.weights is not weights:
        table = _rendezvous[primary] = RendezvousTable(weights)
    return table


def random_table(primary: str, weights: Mapping[str, float]) -> RandomTable:
    """Return what draws from the replicas of a primary, made where their weights are others."""
    table = _random.get(primary)
    if table is None or table.weights is not weights:
        table = _random[primary] = RandomTable(weights)
    return table


def get_balancer(name: str) -> Balancer:
    """Return the balancer of that name, or the callable at that dotted path.

    Raises:
        ConfigurationError: there is nothing at the path.
    """
    balancer = _BALANCERS.get(name)
    if balancer is None:
        try:
            balancer = import_string(name)
        except ImportError as error:
            raise ConfigurationError(tell_import_failure("BALANCER", name, error)) from error
    return balancer
