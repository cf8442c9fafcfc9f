"""The routing rule: plain facts in, a decision with its reason out. No Django, no clock, no I/O."""

from __future__ import annotations

import enum
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from django_replica_router.values.tokens import Floor, Position


class Reason(enum.Enum):
    """Why a read went where it went."""

    DISABLED = "the package is switched off by its setting ENABLED"
    FORCED = "the code asked for the primary"
    IN_ATOMIC = "a transaction is open on that server"
    MODEL = "the model is read from the primary only"
    NO_SCOPE = "outside a request, task or scope"
    WROTE = "this scope has written"
    REPLICA_FAILED = "the replica failed while it served this scope"
    UNSAFE_METHOD = "the request may write"
    LEARNED = "this view has saved what it had read from a replica"
    SHADOW = "by SHADOW or ROLLOUT this reader is not sent to replicas yet"
    EVENT_LOOP = "the event loop may not be blocked, and nothing is decided yet"
    STORE_ERROR = "the token store cannot be read"
    UNKNOWN_SESSION = "the token store does not know this session or credential"
    UNRECORDED_WRITE = "a write of this user could not be located in the WAL"
    EMPTY_STORE = "the token store has been emptied"
    EPOCH = "the token is of another timeline than the primary"
    SETTINGS = "the session on the primary has settings that the one on the replica has not"
    NO_TOKEN = "nothing has to be waited for"  # noqa: S105 - a name, not a secret
    CAUGHT_UP = "the replica has replayed the token"
    WAITED = "the replica replayed the token within the wait budget"
    LEAST_LAGGED = "all replicas lag too far, and this one the least"
    YIELDED = "what the reader has seen, not written, was given up to spare the primary"
    PRIMARY_DOWN = "the primary is down, and the site goes on reading"
    LAGGING = "no replica has replayed the token, or all lag too far"
    NO_REPLICA = "no replica is in good health"

    def __init__(self, text: str) -> None:
        self.event = f"reads_{self._name_.lower()}"
        """What a decision for this reason is counted as."""


class ReplicaState(enum.Enum):
    """What is known of a replica's health. Only ``STREAMING`` may serve."""

    UNKNOWN = "not looked at yet"
    STREAMING = "a hot standby that answers"
    UNREACHABLE = "cannot be connected to, or does not answer"
    SLOW = "takes too long to answer"
    SILENT = "accepts connections and does not answer"
    PRIMARY = "is the primary itself"
    PROMOTED = "is no standby any more: promoted, or never one"
    TIMELINE = "follows another timeline than the primary"
    NO_POSITION = "does not tell what it has replayed"
    FOREIGN = "belongs to another cluster than the primary"
    AHEAD = "ahead of the primary: it follows another history"


IN_SERVICE = (ReplicaState.STREAMING, ReplicaState.SLOW, ReplicaState.UNKNOWN)
"""Those in which a replica may serve now, in a moment, or from another process."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a read goes, and why."""

    alias: str
    reason: Reason


class Replica(NamedTuple):
    """What is known of one replica at the moment of deciding.

    Args:
        alias: its key in ``DATABASES``.
        state: its health.
        watermark: the highest LSN that it is known to have replayed.
        age: upper bound, in seconds, of how old its data may be.
    """

    alias: str
    state: ReplicaState
    watermark: int
    age: float


class Situation(NamedTuple):
    """What is known without asking any server or store.

    Args:
        primary: alias of the primary.
        enabled: the package routes at all.
        forced_primary: inside ``use_primary``.
        asked_for_replica: inside ``use_replica``.
        primary_in_atomic: the primary's connection of this thread is in an atomic block that keeps reads.
        replica_in_atomic: alias of a replica whose connection of this thread is, or None.
        primary_only: the model is listed as such.
        has_scope: inside a request, task or ``scope()``.
        wrote: the scope has written to this cluster.
        replica_failed: a replica failed while it served the scope.
        unsafe: the request's method may write.
        learned: the view or task is known to save what it reads.
    """

    primary: str
    enabled: bool = True
    forced_primary: bool = False
    asked_for_replica: bool = False
    primary_in_atomic: bool = False
    replica_in_atomic: str | None = None
    primary_only: bool = False
    has_scope: bool = True
    replica_failed: bool = False
    wrote: bool = False
    unsafe: bool = False
    learned: bool = False


