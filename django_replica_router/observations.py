"""What a block was seen to do: which server has answered each of its statements, and why.

Nothing of it is at work where nobody observes: see ``observers``.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from typing import NamedTuple

from django_replica_router.callers import find_caller

WRITE = "WRITE"
FOR_WRITE = "FOR_WRITE"
NAMED = "NAMED"
SESSION = "SESSION"
INSTEAD = "INSTEAD"

SENTENCES = {
    WRITE: "it writes, or might",
    FOR_WRITE: "it is read to be written, as by get_or_create() or select_for_update()",
    NAMED: "the code has named the database, and no router was asked",
    SESSION: "it begins or ends a transaction, or sets something for the session",
    INSTEAD: "a replica was to answer it",
}
"""What stands where a statement was no read that the router has decided on. INSTEAD only in comments."""

TASK_TOO_SOON = "task_too_soon"
QUERYSET_LEFT_BLOCK = "queryset_left_block"
NAMES_PRIMARY_TABLE = "names_primary_table"
NEEDS_PRIMARY = "needs_primary"
SAVED_FROM_REPLICA = "saved_from_replica"

EVENTS = {
    TASK_TOO_SOON: "a task was published before the commit that it may need",
    QUERYSET_LEFT_BLOCK: "a queryset that was made in a use_primary block is run outside of it",
    NAMES_PRIMARY_TABLE: "run on the primary: it names a table that PRIMARY_ONLY keeps there",
    NEEDS_PRIMARY: "run on the primary: it asks for what only that has, as advisory locks",
    "retried_refused_write": "run again on the primary: it writes, and the replica has refused that",
    "retried_replica_fault": "run on the primary: the replica has failed, or could not be reached",
    "retried_unsupported": "run again on the primary: a replica cannot do that, or has not got it yet",
    "retried_replayed_lock": "run again on the primary: the replica was replaying a lock on the table",
    "retried_elsewhere": "run again on the primary: another server has answered than was chosen",
    "retried_behind": "run again on the primary: the server behind the pooler lacks what must be seen",
    "retried_first_fetch": "run again on the primary: the replica has failed before the first row",
    "repeated_after_conflict": "run again on the replica, which had cancelled it to go on replaying",
    "statements_unproven": "run on the primary: any of several servers might have answered it",
    "connects_failed": "a connection to a replica could not be opened",
    "waits_by_server": "the replica's server has told itself that it was there",
    "waits_by_server_in_vain": "the replica's server was waited for, and did not get there",
    "reads_yielded": "what the reader has seen, not written, was given up to spare the primary",
    "fallbacks_refused": "no replica could serve, and PRIMARY_SHARE was used up",
    "readers_unknown": "the cache has no record of the reader, who is shown what the primary has now",
    "tokens_unstored": "the cache has refused the token of a write",
    "writes_unlocated": "a write could not be located, so that its user reads from the primary",
    SAVED_FROM_REPLICA: "an object that was read from a replica is saved",
    "reinserted_from_replica": "such an object was inserted anew: its row had been deleted",
    "writes_in_queries": "a query was refused a write",
    "cookies_refused": "a cookie with a token was not ours, broken or too old",
    "tokens_refused": "a text was given as a token and is none, or is signed by another key",
    "transactions_outwaited": "a token was made in a transaction that had not ended after 5 seconds",
}
"""What may happen, by its name, and what that means. All but the first four are counted by ``get_stats()``."""


class Observers:
    """Whether anybody observes in this process: where nobody does, nothing else is looked at."""

    __slots__ = ("present",)

    def __init__(self) -> None:
        self.present = False


observers = Observers()


class Query(NamedTuple):
    """A statement that was run.

    Args:
        sql: its text.
        alias: of the server that has answered it.
        asked: alias of the server that it was meant for; another one where the primary has answered instead.
        reason: name of the reason why it was meant for that: one of ``Reason``, or WRITE, FOR_WRITE, NAMED or
            SESSION.
        sentence: what that means.
        writes: it writes, or might.
        binds: its reader has to see what it writes. Not so where it is run on a replica, or is a write that
            binds nobody (``ignore_writes``, ``IGNORED_WRITES``, ``PRIMARY_ONLY``).
        seconds: that it took.
        deciding: seconds that the router took to find the server, waiting for a replica included.
        floor: the LSN that the reader had to see, as text, or empty.
        events: what has happened to it: names of ``EVENTS``, as ``retried_replica_fault``.
        line: file and line of the site's code that has run it.
        failed: it has raised an error.
    """

    sql: str
    alias: str
    asked: str
    reason: str
    sentence: str
    writes: bool
    binds: bool
    seconds: float
    deciding: float
    floor: str
    events: tuple[str, ...]
    line: str
    failed: bool


class Event(NamedTuple):
    """Something that has happened beside the statements.

    Args:
        name: one of ``EVENTS``.
        line: file and line of the site's code that was running.
        detail: what it is about, or empty.
    """

    name: str
    line: str
    detail: str = ""


class Decided(NamedTuple):
    """The last decision of the router for a server.

    Args:
        reason: its name.
        sentence: what it means.
        seconds: that it took.
    """

    reason: str
    sentence: str
    seconds: float


class Observation:
    """What is seen in a block.

    Args:
        outer: that of the block around it, which sees the same.
        keeps: it keeps what it sees. So does whatever is inside of one that does.
        comments: each statement is sent with a comment that tells its server and reason. So is whatever is
            run inside.
    """

    most = 5000
    """Statements, and events, that are kept: a report may run for hours."""

    def __init__(
        self, outer: Observation | None = None, *, keeps: bool = True, comments: bool = False
    ) -> None:
        self._is_kept = keeps
        self.keeps: bool = keeps or (outer is not None and outer.keeps)
        self.comments: bool = comments or (outer is not None and outer.comments)
        self.queries: list[Query] = []
        self.events: list[Event] = []
        self.decided: dict[str, Decided] = {}
        self.has_ended = False
        self._outer = outer

    def note_query(self, query: Query) -> None:
        """Keep a statement."""
        if self._is_kept and len(self.queries) < self.most:
            self.queries.append(query)
        if self._outer is not None:
            self._outer.note_query(query)

    def note_event(self, event: Event) -> None:
        """Keep an event."""
        if self._is_kept and len(self.events) < self.most:
            self.events.append(event)
        if self._outer is not None:
            self._outer.note_event(event)

    def note_decision(self, alias: str, decided: Decided) -> None:
        """Keep why statements go to a server from now on."""
        observation: Observation | None = self
        while observation is not None:
            observation.decided[alias] = decided
            observation = observation._outer

    def counts(self) -> Counter[str]:
        """Return how many statements each server has answered, those of a session left out."""
        return Counter(query.alias for query in self.queries if query.reason != SESSION)


class Running:
    """A statement while it runs.

    Args:
        sql: its text.
        asked: alias of the server that it was meant for.
        decided: why it was meant for that.
    """

    def __init__(self, sql: object, asked: str, decided: Decided) -> None:
        self.sql = sql
        self.asked = asked
        self.alias = asked
        self.decided = decided
        self.events: list[str] = []


observed: ContextVar[Observation | None] = ContextVar("replica_router_observed", default=None)

running: ContextVar[Running | None] = ContextVar("replica_router_running", default=None)


def find_observation() -> Observation | None:
    """Return what observes this code, or None.

    Not one that has ended: a task that outlives the block has it in its context yet.
    """
    observation = observed.get()
    while observation is not None and observation.has_ended:
        observation = observation._outer
    return observation


def note_decision(alias: str, reason: str, sentence: str, seconds: float) -> None:
    """Keep a decision of the router for whoever observes this code."""
    observation = find_observation()
    if observation is not None:
        observation.note_decision(alias, Decided(reason, sentence, seconds))


def note_events(*names: str, about: str = "") -> None:
    """Keep what has happened, with the statement that runs, or the line of the code.

    Args:
        names: of ``EVENTS``. What a read is counted as is told with its statement.
        about: what they are about, or empty.
    """
    observation = find_observation()
    if observation is None or not observation.keeps:
        return
    statement = running.get()
    if statement is not None:
        statement.events.extend(names)
        return
    line = find_caller()
    for name in names:
        if name in EVENTS:
            observation.note_event(Event(name, line, about))


def warn(name: str, detail: str) -> None:
    """Keep a warning for whoever observes this code.

    Args:
        name: one of the names above.
        detail: what it is about.
    """
    observation = find_observation()
    if observation is not None and observation.keeps:
        observation.note_event(Event(name, find_caller(), detail))
