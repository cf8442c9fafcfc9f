"""Decides, from a history alone, whether any guarantee was broken.

The guarantees are the session guarantees of Terry et al., "Session Guarantees for Weakly Consistent
Replicated Data" (PDIS 1994): read your writes and monotonic reads, here for a *user* over all their
devices. Beside them stand bounded staleness, no lost session, one replica per request, availability.

How it decides: each register holds a number that every write raises, in the primary, by one
statement. So each value was written once, and the order of the versions is the order of the numbers:
it need not be inferred, as for the list-append and rw-register histories of Kingsbury and Alvaro,
"Elle: Inferring Isolation Anomalies from Experimental Observations" (VLDB 2020). As in Jepsen's
histories an operation has a beginning and an end, and only where one has *ended before another
began* an order between them is claimed. A request without a certain answer claims nothing: its write
may have happened or not. With both orders known, each anomaly is decidable for a pair of requests:
the earlier one wrote or showed a value that the later one does not show. The check takes
O(n log n): for the read that begins next, only the highest value of all that ended before counts.

What it can find: every read of a register that is older than what its user had been shown or had
written in a request that ended before; a request whose later read is older than its earlier one;
data older than the bound; a write that was acknowledged and is gone, or that two requests were told
to have made; a session that ended without a logout, or lives on after one; a request that failed
while the primary was up.

What it cannot find: an anomaly between requests that overlap in time, where every order is allowed; a
fault of a register that nobody wrote to meanwhile; whether *other* users' rows fit together (there is
one global register, not many that one transaction writes); staleness below the time that a request
takes. A run without a violation is evidence, not proof.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.torture.history import PRIMARY, SERVER_ERROR, History, Op, Window

READ_YOUR_WRITES = "read your writes"
MONOTONIC_READS = "monotonic reads"
BACK_IN_TIME = "two reads of one request"
ONE_REPLICA = "one replica per request"
STALENESS = "bounded staleness"
LOST_SESSION = "no lost session"
REVIVED_SESSION = "no revived session"
LOST_WRITE = "no lost write"
AVAILABILITY = "availability"

RULES = (
    READ_YOUR_WRITES,
    MONOTONIC_READS,
    BACK_IN_TIME,
    ONE_REPLICA,
    STALENESS,
    LOST_SESSION,
    REVIVED_SESSION,
    LOST_WRITE,
    AVAILABILITY,
)


class Violation(NamedTuple):
    """A broken guarantee, and the requests that show it: the last one is the one that broke it."""

    rule: str
    message: str
    ops: tuple[Op, ...]


@dataclass(slots=True)
class Verdict:
    """What a check has found."""

    violations: list[Violation] = field(default_factory=list)
    checked_reads: int = 0
    by_replica: int = 0
    by_primary: int = 0
    excused: int = 0

    @property
    def counts(self) -> Counter[str]:
        """Return how often each rule was broken."""
        return Counter(violation.rule for violation in self.violations)


def check(history: History, *, max_staleness: float = math.inf) -> Verdict:
    """Return every violation in a history.

    Args:
        history: what happened.
        max_staleness: seconds by which a value that is read may be out of date: ``MAX_LAG`` and a
            tolerance.
    """
    verdict = Verdict()
    ops = sorted(history.ops, key=lambda op: op.start)
    for op in ops:
        _count(op, verdict)
    verdict.violations += _check_requests(ops)
    verdict.violations += _check_writes(ops)
    verdict.violations += _check_staleness(ops, max_staleness)
    verdict.violations += _check_sessions(ops)
    by_user = defaultdict(list)
    for op in ops:
        # Who is not signed in is promised nothing but the bound. Whether that is right for the
        # session, the rules of sessions say.
        if op.signed_in == op.user:
            by_user[op.user].append(op)
    for user_ops in by_user.values():
        verdict.violations += _check_user(user_ops)
    failed, verdict.excused = _check_availability(ops, history.windows)
    verdict.violations += failed
    verdict.violations.sort(key=lambda violation: violation.ops[-1].start)
    return verdict


def _count(op: Op, verdict: Verdict) -> None:
    if not op.is_answered:
        return
    verdict.checked_reads += len(op.reads)
    # A request that left a failed replica has both; it counts where it ended.
    if op.aliases and op.safe:
        if op.aliases[-1] == PRIMARY:
            verdict.by_primary += len(op.reads)
        else:
            verdict.by_replica += len(op.reads)


def _check_requests(ops: Iterable[Op]) -> Iterator[Violation]:
    """Look at each request by itself."""
    for op in ops:
        if not op.is_answered:
            continue
        replicas = {alias for alias in op.aliases if alias != PRIMARY}
        if len(replicas) > 1:
            names = " and ".join(sorted(replicas))
            yield Violation(ONE_REPLICA, f"one request was served by {names}", (op,))
        seen = dict([op.written] if op.written is not None else [])
        for register, value in op.reads:
            if value < seen.get(register, value):
                message = f"{register} went from {seen[register]} back to {value} in one request"
                yield Violation(BACK_IN_TIME, message, (op,))
                break
            seen[register] = value


class _Known(NamedTuple):
    """The highest value of a register that a user knew, and the request that told it."""

    value: int
    op: Op


def _check_user(ops: Sequence[Op]) -> Iterator[Violation]:
    """Check what one user wrote and saw; the requests come in the order of their beginnings."""
    by_end = sorted((op for op in ops if op.is_answered), key=lambda op: op.end)
    written: dict[str, _Known] = {}
    shown: dict[str, _Known] = {}
    ended = 0
    for op in ops:
        while ended < len(by_end) and by_end[ended].end < op.start:
            _learn(by_end[ended], written, shown)
            ended += 1
        if op.is_answered:
            yield from _check_against(op, written, shown)


def _learn(op: Op, written: dict[str, _Known], shown: dict[str, _Known]) -> None:
    if op.written is not None:
        register, value = op.written
        if register not in written or value > written[register].value:
            written[register] = _Known(value, op)
    for register, value in op.reads:
        if register not in shown or value > shown[register].value:
            shown[register] = _Known(value, op)


def _check_against(
    op: Op, written: dict[str, _Known], shown: dict[str, _Known]
) -> Iterator[Violation]:
    told = set()
    for register, value in op.reads:
        if register in told:
            continue
        own, seen = written.get(register), shown.get(register)
        if own is not None and value < own.value:
            told.add(register)
            message = f"{register} was {value}, after the same user had written {own.value}"
            yield Violation(READ_YOUR_WRITES, message, (own.op, op))
        elif seen is not None and value < seen.value:
            told.add(register)
            message = f"{register} was {value}, after the same user had seen {seen.value}"
            yield Violation(MONOTONIC_READS, message, (seen.op, op))


def _check_writes(ops: Iterable[Op]) -> Iterator[Violation]:
    """Each acknowledged write has a value of its own, higher than all known before it began."""
    by_value: dict[tuple[str, int], Op] = {}
    writes = [op for op in ops if op.written is not None and op.is_answered]
    by_end = sorted(writes, key=lambda op: op.end)
    known: dict[str, _Known] = {}
    ended = 0
    for op in writes:
        while ended < len(by_end) and by_end[ended].end < op.start:
            _learn(by_end[ended]._replace(reads=()), known, {})
            ended += 1
        if op.written is None:
            continue
        register, value = op.written
        twin = by_value.setdefault(op.written, op)
        if twin is not op:
            yield Violation(LOST_WRITE, f"two requests wrote {register}={value}", (twin, op))
        elif register in known and value <= known[register].value:
            before = known[register]
            message = f"{register}={value} was written, after {before.value} was acknowledged"
            yield Violation(LOST_WRITE, message, (before.op, op))


def _check_staleness(ops: Sequence[Op], max_staleness: float) -> Iterator[Violation]:
    """No value is shown for longer than the bound after a newer one was acknowledged to anybody."""
    writes: dict[str, list[tuple[int, float, Op]]] = defaultdict(list)
    for op in ops:
        if op.written is not None and op.is_answered:
            register, value = op.written
            writes[register].append((value, op.end, op))
    values: dict[str, list[int]] = {}
    earliest: dict[str, list[tuple[float, Op]]] = {}
    for register, entries in writes.items():
        entries.sort(key=lambda entry: entry[0])
        values[register] = [value for value, _, _ in entries]
        best: tuple[float, Op] | None = None
        backwards = []
        for _, end, op in reversed(entries):
            if best is None or end < best[0]:
                best = (end, op)
            backwards.append(best)
        earliest[register] = backwards[::-1]
    for op in ops:
        if not op.is_answered:
            continue
        for register, value in op.reads:
            place = bisect_right(values.get(register, ()), value)
            if place == len(values.get(register, ())):
                continue
            since, newer = earliest[register][place]
            if op.start - since > max_staleness:
                message = f"{register} was {value}, {op.start - since:.2f} s after a newer value"
                yield Violation(STALENESS, f"{message} was acknowledged", (newer, op))
                break


def _check_sessions(ops: Iterable[Op]) -> Iterator[Violation]:
    """Signed in is who has signed in and not out."""
    logins: dict[str, Op] = {}
    logouts: dict[str, Op] = {}
    for op in ops:
        if op.kind == "login" and op.is_answered:
            logins[op.session] = op
        elif op.kind == "logout":
            logouts[op.session] = op
    for op in ops:
        if op.kind in {"login", "logout"} or not op.is_answered:
            continue
        login, logout = logins.get(op.session), logouts.get(op.session)
        if login is None or login.end >= op.start:
            continue
        if logout is None or logout.start > op.end:
            if op.signed_in != op.user:
                message = f"{op.user} was taken for {op.signed_in}, and had not signed out"
                yield Violation(LOST_SESSION, message, (login, op))
        elif logout.is_answered and logout.end < op.start and op.signed_in is not None:
            message = f"{op.user} was still signed in after signing out"
            yield Violation(REVIVED_SESSION, message, (logout, op))


def _check_availability(
    ops: Iterable[Op], windows: Sequence[Window]
) -> tuple[list[Violation], int]:
    """No request fails, except while the primary is down or its own worker is restarted."""
    violations, excused = [], 0
    for op in ops:
        if op.is_answered:
            continue
        if any(_excuses(window, op) for window in windows):
            excused += 1
            continue
        how = f"answered with {op.status}" if op.status >= SERVER_ERROR else "not answered"
        violations.append(Violation(AVAILABILITY, f"a {op.kind} was {how}", (op,)))
    return violations, excused


def _excuses(window: Window, op: Op) -> bool:
    if window.kind == "worker" and op.status != 0:
        return False  # a process that ends answers nothing, rather than an error
    return window.kind in {"primary", "worker"} and window.overlaps(op.start, op.end)
