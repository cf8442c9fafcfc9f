"""What happened: each request with its times, what it read and wrote, and when what was broken."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tests.torture.stalls import Span

PRIMARY = "default"
GLOBAL = "global"
SERVER_ERROR = 500
SESSION_INTERRUPTED = 400
"""Django's answer where it could not save a session. It takes every error of the database for a sign
that the row was deleted meanwhile."""
RECOVERED = "recovered"
WATCHED_READS = 10
"""So many reads of a user must there have been, to say that none was served by a replica."""

YIELDED = "YIELDED"
"""The package's reason for a read that shows less than its user has seen."""

Kind = Literal["read", "write", "login", "logout"]


class SlowRead(NamedTuple):
    """A single read that has taken long, by the clock of the site's process, which is the client's.

    Args:
        start: before it was asked for.
        end: after its row was there.
        stalls: when the process was not run meanwhile.
    """

    start: float
    end: float
    stalls: tuple[Span, ...] = ()


class Op(NamedTuple):
    """One request, as the client saw it.

    Times are ``time.monotonic()`` of the client's process, just before the first byte was sent and
    just after the last one was received.

    Args:
        kind: what was asked for. Only "write" and "read" carry registers.
        user: who asked.
        session: which session of that user the request carried, or for a login the one it made.
        start: before the request was sent.
        end: after the answer was received.
        status: the HTTP status, or 0 where there was no answer.
        reads: register and value, in the order in which the request read them. A write's reads
            come after what it wrote.
        written: register and value that the request wrote, where it was acknowledged.
        signed_in: whom the site took the user for, or None for nobody.
        aliases: the databases that have served reads of the request, by the site's own meter.
        reasons: why, as the package says.
        worker: id of the process that answered.
        safe: sent as GET.
        slow_reads: of the reads that the request was made of, those that took long.
        detail: what was asked, for the reader.
    """

    kind: Kind
    user: str
    session: str
    start: float
    end: float
    status: int
    reads: tuple[tuple[str, int], ...] = ()
    written: tuple[str, int] | None = None
    signed_in: str | None = None
    aliases: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    worker: int = 0
    safe: bool = True
    slow_reads: tuple[SlowRead, ...] = ()
    detail: str = ""

    @property
    def is_answered(self) -> bool:
        """Return whether the request did what it was meant to do, for certain."""
        return 0 < self.status < SERVER_ERROR and self.status != SESSION_INTERRUPTED


class Window(NamedTuple):
    """A time during which something was broken.

    Args:
        kind: "primary" (requests may fail), "worker" (connections may break), "recovered" (nothing
            is broken any more after a failover), or the fault's name.
        start: just before it was broken.
        end: just after it was mended.
        detail: what exactly.
    """

    kind: str
    start: float
    end: float
    detail: str = ""

    def overlaps(self, start: float, end: float) -> bool:
        """Return whether any moment of the time lies in the window."""
        return start <= self.end and end >= self.start


class Fork(NamedTuple):
    """A failover that may have lost what was acknowledged.

    Args:
        at: the moment; nobody has reached the new primary as such before.
        values: what the new primary had then: the value of each register, and of each session's
            register where the row of the session was there.
    """

    at: float
    values: Mapping[str, int]


@dataclass(slots=True)
class History:
    """All requests of a run, and all that was broken.

    Args:
        outages: when the primary could not answer whoever asks it alone.
    """

    ops: Sequence[Op] = ()
    windows: Sequence[Window] = ()
    began: float = 0.0
    forks: Sequence[Fork] = ()
    outages: Sequence[Span] = ()


class SessionKey(NamedTuple):
    """The key of a session, and when the sign-in that made it was sent."""

    key: str
    start: float


@dataclass(slots=True)
class Recorder:
    """Collects a history from many threads; each has a list of its own."""

    began: float = field(default_factory=time.monotonic)
    windows: list[Window] = field(default_factory=list)
    sessions: dict[str, SessionKey] = field(default_factory=dict)
    _lists: list[list[Op]] = field(default_factory=list)
    _forks: list[tuple[Fork, Mapping[str, int]]] = field(default_factory=list)

    def new_list(self) -> list[Op]:
        """Return the list of one thread."""
        ops: list[Op] = []
        self._lists.append(ops)
        return ops

    def history(self, open_windows: Iterable[Window] = (), outages: Iterable[Span] = ()) -> History:
        """Return what has happened so far."""
        ops = [op for thread_ops in list(self._lists) for op in list(thread_ops)]
        forks = [self._named(fork, rows) for fork, rows in list(self._forks)]
        windows = [*self.windows, *open_windows]
        return History(ops, windows, self.began, forks, list(outages))

    def since(self, moment: float) -> Iterator[Op]:
        """Yield the requests that began after a moment and have ended."""
        for thread_ops in list(self._lists):
            for op in reversed(list(thread_ops)):
                if op.start <= moment:
                    break
                yield op

    def add_fork(self, fork: Fork, rows: Mapping[str, int]) -> None:
        """Note a failover, and the sessions that the new primary has: the value of each by key."""
        self._forks.append((fork, rows))

    def has_lost(self, session: str) -> bool:
        """Tell whether a failover has lost the row of a session."""
        known = self.sessions.get(session)
        return known is not None and any(
            known.start < fork.at and known.key not in rows for fork, rows in self._forks
        )

    def _named(self, fork: Fork, rows: Mapping[str, int]) -> Fork:
        # Not before the end: who has been signed in a moment ago may not have noted the key yet.
        named = {
            f"session {name}": rows[known.key]
            for name, known in list(self.sessions.items())
            if known.key in rows
        }
        return fork._replace(values={**fork.values, **named})


def describe(op: Op, began: float) -> str:
    """Return one line that tells what a request did."""
    parts = [
        f"{op.start - began:9.4f}-{op.end - began:9.4f}",
        f"{op.user:<4} {op.session or '(no session)':<8} {op.kind:<6}",
        f"{op.status}",
    ]
    if op.written is not None:
        parts.append(f"wrote {op.written[0]}={op.written[1]}")
    if op.reads:
        parts.append("read " + " ".join(_runs(op.reads)))
    if op.is_answered:
        parts.append(f"as {op.signed_in}")
    if op.aliases:
        parts.append(f"from {','.join(op.aliases)}")
    if op.reasons:
        parts.append(f"({','.join(op.reasons)})")
    if op.worker:
        parts.append(f"pid {op.worker}")
    if op.detail:
        parts.append(op.detail)
    return "  ".join(parts)


def _runs(reads: Sequence[tuple[str, int]]) -> list[str]:
    """Return each register once, with its values in order and repeated ones left out."""
    values: dict[str, list[int]] = {}
    for register, value in reads:
        seen = values.setdefault(register, [])
        if not seen or seen[-1] != value:
            seen.append(value)
    return [f"{register}={','.join(map(str, seen))}" for register, seen in values.items()]
