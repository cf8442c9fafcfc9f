"""Which alias is a primary, which is a replica of whom, and which were found by a name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Clusters = Mapping[str, Mapping[str, float]]
"""For each primary, the weight of each of its replicas."""


class Found(NamedTuple):
    """The servers that a name of ``DISCOVERY`` leads to.

    Args:
        entry: the value of the setting by which they were found.
        aliases: theirs.
        former: aliases of servers that it led to before, the latest last. What was read there may
            name them yet.
        before: aliases that it led to before the latest change.
        settles_at: ``time.monotonic()`` by which other processes know of that change, too, and every
            replica has what was shown until then.
    """

    entry: Mapping[str, Any]
    aliases: tuple[str, ...]
    former: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    settles_at: float = -math.inf


class Settling(NamedTuple):
    """A change of a cluster that may not be known everywhere yet.

    Args:
        before: the weight of each replica before it.
        until: ``time.monotonic()`` at which it is known.
    """

    before: Mapping[str, float]
    until: float


_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Topology:
    """Which alias is a primary, which is a replica of whom.

    Args:
        clusters: for each primary, the weight of each of its replicas.
        idle: for each primary, aliases of its replicas that nobody is sent to: those of servers that
            are gone, and those for whose name servers were found.
        settling: for each primary whose replicas have changed, how they were before.
        found: what was taken into account.
    """

    def __init__(
        self,
        clusters: Clusters,
        idle: Mapping[str, tuple[str, ...]] = _NOTHING,
        settling: Mapping[str, Settling] = _NOTHING,
        found: Mapping[str, Found] = _NOTHING,
    ) -> None:
        self.clusters = MappingProxyType(clusters)
        self.settling = settling
        self.found = found
        self.replicas = MappingProxyType(
            {primary: tuple(clusters[primary]) for primary in clusters}
        )
        """For each primary, the aliases of its replicas."""
        self.members: Mapping[str, tuple[str, ...]] = MappingProxyType(
            {primary: (*clusters[primary], *idle.get(primary, ())) for primary in clusters}
        )
        """The same with those that nobody is sent to."""
        self.primary_of: Mapping[str, str] = MappingProxyType(
            {primary: primary for primary in clusters}
            | {alias: primary for primary in clusters for alias in self.members[primary]}
        )
        """The primary of every alias of every cluster. A primary is its own."""

    def is_replica(self, alias: str) -> bool:
        """Tell whether the alias is a replica of some primary."""
        name = str(alias)  # a routed alias is unequal to none of its cluster
        return self.primary_of.get(name, name) != name

    def role(self, alias: str) -> str:
        """Return what an alias is: "primary", "replica", or "other" where it is in no cluster."""
        if self.is_replica(alias):
            return "replica"
        return "primary" if alias in self.clusters else "other"


def arrange(
    clusters: Clusters, entries: Mapping[str, Mapping[str, Any]], found: Mapping[str, Found]
) -> Topology:
    """Return the topology in which servers that were found take the place of the alias that names them.

    Args:
        clusters: as the settings describe them.
        entries: the setting ``DISCOVERY``: what was found by another value of it does not count.
        found: for each alias of it, what was found.
    """
    known = {alias: f for alias, f in found.items() if f.entry == entries.get(alias)}
    idle, settling, present = {}, {}, {}
    for primary, weights in clusters.items():
        mine = [known[alias] for alias in weights if alias in known]
        present[primary] = _weigh(weights, {a: f.aliases for a, f in known.items()})
        idle[primary] = tuple(name for a in weights if a in known for name in (a, *known[a].former))
        if any(f.before for f in mine):
            before = _weigh(weights, {a: f.before or f.aliases for a, f in known.items()})
            settling[primary] = Settling(before, max(f.settles_at for f in mine))
    return Topology(present, idle, settling, found)


def _weigh(
    weights: Mapping[str, float], named: Mapping[str, tuple[str, ...]]
) -> Mapping[str, float]:
    """Return the weights with each alias that stands for a name replaced by those found by it."""
    return {
        name: weight for alias, weight in weights.items() for name in named.get(alias, (alias,))
    }