def decide_at_once(situation: Situation) -> Decision | None:
    """Return the decision that needs no knowledge of replicas or tokens, or None.

    ``use_replica`` lifts the three rules that only guess that the code wants fresh data (no
    scope, unsafe method, has written). It lifts no rule that keeps data right.
    """
    s = situation
    if not s.enabled:
        return Decision(s.primary, Reason.DISABLED)
    if s.forced_primary:
        return Decision(s.primary, Reason.FORCED)
    if s.primary_in_atomic:
        return Decision(s.primary, Reason.IN_ATOMIC)
    if s.replica_in_atomic is not None:
        return Decision(s.replica_in_atomic, Reason.IN_ATOMIC)
    if s.primary_only:
        return Decision(s.primary, Reason.MODEL)
    if s.replica_failed:
        return Decision(s.primary, Reason.REPLICA_FAILED)
    if s.learned:
        return Decision(s.primary, Reason.LEARNED)
    if s.asked_for_replica:
        return None
    if not s.has_scope:
        return Decision(s.primary, Reason.NO_SCOPE)
    if s.wrote:
        return Decision(s.primary, Reason.WROTE)
    if s.unsafe:
        return Decision(s.primary, Reason.UNSAFE_METHOD)
    return None


def may_serve(replica: Replica, floor: Position, max_lag: float) -> bool:
    """Tell whether a replica may serve a reader with that floor.

    Every comparison is written so that a value that is not a number (an unknown age) fails it.
    """
    return (
        replica.state is ReplicaState.STREAMING
        and replica.watermark >= floor.lsn
        and replica.age <= max_lag
    )


def floor_reason(floor: Floor, timeline: int | None) -> Reason | None:
    """Return why no replica can satisfy the floor whatever it has replayed, or None.

    Args:
        floor: what the reader must see.
        timeline: the primary's timeline as last seen, or None when it is not known. No replica is
            known to be in good health then, either.
    """
    if floor.pinned:
        return Reason.UNRECORDED_WRITE
    if timeline is not None and floor.position.timeline > timeline:
        return Reason.EPOCH
    return None


def choose_replica(
    ranked: list[Replica], floor: Position, max_lag: float, *, waited: bool = False
) -> Decision | None:
    """Return the first replica, in order of preference, that may serve the reader, or None."""
    for replica in ranked:
        if may_serve(replica, floor, max_lag):
            if waited:
                return Decision(replica.alias, Reason.WAITED)
            return decide_for(replica.alias, floor.lsn > 0)
    return None


@lru_cache(maxsize=1024)
def decide_for(alias: str, has_token: bool) -> Decision:
    """Return the decision for a replica that may serve the reader without any waiting."""
    return Decision(alias, Reason.CAUGHT_UP if has_token else Reason.NO_TOKEN)


def choose_least_lagged(
    replicas: list[Replica], floor: Position, fallback_lag: float
) -> Decision | None:
    """Return the freshest replica that has the floor and lags within a wider bound, or None."""
    for replica in sorted(replicas, key=lambda replica: replica.age):
        if may_serve(replica, floor, fallback_lag):
            return Decision(replica.alias, Reason.LEAST_LAGGED)
    return None


def choose_yielding(ranked: list[Replica], written: Position, max_lag: float) -> Decision | None:
    """Return the first replica that has what the reader has written, if not all that was seen."""
    for replica in ranked:
        if may_serve(replica, written, max_lag):
            return Decision(replica.alias, Reason.YIELDED)
    return None


def choose_stand_in(replicas: list[Replica]) -> Decision | None:
    """Return the replica that has replayed the most, to stand in for a primary that is down."""
    serving = [replica for replica in replicas if replica.state is ReplicaState.STREAMING]
    if not serving:
        return None
    return Decision(max(serving, key=lambda r: r.watermark).alias, Reason.PRIMARY_DOWN)


def fallback_reason(ranked: list[Replica]) -> Reason:
    """Return why no replica was chosen: none in good health, or none far enough."""
    healthy = any(replica.state is ReplicaState.STREAMING for replica in ranked)
    return Reason.LAGGING if healthy else Reason.NO_REPLICA


_SIZE = 1 << 32


def is_of_share(reader: str, share: float) -> bool:
    """Tell whether a reader is of a share of all, on each request and in each process alike.

    Whoever is stays so where the share grows.

    Args:
        reader: a text that stands for the reader.
        share: from 0 to 1.
    """
    # Of a text of its own: else those of the share would be readers of the same few replicas.
    drawn = zlib.crc32(f"rollout:{reader}".encode("utf-8", "surrogatepass"))
    return (drawn * 0x9E3779B1 % _SIZE) / _SIZE < share
