"""Reads while a replica is killed, comes back, hangs, and goes on, in bins of 100 ms.

Over HTTP, at a steady pace. A read belongs to the bin in which it began, so that one which was begun
under a fault and took long counts against the fault; one that is under way when the next thing
happens, and has not taken too long until then, counts against that. Normal is what was measured in the seconds
before the first fault; a bin is above normal where its slowest percent took longer than three times
that, and at least so many milliseconds longer that the machine itself is not to blame. Since a
client that waits asks nothing else, the time above normal lasts until the last of those slow reads
is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from benchmarks.contenders import left_out
from benchmarks.figures import Spread, percentile
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.load.loops import ERROR, Clients, Loop, Request
from benchmarks.load.rows import create_rows
from benchmarks.load.served import serving
from benchmarks.load.variants import DEFAULT, Variant, environment, plain
from benchmarks.oracle import PRIMARY
from testproject.cluster import Cluster

BIN = 0.1
USERS = 200
PEERS = ("random", "replicated", "naive-lsn")
ABOVE_FACTOR = 3.0
ABOVE_SECONDS = 0.1
"""By this much at least a bin's p99 must exceed the normal one, to count as above it."""


class Event(NamedTuple):
    """Something that is done to a replica.

    Args:
        name: what tables call it.
        at: seconds after the beginning.
        bound: seconds after which its effect must be over.
        do: does it.
    """

    name: str
    at: float
    bound: float
    do: Callable[[Cluster], object]


def _events(step: float) -> list[Event]:
    # The bounds are those of docs/reliability.md: CONNECT_TIMEOUT of 0.5 s where connections are
    # refused; 1 s of patience and up to 0.3 s to end the waiting where a server says nothing.
    return [
        Event("killed (SIGKILL)", step, 0.5, lambda cluster: cluster.replicas[0].kill()),
        Event("comes back", 2 * step, 0.5, lambda cluster: cluster.replicas[0].start()),
        Event("hangs (SIGSTOP)", 3 * step, 1.3, lambda cluster: cluster.replicas[1].suspend()),
        Event("goes on", 4 * step, 0.5, lambda cluster: cluster.replicas[1].resume_process()),
    ]


