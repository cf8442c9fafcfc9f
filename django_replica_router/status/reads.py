"""Which server reads went to, and why, by what all processes have told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from django_replica_router.conf import Config
from django_replica_router.logs import fields, logger
from django_replica_router.policy import Reason
from django_replica_router.replicas.census import ProcessCounts, read_census

NOT_SHARED = "SHARE_COUNTS is off"
NO_CACHE = "the cache does not answer"

FROM = "reads_from_"
"""What a count of first decisions begins with, by the server."""

IN_SHADOW = "shadow_"
"""What that of reads begins with which are not routed yet."""

REASONS = {reason.event: reason.name for reason in Reason}
"""What decisions are counted as, by the reason."""


class Reads(NamedTuple):
    """First decisions of requests, tasks and scopes, of all processes, in the last minute.

    Args:
        processes: how many have told.
        by_alias: by the server.
        by_reason: by the name of the reason.
        shadow_by_alias: of the reads of who is not routed yet, by SHADOW or ROLLOUT: where each would have gone.
        shadow_by_reason: of these, the reason why.
    """

    processes: int
    by_alias: Mapping[str, int]
    by_reason: Mapping[str, int]
    shadow_by_alias: Mapping[str, int]
    shadow_by_reason: Mapping[str, int]

    def share(self, alias: str, aliases: Iterable[str]) -> float | None:
        """Return what part of the reads of these servers one of them has had; None where there were none."""
        total = sum(self.by_alias.get(one, 0) for one in aliases)
        return self.by_alias.get(alias, 0) / total if total else None


def read_told(config: Config) -> tuple[list[ProcessCounts], str]:
    """Return what the processes have told; and, where that is not known, why.

    Args:
        config: the settings.
    """
    if not config.SHARE_COUNTS:
        return [], NOT_SHARED
    try:
        return read_census(config.CACHE), ""
    except Exception as error:  # whatever a cache backend raises, the servers can be told of
        logger.info(
            "What processes have counted cannot be read from %r: %s",
            config.CACHE,
            error,
            extra=fields("counts_unread", error, cache=config.CACHE),
        )
        return [], NO_CACHE


def sum_up(told: Iterable[ProcessCounts]) -> Reads:
    """Return the sum of what processes have counted lately."""
    counts: Counter[str] = Counter()
    processes = 0
    for one in told:
        counts.update(one.lately)
        processes += 1
    in_shadow = {
        name.removeprefix(IN_SHADOW): n for name, n in counts.items() if name.startswith(IN_SHADOW)
    }
    return Reads(
        processes,
        _by_alias(counts),
        _by_reason(counts),
        _by_alias(in_shadow),
        _by_reason(in_shadow),
    )


def _by_alias(counts: Mapping[str, int]) -> dict[str, int]:
    return {name.removeprefix(FROM): n for name, n in counts.items() if name.startswith(FROM)}


def _by_reason(counts: Mapping[str, int]) -> dict[str, int]:
    return {REASONS[name]: n for name, n in counts.items() if name in REASONS}
