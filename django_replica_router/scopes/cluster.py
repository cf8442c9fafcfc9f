"""What a scope knows of one cluster: what it has written there, whom it reads for, and where its reads go."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from django_replica_router.policy import Decision
from django_replica_router.scopes.written import Written
from django_replica_router.values.carried import Carried
from django_replica_router.values.tokens import Floor, Position, Record

_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Terms(NamedTuple):
    """What each answer must prove where a pooler may lead a statement to any of several servers.

    Args:
        floor: the position that its server must have replayed before.
        max_lag: seconds that its data may be old.
        written: the part of the floor that was written, not only seen; None where the reader yields to none.
    """

    floor: int
    max_lag: float
    written: int | None = None


class Shadow(NamedTuple):
    """Whether the primary serves a reader whatever is decided, because of SHADOW or ROLLOUT.

    Args:
        drawn_as: the name of the reader for which that was asked.
        holds: it does, for the rest of the scope.
        is_of_stranger: it does by ROLLOUT, and was asked before it was known which user the reader is: on the
            next request the user's own name may say otherwise.
    """

    drawn_as: str
    holds: bool
    is_of_stranger: bool


class Reader:
    """Whom a scope reads for, as the token store knows them."""

    __slots__ = (
        "floor",
        "is_stranger",
        "may_be_forgotten",
        "name",
        "primary_when_met",
        "records",
        "shadow",
        "store_failed",
        "users",
    )

    def __init__(self) -> None:
        self.floor: Floor | None = None
        """What the reader must see; None until the store was asked."""
        self.records: dict[str, Record | None] = {}
        """What the store knows of the reader, by key."""
        self.users: tuple[str, ...] = ()
        """The users whose records are in the floor."""
        self.name = ""
        """A text that stands for the reader, or "" for nobody in particular."""
        self.is_stranger = True
        """Nobody knows which user the reader is."""
        self.store_failed = False
        """The store could not be read."""
        self.may_be_forgotten = False
        """The store has no record of somebody whom the reader is, and may have had one."""
        self.primary_when_met: Position | None = None
        """Where the primary was when the store knew nothing of the reader, and may have dropped what it knew."""
        self.shadow: Shadow | None = None
        """Whether the primary serves because of SHADOW or ROLLOUT; None before that is asked."""

    @property
    def is_shadowed(self) -> bool:
        """Whether the primary serves the reader whatever is decided, as far as that was asked."""
        return self.shadow is not None and self.shadow.holds

    @property
    def is_shadowed_as_stranger(self) -> bool:
        """Whether it does so before it was known which user the reader is."""
        return self.shadow is not None and self.shadow.is_of_stranger


class Choice:
    """A decision for a scope, and what it goes by. Never changed: a thread may be about to follow it.

    Args:
        decision: the decision.
        floor: what the reader had to see; None where the store did not tell.
        carried: what the scope carried, which is no part of that.
    """

    __slots__ = ("carried", "decision", "floor")

    def __init__(self, decision: Decision, floor: Floor | None, carried: Carried | None) -> None:
        self.decision = decision
        self.floor = floor
        self.carried = carried


class Route:
    """Where the reads of a scope go."""

    __slots__ = (
        "choices",
        "entered",
        "failed",
        "lives",
        "shown",
        "stand_in",
        "terms",
        "wait_left",
    )

    def __init__(self) -> None:
        self.choices: dict[float, Choice] = {}
        """What was decided for the rest of the scope, by allowed lag. It does not hold for who has to see more by now."""
        self.lives: dict[str, tuple[Any, ...] | None] = {}
        """The replicas that were chosen, each with the server, and the life of it, that it was chosen for; None
        where nobody knows."""
        self.failed = False
        """A replica failed under the scope; the rest is read from the primary."""
        self.stand_in: Decision | None = None
        """The decision for a replica in place of a primary that is down."""
        self.entered: tuple[str, ...] = ()
        """Replicas that the scope is counted for as in flight."""
        self.wait_left: float | None = None
        """Seconds of the wait budget that are left."""
        self.terms: Mapping[str, Terms] = _NOTHING
        """Of the replicas that were chosen the ones where each answer has to prove that it may be shown."""
        self.shown: Mapping[tuple[Any, ...], float] = _NOTHING
        """The servers that have answered there, each with a position behind which nothing was seen on it."""

    def agree(self, alias: str, terms: Terms) -> None:
        """Have each answer that comes by an alias prove so much, and what was agreed before."""
        old = self.terms.get(alias, terms)
        written = None
        if old.written is not None and terms.written is not None:
            written = max(old.written, terms.written)
        agreed = Terms(max(old.floor, terms.floor), min(old.max_lag, terms.max_lag), written)
        self.terms = {**self.terms, alias: agreed}

    def note_shown(self, life: tuple[Any, ...], position: float) -> None:
        """Note that a server has answered, and behind which position nothing was seen on it."""
        self.shown = {**self.shown, life: position}


class ClusterScope(Written):
    """What a scope knows of one cluster: beside what was written, whom it reads for, and where.

    Args:
        shortcuts: those of the whole scope, which end with what was decided.
    """

    __slots__ = ("is_unstored", "reader", "recorded", "route", "seen_elsewhere_on", "shortcuts")

    def __init__(self, shortcuts: dict[Any, Any]) -> None:
        Written.__init__(self)  # super() takes as long as the rest of this
        self.shortcuts = shortcuts
        self.reader = Reader()
        self.route = Route()
        self.seen_elsewhere_on: str | None = None
        """The server that the scope was sent to although its reader usually meets another; what the reader has
        seen there must not be missing the next time."""
        self.recorded: Record | None = None
        """What a write of the scope was recorded as, for the browser to carry."""
        self.is_unstored = False
        """The token store has refused that."""

    def note_seen_elsewhere(self, alias: str, primary: str) -> None:
        """Remember that the reader is shown by a server what must not be missing the next time."""
        before = self.seen_elsewhere_on
        # One position covers what two servers have shown only where it is the primary's.
        self.seen_elsewhere_on = alias if before in (None, alias) else primary

    def decide_anew(self) -> None:
        """Forget where reads go."""
        self.route.choices = {}  # another one: who is deciding at this moment puts his into the old
        self.shortcuts.clear()

    def leave_replica(self) -> None:
        """Read what is left from the primary: a replica has failed under the scope."""
        self.route.failed = True
        self.shortcuts.clear()
