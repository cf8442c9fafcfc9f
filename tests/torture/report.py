"""What a run tells: as text for people, as one document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.torture.checker import RULES, Violation
from tests.torture.history import PRIMARY, History, Op, SlowRead, describe
from tests.torture.run import Result

EXCERPTS_PER_RULE = 2
EXCERPT_LINES = 14


def reasons(history: History) -> Counter[str]:
    """Return how many requests met with each reason."""
    return Counter(reason.partition(":")[2] for op in history.ops for reason in op.reasons)


def reruns(history: History) -> int:
    """Return how many safe requests began on a replica and ended on the primary."""
    return sum(
        1
        for op in history.ops
        if op.kind == "read" and len(op.aliases) > 1 and op.aliases[-1] == PRIMARY
    )


def duration(read: SlowRead) -> float:
    """Return the seconds that a read has taken, excused or not."""
    return read.end - read.start


def percentile(values: list[float], percent: float) -> float | None:
    """Return the percentile; None of nothing."""
    if not values:
        return None
    ranked = sorted(values)
    return round(ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))], 4)


def document(result: Result) -> dict[str, Any]:
    """Return the result as JSON takes it."""
    plan, verdict, history = result.plan, result.verdict, result.history
    read_seconds = [op.end - op.start for op in history.ops if op.safe and op.is_answered]
    slow_reads = [read for op in history.ops for read in op.slow_reads]
    return {
        "seed": plan.seed,
        "control": plan.control,
        "pooler": plan.pooler,
        "atomic_requests": plan.atomic_requests,
        "router": dict(plan.router),
        "seconds": round(result.seconds, 1),
        "workers": plan.workers,
        "replicas": plan.replicas,
        "users": plan.users,
        "load_average": [round(value, 2) for value in result.load],
        "requests": len(history.ops),
        "writes": sum(1 for op in history.ops if op.written is not None),
        "checked_reads": verdict.checked_reads,
        "checked_reads_per_second": round(verdict.checked_reads / max(result.seconds, 0.001)),
        "reads_by_replica": verdict.by_replica,
        "reads_by_primary": verdict.by_primary,
        "requests_begun_on_a_replica_and_ended_on_the_primary": reruns(history),
        "requests_failed_while_the_primary_or_their_worker_was_down": verdict.excused,
        "read_seconds": {
            "median": percentile(read_seconds, 50),
            "p99": percentile(read_seconds, 99),
            "max": percentile(read_seconds, 100),
        },
        "slow_reads": {
            "longest_in_all": round(max(map(duration, slow_reads), default=0.0), 3),
            "longest_less_what_excuses": round(verdict.slowest, 3),
            "bound": plan.longest_read,
            "seconds_when_the_primary_could_not_answer": round(
                sum(end - start for start, end in history.outages), 1
            ),
        },
        "requests_that_yielded_and_showed_less": verdict.yielded,
        "writes_lost_by_failovers": verdict.lost,
        "users_watched_after_failovers": verdict.recovered,
        "reasons": dict(reasons(history).most_common()),
        "faults": {name: result.injected[name] for name in plan.faults},
        "recovery_conflicts": result.conflicts,
        "keys_dropped_by_the_cache": result.evicted,
        "schedule": [[list(fault) for fault in step.faults] for step in result.steps],
        "stats": {str(pid): stats for pid, stats in result.stats.items()},
        "violations": {rule: verdict.counts[rule] for rule in RULES},
        "excerpts": [
            {"rule": violation.rule, "message": violation.message, "history": lines}
            for violation, lines in excerpts(result)
        ],
        "gaps": result.gaps(),
        "failure": result.failure,
    }


def excerpts(result: Result) -> Iterator[tuple[Violation, list[str]]]:
    """Yield the first violations of each rule, with what happened around them."""
    told: Counter[str] = Counter()
    for violation in result.verdict.violations:
        told[violation.rule] += 1
        if told[violation.rule] <= EXCERPTS_PER_RULE:
            yield violation, excerpt(violation, result.history)


def excerpt(violation: Violation, history: History) -> list[str]:
    """Return the requests that show a violation, marked, with that user's others in between."""
    marked = set(map(id, violation.ops))
    last = violation.ops[-1]
    start = min(op.start for op in violation.ops)
    around = [
        op
        for op in history.ops
        if id(op) in marked or (op.user == last.user and op.end >= start and op.start <= last.start)
    ]
    around.sort(key=lambda op: op.start)
    lines = _shortened(around, marked, history.began)
    faults = [
        f"  fault     {window.start - history.began:9.4f}-{window.end - history.began:9.4f}  "
        f"{window.kind} {window.detail}"
        for window in history.windows
        if window.overlaps(start - 3.0, last.end)
    ]
    return faults + lines


def _shortened(ops: list[Op], marked: set[int], began: float) -> list[str]:
    half = EXCERPT_LINES // 2
    lines = []
    for place, op in enumerate(ops):
        if id(op) in marked or place < half or place >= len(ops) - half:
            lines.append(f"{'> ' if id(op) in marked else '  '}{describe(op, began)}")
        elif lines[-1] != "  ...":
            lines.append("  ...")
    return lines


def text(result: Result) -> str:
    """Return the result for people."""
    told = document(result)
    lines = [
        f"seed {told['seed']}, {told['seconds']} s, {told['workers']} workers, "
        f"{told['replicas']} replicas, {told['users']} users, load {told['load_average'][0]}",
        f"{told['requests']} requests, {told['writes']} writes, {told['checked_reads']} checked "
        f"reads ({told['checked_reads_per_second']} a second), {told['reads_by_replica']} by "
        f"replicas, {told['reads_by_primary']} by the primary",
        f"request times: {told['read_seconds']}; single reads: {told['slow_reads']}",
        f"reasons: {told['reasons']}",
        f"ended on the primary after a replica: "
        f"{told['requests_begun_on_a_replica_and_ended_on_the_primary']}; failed while they might: "
        f"{told['requests_failed_while_the_primary_or_their_worker_was_down']}; showed less than "
        f"before, as they had told: {told['requests_that_yielded_and_showed_less']}",
        f"faults: {told['faults']}, statements cancelled: {told['recovery_conflicts']}, "
        f"keys dropped by the cache: {told['keys_dropped_by_the_cache']}",
        f"acknowledged writes that failovers lost: {told['writes_lost_by_failovers']}; users watched "
        f"afterwards: {told['users_watched_after_failovers']}",
        *(f"stats of {pid}: {stats}" for pid, stats in told["stats"].items() if stats),
        f"violations: {told['violations']}",
    ]
    for shown in told["excerpts"]:
        lines += ["", f"{shown['rule']}: {shown['message']}", *shown["history"]]
    lines += [f"not covered: {gap}" for gap in told["gaps"]]
    if told["failure"]:
        lines += [f"the run failed: {told['failure']}"]
    return "\n".join(lines)


def is_passed(result: Result) -> bool:
    """Return whether nothing was found, and enough was looked at."""
    return not result.verdict.violations and not result.gaps() and not result.failure
