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
while the primary was up; a single read that took longer than the package's own bounds add up to.

A read is timed in the site's process, from before the router is asked until its row is there. Taken off
is what the package can do nothing about: when the primary could not answer (a reader of the test's own
asks it again and again, past the package, the same way through the network), and when the machine did
not run that process (a thread in it sleeps for moments, and notes when it wakes late).

A failover may lose what was acknowledged: replication is asynchronous, and that is the contract of
PostgreSQL, not a fault of the package. For such a fork the history has the value of each register
that the new primary had. What a request that began before the fork wrote or showed binds those that
end after it only up to that value: "users are never shown data older than their writes that have
survived". Lost numbers would be used again; so the fault raises each register above all of them
before anybody reaches the new primary, and the order of the numbers stays that of the versions. A
session whose row is not there has been signed out by the fork; of one whose sign-out was lost nothing
is claimed. Some time later, when tokens of the old timeline have expired and nothing lags, each user
must be served by a replica at least once in a while: nobody is stuck on the primary.

Monotonic reads may yield: the package gives up what a reader has seen, not written, where the
primary's share of such reads is spent, and then says so with the reason `YIELDED`. Such a request, and
no other, may show less than was seen before. It must show what its user has written all the same, and
may not go back within itself; and what comes after it must show what was seen before it.

What it cannot find: a write that the fork need not have lost (which replica is promoted is the
fault's own choice); data of the old timeline that is shown after the fork, where it is newer than
what has survived and no later request is shown less; an anomaly between requests that overlap in time, where every order is allowed; a
fault of a register that nobody wrote to meanwhile; whether *other* users' rows fit together (there is
one global register, not many that one transaction writes); staleness below the time that a request
takes; how long something else than a read takes, as the end of a request, or a report that takes long by
itself; a read that is slow only while the primary is, or that keeps its process from being run. A run without a violation is evidence, not proof.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.torture.history import (
    PRIMARY,
    RECOVERED,
    SESSION_INTERRUPTED,
    WATCHED_READS,
    YIELDED,
    Fork,
    History,
    Op,
    SlowRead,
    Window,
)
from tests.torture.stalls import Span, covered

READ_YOUR_WRITES = "read your writes"
MONOTONIC_READS = "monotonic reads"
BACK_IN_TIME = "two reads of one request"
ONE_REPLICA = "one replica per request"
STALENESS = "bounded staleness"
LOST_SESSION = "no lost session"
REVIVED_SESSION = "no revived session"
LOST_WRITE = "no lost write"
AVAILABILITY = "availability"
STUCK = "nobody stuck on the primary"
SLOW_READ = "no slow read"

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
    STUCK,
    SLOW_READ,
)


class Violation(NamedTuple):
    """A broken guarantee, and the requests that show it: the last one is the one that broke it."""

    rule: str
    message: str
    ops: tuple[Op, ...]


@dataclass(slots=True)
class Verdict:
    """What a check has found.

    Args:
        violations: the broken guarantees.
        checked_reads: values that were read.
        by_replica: those that a replica served.
        by_primary: those that the primary served.
        excused: requests that failed while they might.
        yielded: requests that showed less than was seen before, and had told that they may.
        lost: acknowledged writes that a failover has lost.
        recovered: how often a user was watched after a failover.
        slowest: seconds that the slowest read has taken, less what excuses it.
    """

    violations: list[Violation] = field(default_factory=list)
    checked_reads: int = 0
    by_replica: int = 0
    by_primary: int = 0
    excused: int = 0
    yielded: int = 0
    lost: int = 0
    recovered: int = 0
    slowest: float = 0.0

    @property
    def counts(self) -> Counter[str]:
        """Return how often each rule was broken."""
        return Counter(violation.rule for violation in self.violations)


def check(
    history: History,
    *,
    max_staleness: float = math.inf,
    may_yield: bool = True,
    longest_read: float = math.inf,
) -> Verdict:
    """Return every violation in a history.

    Args:
        history: what happened.
        max_staleness: seconds by which a value that is read may be out of date: ``MAX_LAG`` and a
            tolerance.
        may_yield: what was seen, not written, may be given up by who says so.
        longest_read: seconds that a single read may take while the primary answers.
    """
    verdict = Verdict()
    ops = sorted(history.ops, key=lambda op: op.start)
    for op in ops:
        _count(op, verdict)
    verdict.violations += _check_requests(ops)
    verdict.violations += _check_writes(ops)
    verdict.violations += _check_sessions(ops, history.forks)
    for violation in _check_epochs(ops, history.forks, max_staleness):
        is_monotonic = violation.rule == MONOTONIC_READS
        if may_yield and is_monotonic and has_yielded(violation.ops[-1]):
            verdict.yielded += 1
        else:
            verdict.violations.append(violation)
    failed, verdict.excused = _check_availability(ops, history.windows)
    verdict.violations += failed
    stuck, verdict.recovered = _check_recovery(ops, history.windows)
    verdict.violations += stuck
    slow, verdict.slowest = _check_times(ops, history.outages, longest_read)
    verdict.violations += slow
    verdict.lost = sum(_has_lost(op, fork) for fork in history.forks for op in ops)
    verdict.violations.sort(key=lambda violation: violation.ops[-1].start)
    return verdict


def has_yielded(op: Op) -> bool:
    """Tell whether what its user had seen was given up for a request."""
    return any(reason.endswith(f":{YIELDED}") for reason in op.reasons)


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