@dataclass(frozen=True, slots=True)
class Effect:
    """What an event has done to reads.

    Args:
        errors: reads that failed.
        slowest: seconds that the slowest read took.
        above: seconds from the event until the last read of a bin whose p99 was above normal was
            answered.
    """

    errors: int
    slowest: float
    above: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run of a contender.

    Args:
        bins: for each, reads begun in it, errors, p99 in seconds, share on replicas.
        normal: p99 in seconds before the first event.
        effects: by event.
    """

    bins: list[tuple[int, int, float, float]]
    normal: float
    effects: Mapping[str, Effect]


def run(options: Options) -> Result:
    """Run the timeline for every contender, in turns."""
    variants = options.pick([*plain(*PEERS), DEFAULT], [DEFAULT])
    step = options.pick(4.0, 0.8)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(replicas=2, cache=True))
        create_rows(cluster, USERS)
        values = take_turns(
            variants,
            partial(_measure, cluster, options, step),
            rounds=min(options.rounds, options.pick(2, 1)),
            seed=options.seed,
        )
    return _result(values, _events(step), left_out(*PEERS))


def _measure(cluster: Cluster, options: Options, step: float, variant: Variant) -> Timeline:
    options.log(f"failover: {variant.name}")
    cluster.heal()
    with serving(environment(cluster, variant, 0), workers=2, threads=8) as url:
        loop = Loop(
            url,
            clients=options.pick(12, 4),
            pause=0.06,
            users=USERS,
            write_share=0.01,
            read_path="/read/?rows=",
            write_path="/write/?row=",
            seed=options.seed,
        )
        with Clients(loop) as clients:
            time.sleep(options.pick(2.0, 0.5))
            began = time.monotonic()
            happened = _play(cluster, _events(step), began)
            time.sleep(max(0.0, began + 5 * step - time.monotonic()))
            requests = clients.requests()
    return timeline_of([r for r in requests if r.is_read], began, 5 * step, happened)


def _play(cluster: Cluster, events: Sequence[Event], began: float) -> list[tuple[Event, float]]:
    """Let the events happen, and return the moment at which each began."""
    happened = []
    for event in events:
        time.sleep(max(0.0, began + event.at - time.monotonic()))
        happened.append((event, time.monotonic()))
        event.do(cluster)
    return happened


def timeline_of(
    reads: Sequence[Request],
    began: float,
    seconds: float,
    happened: Sequence[tuple[Event, float]],
) -> Timeline:
    """Sort reads into bins, and tell what each event has done to them."""
    number = round(seconds / BIN)
    bins: list[list[Request]] = [[] for _ in range(number)]
    for read in reads:
        index = int((read.began - began) // BIN)
        if 0 <= index < number:
            bins[index].append(read)
    first = happened[0][1] if happened else began + seconds
    normal = _p99([read for read in reads if began <= read.began < first - BIN])
    limit = max(ABOVE_FACTOR * normal, normal + ABOVE_SECONDS)
    effects = {}
    for position, (event, at) in enumerate(happened):
        until = happened[position + 1][1] if position + 1 < len(happened) else began + seconds
        effects[event.name] = _effect(bins, began, at, until, limit)
    return Timeline([_summary(each) for each in bins], normal, effects)


def _effect(
    bins: Sequence[Sequence[Request]], began: float, at: float, until: float, limit: float
) -> Effect:
    first, last = int((at - began) // BIN), int((until - began) // BIN)
    errors, slowest = 0, 0.0
    # What was under way when it happened, and had not taken too long until then, counts from here.
    under_way = [read for each in bins for read in each if _meets(read, at, limit)]
    above = max([0.0, *(r.ended - at for r in under_way if r.ended - r.began > limit)])
    for index in range(first, min(last, len(bins))):
        reads = bins[index]
        errors += sum(read.alias == ERROR for read in reads)
        slowest = max([slowest, *(read.ended - read.began for read in reads)])
        reads = [read for read in reads if not _meets(read, until, limit)]
        if reads and _p99(reads) > limit:
            above = max([above, *(read.ended - at for read in reads if read.began >= at)])
    return Effect(errors, slowest, above)


def _meets(read: Request, event: float, limit: float) -> bool:
    """Tell whether a read was under way at an event, and had not taken too long until then."""
    return read.began < event < read.ended and event - read.began <= limit


def _p99(reads: Sequence[Request]) -> float:
    return percentile([read.ended - read.began for read in reads], 0.99) if reads else 0.0


def _summary(reads: Sequence[Request]) -> tuple[int, int, float, float]:
    errors = sum(read.alias == ERROR for read in reads)
    on_replicas = sum(read.alias not in (ERROR, PRIMARY) for read in reads)
    return len(reads), errors, _p99(reads), on_replicas / max(1, len(reads))


def _result(
    values: Mapping[Variant, list[Timeline]], events: Sequence[Event], absent: dict[str, str]
) -> Result:
    table = Table(
        "Reads after each event",
        [
            "contender",
            "a replica",
            "errors",
            "slowest read, ms",
            "p99 above normal for, s",
            "normal p99, ms",
        ],
        note=f"Above normal: more than {ABOVE_FACTOR:g} times the normal p99, and at least "
        f"{1000 * ABOVE_SECONDS:g} ms more, in a bin of {1000 * BIN:g} ms.",
    )
    for variant, runs in values.items():
        for event in events:
            effects = [each.effects[event.name] for each in runs]
            table.add(
                variant.name,
                event.name,
                sum(effect.errors for effect in effects),
                Spread.of(1000 * effect.slowest for effect in effects),
                Spread.of(effect.above for effect in effects),
                Spread.of(1000 * each.normal for each in runs),
            )
    runs = values[DEFAULT]
    return Result(
        tables=[table],
        plots=[
            _plot(values, "p99", "p99 of the reads begun in each 100 ms", "ms", 2, 1000.0),
            _plot(values, "reads", "Reads answered of those begun in each 100 ms", "reads/s", 0),
        ],
        verdicts=_verdicts(runs, events),
        left_out=absent,
    )


def _plot(
    values: Mapping[Variant, list[Timeline]],
    slug: str,
    title: str,
    unit: str,
    column: int,
    factor: float = 1.0,
) -> Plot:
    plot = Plot(slug, title, "seconds", unit, log="y" if slug == "p99" else "")
    for variant, runs in values.items():
        for index in range(len(runs[0].bins)):
            cells = [each.bins[index] for each in runs]
            if slug == "reads":
                ys = [(cell[0] - cell[1]) / BIN for cell in cells]
            else:
                ys = [max(0.1, factor * cell[column]) for cell in cells]
            plot.add(variant.name, index * BIN, Spread.of(ys))
    return plot


def _verdicts(runs: Sequence[Timeline], events: Sequence[Event]) -> list[Verdict]:
    errors = sum(effect.errors for each in runs for effect in each.effects.values())
    verdicts = [Verdict("no failed read", f"{errors}", errors == 0)]
    for event in events:
        above = max(each.effects[event.name].above for each in runs)
        reached = above <= event.bound
        target = f"{event.name}: p99 above normal for at most {event.bound:g} s"
        verdicts.append(Verdict(target, f"{above:.2f} s", reached))
    return verdicts


BENCHMARK = Benchmark(
    "failover",
    measures="reads per second and p99 while a replica is killed, hangs and comes back",
    target="no error; p99 above normal for no longer than the detection bound",
    run=run,
)
