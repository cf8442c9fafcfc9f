"""Throughput as replicas are added, with servers made equally scarce.

The machine has too few processors for so many servers, so what a server lacks is made up: each runs
one query at a time and takes a fixed time for it, by a lock of its own. So each server has the same
small capacity, and the machine's processors are idle most of the time. Clients ask over HTTP as
fast as they are answered.

Linear means: with n replicas, n times the capacity of one server for reads, so n times the
throughput without replicas divided by the share of reads. More is not possible where all reads go
to replicas.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from benchmarks.contenders import left_out
from benchmarks.figures import Spread
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.load.loops import ERROR, Clients, Loop, Request
from benchmarks.load.rows import create_costly_rows
from benchmarks.load.served import serving
from benchmarks.load.variants import DEFAULT, DEFAULT_WAIT, Variant, environment, package, plain
from benchmarks.oracle import PRIMARY
from testproject.cluster import Cluster

SETTINGS = {"max_connections": "300"}
SERVICE_SECONDS = 0.025
WRITE_SHARE = 0.05
USERS = 2000
WARM_UP_SECONDS = 3.0
# Enough that hardly a server is ever idle: with m clients and n servers to choose from by lot, each
# is busy m / (m + n - 1) of the time.
CLIENTS_PER_SERVER = 24
TARGET = 0.95

NONE = Variant("none", "none")
LEAST = package(DEFAULT_WAIT, balancer="least_in_flight")


class Case(NamedTuple):
    """A contender with so many replicas."""

    variant: Variant
    replicas: int


class Speed(NamedTuple):
    """What was reached.

    Args:
        throughput: requests answered in a second.
        on_replicas: the share of reads that replicas served.
        errors: requests that failed.
    """

    throughput: float
    on_replicas: float
    errors: int


def run(options: Options) -> Result:
    """Measure each contender with each number of replicas, in turns."""
    most = options.pick(4, 1)
    variants = options.pick([*plain("random"), DEFAULT, LEAST], [DEFAULT])
    cases = [Case(NONE, 0)]
    cases += [Case(variant, n) for n in range(1, most + 1) for variant in variants]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(replicas=most, cache=True, settings=SETTINGS))
        create_costly_rows(cluster, USERS, SERVICE_SECONDS)
        values = take_turns(
            cases,
            partial(_measure, cluster, options),
            rounds=min(options.rounds, options.pick(3, 1)),
            seed=options.seed,
        )
    return _result(values, left_out("random"))


def _measure(cluster: Cluster, options: Options, case: Case) -> Speed:
    options.log(f"scaling: {case.variant.name}, {case.replicas} replicas")
    environ = environment(cluster, case.variant, case.replicas, replicas=case.replicas)
    clients = options.pick(CLIENTS_PER_SERVER, 4) * (case.replicas + 1)
    with serving(environ, workers=2, threads=clients // 2) as url:
        loop = Loop(
            url,
            clients=clients,
            pause=0.0,
            users=USERS,
            write_share=WRITE_SHARE,
            read_path="/costly/read/?row=",
            write_path="/costly/write/?row=",
            seed=options.seed,
        )
        with Clients(loop) as running:
            time.sleep(options.pick(WARM_UP_SECONDS, 0.5))
            began = time.monotonic()
            time.sleep(options.pick(4.0, 0.5))
            return _speed(running.requests(), began, time.monotonic())


def _speed(requests: Sequence[Request], began: float, ended: float) -> Speed:
    counted = [request for request in requests if began <= request.ended <= ended]
    good = [request for request in counted if request.alias != ERROR]
    reads = [request for request in good if request.is_read]
    on_replicas = sum(request.alias != PRIMARY for request in reads)
    return Speed(
        len(good) / (ended - began), on_replicas / max(1, len(reads)), len(counted) - len(good)
    )


def _result(values: dict[Case, list[Speed]], absent: dict[str, str]) -> Result:
    table = Table(
        "Requests answered in a second",
        [
            "contender",
            "replicas",
            "requests/s",
            "in the share of linear",
            "reads on replicas, %",
            "errors",
        ],
        note=f"Each server runs one query at a time, for {1000 * SERVICE_SECONDS:g} ms; "
        f"{100 * WRITE_SHARE:g} % of the requests write.",
    )
    plot = Plot("throughput", "Throughput by number of replicas", "replicas", "requests/s")
    alone = [speed.throughput for speed in values[Case(NONE, 0)]]
    verdicts = []
    for case, speeds in values.items():
        linear = [base * case.replicas / (1 - WRITE_SHARE) for base in alone]
        throughputs = [speed.throughput for speed in speeds]
        ratio = Spread.of_ratios(throughputs, linear) if case.replicas else None
        table.add(
            case.variant.name,
            case.replicas,
            Spread.of(throughputs),
            ratio,
            Spread.of(100 * speed.on_replicas for speed in speeds),
            sum(speed.errors for speed in speeds),
        )
        if case.replicas:
            plot.add(case.variant.name, case.replicas, Spread.of(throughputs))
        if ratio is not None and case.variant in (DEFAULT, LEAST):
            verdicts.append(_verdict(case, ratio))
    return Result(tables=[table], plots=[plot], verdicts=verdicts, left_out=absent)


def _verdict(case: Case, ratio: Spread) -> Verdict:
    target = f"{case.variant.name}: {TARGET:g} of linear with {case.replicas} replicas"
    return Verdict(target, f"{ratio.median:.3f}", ratio.median >= TARGET)


BENCHMARK = Benchmark(
    "scaling",
    measures="throughput with 0 to 4 replicas, with servers made equally scarce",
    target="at least 0.95 of linear in replicas for a load of 95 % reads",
    run=run,
)