def _check_epochs(
    ops: Sequence[Op], forks: Sequence[Fork], max_staleness: float
) -> Iterator[Violation]:
    """Check from fork to fork what is shown against what is known, as far as that has survived."""
    originals: dict[int, Op] = {}
    forks = sorted(forks, key=lambda fork: fork.at)
    ends = [*(fork.at for fork in forks), math.inf]
    since = -math.inf
    for fork, until in zip([None, *forks], ends, strict=True):
        if fork is not None:
            since = fork.at
            ops = [_survived(op, fork, originals) for op in ops]
        known = [op for op in ops if op.start < until]
        for violation in [*_check_staleness(known, max_staleness), *_check_users(known)]:
            if since <= violation.ops[-1].end < until:
                shown = tuple(originals.get(id(op), op) for op in violation.ops)
                yield violation._replace(ops=shown)


def _survived(op: Op, fork: Fork, originals: dict[int, Op]) -> Op:
    """Return a request with no more of what it wrote and showed than the fork has left of it."""
    if op.start >= fork.at:
        return op

    def clamp(register: str, value: int) -> tuple[str, int]:
        return register, min(value, fork.values.get(register, 0))

    survived = op._replace(
        reads=tuple(clamp(*read) for read in op.reads),
        written=None if op.written is None else clamp(*op.written),
    )
    if survived == op:
        return op
    originals[id(survived)] = originals.get(id(op), op)
    return survived


def _has_lost(op: Op, fork: Fork) -> bool:
    """Tell whether the request wrote, and was told so, what the fork does not have."""
    if op.written is None or not op.is_answered or op.end >= fork.at:
        return False
    register, value = op.written
    return register in fork.values and value > fork.values[register]


def _check_users(ops: Iterable[Op]) -> Iterator[Violation]:
    by_user = defaultdict(list)
    for op in ops:
        # Who is not signed in is promised nothing but the bound. Whether that is right for the
        # session, the rules of sessions say.
        if op.signed_in == op.user:
            by_user[op.user].append(op)
    for user_ops in by_user.values():
        yield from _check_user(user_ops)


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


def _check_sessions(ops: Iterable[Op], forks: Sequence[Fork]) -> Iterator[Violation]:
    """Signed in is who has signed in and not out, as far as no fork has undone that."""
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
        if any(_is_undone(op, login, logout, fork) for fork in forks):
            continue
        if logout is None or logout.start > op.end:
            if op.signed_in != op.user:
                message = f"{op.user} was taken for {op.signed_in}, and had not signed out"
                yield Violation(LOST_SESSION, message, (login, op))
        elif logout.is_answered and logout.end < op.start and op.signed_in is not None:
            message = f"{op.user} was still signed in after signing out"
            yield Violation(REVIVED_SESSION, message, (logout, op))


def _is_undone(op: Op, login: Op, logout: Op | None, fork: Fork) -> bool:
    """Tell whether a fork that the request may have met has lost its sign-in, or its sign-out."""
    if op.end < fork.at:
        return False
    is_there = f"session {op.session}" in fork.values
    if logout is not None and logout.start < fork.at:
        return is_there
    return login.start < fork.at and not is_there


def _check_recovery(ops: Sequence[Op], windows: Sequence[Window]) -> tuple[list[Violation], int]:
    """Nobody is served by the primary alone when nothing is left of a failover."""
    violations, watched = [], 0
    for window in windows:
        if window.kind != RECOVERED:
            continue
        by_user = defaultdict(list)
        for op in ops:
            is_within = window.start <= op.start and op.end <= window.end
            if is_within and op.safe and op.is_answered and op.aliases and op.signed_in == op.user:
                by_user[op.user].append(op)
        for user, reads in by_user.items():
            if len(reads) < WATCHED_READS:
                continue
            watched += 1
            if all(op.aliases == (PRIMARY,) for op in reads):
                message = f"none of {len(reads)} requests of {user} was served by a replica"
                violations.append(Violation(STUCK, message, (reads[0], reads[-1])))
    return violations, watched


def _check_availability(
    ops: Iterable[Op], windows: Sequence[Window]
) -> tuple[list[Violation], int]:
    """No request fails, except while the primary is down or its own worker is restarted."""
    violations, excused = [], 0
    signed_out_at: dict[str, float] = {}
    for op in ops:
        if op.kind == "logout":
            signed_out_at.setdefault(op.session, op.start)
    for op in ops:
        if op.is_answered:
            continue
        if op.status == SESSION_INTERRUPTED and signed_out_at.get(op.session, math.inf) <= op.end:
            continue  # rightly so: the session was deleted under it
        if any(_excuses(window, op) for window in windows):
            excused += 1
            continue
        how = f"answered with {op.status}" if op.status else "not answered"
        violations.append(Violation(AVAILABILITY, f"a {op.kind} was {how}", (op,)))
    return violations, excused


def _check_times(
    ops: Iterable[Op], outages: Sequence[Span], longest_read: float
) -> tuple[list[Violation], float]:
    """No read takes longer than the bound, less the time in which the primary could not answer.

    Nor counts what the machine did not give to the process that reads.
    """
    violations, slowest = [], 0.0
    for op in ops:
        for read in op.slow_reads:
            seconds = _own_seconds(read, outages)
            slowest = max(slowest, seconds)
            if seconds > longest_read:
                message = (
                    f"a read took {read.end - read.start:.2f} s, of which {seconds:.2f} s are excused"
                    f" by nothing: more than {longest_read:.2f} s"
                )
                violations.append(Violation(SLOW_READ, message, (op,)))
    return violations, slowest


def _own_seconds(read: SlowRead, outages: Sequence[Span]) -> float:
    excused = covered(read.start, read.end, [*read.stalls, *outages])
    return read.end - read.start - excused


def _excuses(window: Window, op: Op) -> bool:
    if window.kind == "worker" and op.status != 0:
        return False  # a process that ends answers nothing, rather than an error
    return window.kind in {"primary", "worker"} and window.overlaps(op.start, op.end)
