"""What one look at a server tells. Values only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from django_replica_router.policy import ReplicaState
from django_replica_router.values.tokens import Position


class Sample(NamedTuple):
    """The primary's position, and a moment at which it was not yet passed.

    Args:
        at: ``time.monotonic()`` just before the primary was asked: whatever was committed before
            lies at or before the position.
        position: the position.
    """

    at: float
    position: Position


class Wanted(NamedTuple):
    """The highest position that somebody waits for.

    Args:
        lsn: the position.
        written_at: about when it was written.
    """

    lsn: int = -1
    written_at: float = -math.inf


@dataclass(frozen=True, slots=True)
class Reading:
    """What one look at a replica has told.

    Args:
        state: its health.
        watermark: the highest LSN it was seen to have replayed, or -1.
        fresh_at: moment of the newest sample of the primary that it has replayed.
        read_at: moment of the look.
        told_at: moment at which its answer was there.
        remark: what is unusual about it though it may serve, or "".
        catch_up: seconds from a write to its replay, the last time that a token told. While one
            takes longer than that, what it takes if it takes as long again as it is overdue.
    """

    state: ReplicaState = ReplicaState.UNKNOWN
    watermark: int = -1
    fresh_at: float = -math.inf
    read_at: float = -math.inf
    catch_up: float = 0.0
    remark: str = ""
    told_at: float = -math.inf


class ToldReading(NamedTuple):
    """What another process has told of a replica.

    Args:
        life: which server, and which life of it, that process has met there.
        reading: what it has read, with moments of this process's clock that are no later.
    """

    life: tuple[Any, ...] | None
    reading: Reading


class Told(NamedTuple):
    """What another process has told of a cluster.

    Args:
        primary: system identifier and life of the server that it takes for the primary.
        sample: a position of it, with a moment of this process's clock that is no later.
        is_down: its last look at the primary has failed.
        replicas: what it has read of each replica.
    """

    primary: tuple[str, tuple[Any, ...]]
    sample: Sample
    is_down: bool
    replicas: Mapping[str, ToldReading]
