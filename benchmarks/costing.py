"""What routing adds to the CPU time of a request.

Each contender is measured in processes of its own: one that has the package, and serves a page
without it for comparison, still has some of it on its connections. No two processes are alike to
within some per cent, so there are several of each, and all take turns of a few requests. The CPU
time is that of the thread that serves: whatever else runs on the machine costs it little, and the
contenders as much as each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import sub
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from benchmarks.children import Child
from benchmarks.contenders import BY_NAME
from benchmarks.figures import Spread, cell_text
from benchmarks.harness import Benchmark, Options, Result, Table, Verdict, take_turns
from benchmarks.request import BASE, Page
from testproject.cluster import Cluster
from testproject.cluster.processes import HAS_PROC
from testproject.demo.site import prepare

CONTENDERS = (BASE, "package", "package+backend")
BESIDE = "package beside"
"""The package of another build, where one is named by ``--beside``."""

SHARE = 0.45
"""Of what another build adds to a request this one is to add so much at most."""

PROCESSES = 5
TURNS = 16
"""Turns that a process takes of each page in each round: many and short ones, so that the machine is as fast for all
contenders of a turn."""


@dataclass(frozen=True, slots=True)
class Case:
    """A page, how often it is asked for in one turn, and the ratio to reach."""

    page: Page
    requests: int
    target: float


CASES = (
    Case(Page(1), 15, 1.12),
    Case(Page(5), 7, 1.06),
    Case(Page(20), 3, 1.05),
    Case(Page(5, signed_in=True), 7, 1.15),
    Case(Page(20, signed_in=True), 3, 1.07),
)


class Process(NamedTuple):
    """One of the processes of a contender."""

    contender: str
    number: int


Times = dict[Process, list[float]]
"""CPU microseconds of a request, by turn."""


def run(options: Options) -> Result:
    """Have every process serve every page."""
    processes = [
        Process(name, number)
        for number in range(options.pick(PROCESSES, 1))
        for name in _contenders(options)
    ]
    cases = options.pick(CASES, CASES[3:4])
    turns = options.pick(TURNS * options.rounds, 1)
    measured: dict[Case, Times] = {}
    memory: dict[Process, float] = {}
    with Cluster(replicas=2, settings={"max_connections": "400"}) as cluster:
        [account] = prepare(cluster, ["ann"], sessions=1)
        with _children(cluster, processes, options.beside) as children:
            for case in cases:
                options.log(f"costing: {case.page.name}")
                measured[case] = _measure(children, case, account.sessions[0], turns, options.seed)
            if HAS_PROC:
                for process, child in children.items():
                    memory[process] = float(child.call("benchmarks.timing:memory_mb"))
    return result_of(measured, memory)


def _contenders(options: Options) -> Sequence[str]:
    names = options.pick(CONTENDERS, CONTENDERS[:2])
    return names if options.beside is None else (*names, BESIDE)


@contextmanager
def _children(
    cluster: Cluster, processes: Sequence[Process], beside: Path | None
) -> Iterator[Mapping[Process, Child]]:
    with ExitStack() as stack:
        yield {
            process: stack.enter_context(Child(_environment(cluster, process.contender, beside)))
            for process in processes
        }


def _environment(cluster: Cluster, contender: str, beside: Path | None) -> dict[str, str]:
    if contender != BESIDE:
        return BY_NAME[contender].environment(cluster)
    return {**BY_NAME["package"].environment(cluster), "BENCHMARKS_PACKAGE": str(beside)}


def _measure(
    children: Mapping[Process, Child], case: Case, session: str, turns: int, seed: int
) -> Times:
    request = {
        "path": case.page.path,
        "session": session if case.page.signed_in else None,
    }
    for child in children.values():
        child.call("benchmarks.timing:warm_up", **request)

    def measure(process: Process) -> float:
        function = "benchmarks.timing:cpu_us"
        return float(children[process].call(function, **request, requests=case.requests))

    return take_turns(list(children), measure, rounds=turns, seed=seed + case.page.queries)


def result_of(
    measured: Mapping[Case, Times], memory: Mapping[Process, float] | None = None
) -> Result:
    """Return what is to be reported.

    Args:
        measured: the times of each page.
        memory: megabytes of each process at the end.
    """
    table = Table(
        "CPU time of the serving thread for a request, in processes of their own",
        ["contender", "page", "us", f"ratio to {BASE}", "adds (us)"],
        note="Of each turn the median request, and the mean of a contender's processes; of all turns the "
        "median, with the lowest and the highest. A ratio is taken within each turn.",
    )
    verdicts = []
    for case, times in measured.items():
        base = _turns(times, BASE)
        for name in dict.fromkeys(process.contender for process in times):
            mine = _turns(times, name)
            ratio = None if name == BASE else Spread.of_ratios(mine, base)
            added = None if ratio is None else median(map(sub, mine, base))
            table.add(name, case.page.name, Spread.of(mine), ratio, added)
            if ratio is not None and name != BESIDE:
                target = f"`{name}`, {case.page.name}: at most {case.target:g} of {BASE}'s CPU time"
                reached = ratio.median <= case.target
                verdicts.append(Verdict(target, cell_text(ratio), reached))
        verdicts += _compare(case, times)
    tables = [table, _table_of_memory(memory)] if memory else [table]
    return Result(tables, [], verdicts, [_NOTE])


def _compare(case: Case, times: Times) -> Iterator[Verdict]:
    """Yield what the package adds beside what that of another build does, where one was measured."""
    if not any(process.contender == BESIDE for process in times):
        return
    base = _turns(times, BASE)
    mine, other = (median(map(sub, _turns(times, n), base)) for n in ("package", BESIDE))
    target = f"`package`, {case.page.name}: adds at most {SHARE:g} of what the build beside it adds"
    yield Verdict(
        target,
        f"{mine / (other or math.nan):.2f} ({mine:.0f} and {other:.0f} us)",
        mine <= SHARE * other,
    )


def _table_of_memory(memory: Mapping[Process, float]) -> Table:
    table = Table(
        "Memory of a process that has served all pages", ["contender", "MB shared with no other"]
    )
    for name in dict.fromkeys(process.contender for process in memory):
        mine = [mb for process, mb in memory.items() if process.contender == name]
        table.add(name, Spread.of(mine))
    return table


def _turns(times: Times, contender: str) -> list[float]:
    """Return the mean of a contender's processes in each turn."""
    mine = [turns for process, turns in times.items() if process.contender == contender]
    return [mean(turn) for turn in zip(*mine, strict=True)]


_NOTE = (
    f"{PROCESSES} processes of each contender, each with Django's handler, all connections open and no "
    "HTTP, in turns whose order is drawn anew each time. The time of the thread that serves: not "
    "that of the servers, nor that of the package's own threads."
)

BENCHMARK = Benchmark(
    "costing",
    measures="The CPU time of a request beside a random router, in processes of their own.",
    target="At most 1.12, 1.06 and 1.05 of a random router's for 1, 5 and 20 queries, and 1.15 and 1.07 "
    "for 5 and 20 where somebody is signed in.",
    run=run,
)
