"""What a block was seen to do: which server has answered each of its statements, and why.

Nothing of it is at work where nobody observes: see ``Observing``.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from typing import NamedTuple

from django_replica_router.callers import find_caller

WRITE = "WRITE"
NAMED = "NAMED"
SESSION = "SESSION"

TASK_TOO_SOON = "task_too_soon"
QUERYSET_LEFT_BLOCK = "queryset_left_block"

SENTENCES = {
    WRITE: "it writes, or might",
    NAMED: "the code has named the database, and no router was asked",
    SESSION: "it begins or ends a transaction, or sets something for the session",
}
"""What stands where a statement was no read that the router has decided on."""

_MOST = 5000
"""Statements, and events, that are kept of a block: a report may run for hours."""


class Observing:
    """Whether anybody observes in this process: where nobody does, nothing else is looked at."""

    is_on = False


class Query(NamedTuple):
    """A statement that was run.

    Args:
        sql: its text.
        alias: of the server that has answered it.
        asked: alias of the server that it was meant for; another one where it was run again on the primary.
        reason: name of the reason why it was meant for that: one of ``Reason``, or WRITE, NAMED or SESSION.
        sentence: what that means.
        writes: it writes, or might.
        seconds: that it took.
        deciding: seconds that the router took to find the server, waiting for a replica included.
        floor: the LSN that the reader had to see, as text, or empty.
        events: what has happened to it, by the names of ``get_stats()``, as ``retried_replica_fault``.
        line: file and line of the site's code that has run it.
        failed: it has raised an error.
    """

    sql: str
    alias: str
    asked: str
    reason: str
    sentence: str
    writes: bool
    seconds: float
    deciding: float
    floor: str
    events: tuple[str, ...]
    line: str
    failed: bool


class Event(NamedTuple):
    """Something that has happened beside the statements.

    Args:
        name: as ``get_stats()`` counts it; ``task_too_soon``: a task was published before the commit that it may
            need; ``queryset_left_block``: a queryset that was made in a ``use_primary`` block is run outside.
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
    """

    def __init__(self, outer: Observation | None = None) -> None:
        self.queries: list[Query] = []
        self.events: list[Event] = []
        self.decided: dict[str, Decided] = {}
        self._outer = outer

    def note_query(self, query: Query) -> None:
        """Keep a statement."""
        observation: Observation | None = self
        while observation is not None:
            if len(observation.queries) < _MOST:
                observation.queries.append(query)
            observation = observation._outer

    def note_event(self, event: Event) -> None:
        """Keep an event."""
        observation: Observation | None = self
        while observation is not None:
            if len(observation.events) < _MOST:
                observation.events.append(event)
            observation = observation._outer

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
    """

    def __init__(self, sql: object, asked: str) -> None:
        self.sql = sql
        self.alias = asked
        self.events: list[str] = []


observed: ContextVar[Observation | None] = ContextVar("replica_router_observed", default=None)

running: ContextVar[Running | None] = ContextVar("replica_router_running", default=None)


def note_decision(alias: str, reason: str, sentence: str, seconds: float) -> None:
    """Keep a decision of the router for whoever observes this code."""
    observation = observed.get()
    if observation is not None:
        observation.note_decision(alias, Decided(reason, sentence, seconds))


def note_events(*names: str) -> None:
    """Keep what was counted, with the statement that runs, or the line of the code."""
    observation = observed.get()
    if observation is None:
        return
    statement = running.get()
    if statement is not None:
        statement.events.extend(names)
        return
    line = find_caller()
    for name in names:
        if not name.startswith("reads_"):
            observation.note_event(Event(name, line))


def warn(name: str, detail: str, line: str = "") -> None:
    """Keep a warning for whoever observes this code.

    Args:
        name: one of the names above.
        detail: what it is about.
        line: file and line of the site's code; where it is empty, of what is running.
    """
    observation = observed.get()
    if observation is not None:
        observation.note_event(Event(name, line or find_caller(), detail))
