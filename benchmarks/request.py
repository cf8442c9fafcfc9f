"""What routing leaves of a site's throughput."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.contenders import left_out, present
from benchmarks.figures import Cell, Spread, cell_text, percentile
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.running import WORKERS, running
from benchmarks.visits import Visit, visit
from testproject.cluster import Cluster
from testproject.cluster.gunicorn import Site
from testproject.cluster.processes import HAS_PROC, children_of, stat_fields
from testproject.demo.site import prepare

BASE = "random"
WARM_UP_SECONDS = 2.0

# Fields of /proc/PID/stat behind the program's name: utime and stime, then those of children.
_USER_TIME, _CHILDREN = 11, 13


@dataclass(frozen=True, slots=True)
class Page:
    """A page that runs so many queries; signed in, two of them find out who the user is."""

    queries: int
    signed_in: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.queries} queries, signed in" if self.signed_in else f"{self.queries} queries"

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/bench/mine/{self.queries}/" if self.signed_in else f"/bench/{self.queries}/"


PAGES = (Page(1), Page(5), Page(20), Page(5, signed_in=True))


@dataclass(frozen=True, slots=True)
class Turn:
    """A visit, and the CPU seconds that the site's workers have used for it."""

    visit: Visit
    cpu_seconds: float | None

    @property
    def cpu_ms(self) -> float | None:
        """CPU milliseconds of the workers for a request."""
        count = len(self.visit.latencies)
        return None if self.cpu_seconds is None or not count else 1000 * self.cpu_seconds / count


Turns = dict[str, list[Turn]]


def run(options: Options) -> Result:
    """Visit every page of every contender's site."""
    contenders = present(*options.pick([], ["none", BASE, "package", "package+backend"]))
    pages = options.pick(PAGES, PAGES[-1:])
    seconds = options.pick(1.2, 0.5)
    measured: dict[Page, Turns] = {}
    with Cluster(replicas=2, settings={"max_connections": "400"}) as cluster, ExitStack() as stack:
        [account] = prepare(cluster, ["ann"], sessions=1)
        sites = {
            contender.name: stack.enter_context(running(cluster, contender))
            for contender in contenders
        }

        def go(name: str, page: Page, seconds: float) -> Turn:
            return _visit(sites[name], page, account.sessions[0], seconds)

        for name in sites:
            go(name, pages[-1], options.pick(WARM_UP_SECONDS, 0.5))
        for page in pages:
            options.log(f"request: {page.name}")
            measured[page] = take_turns(
                list(sites),
                lambda name, page=page: go(name, page, seconds),  # type: ignore[misc]
                rounds=options.rounds,
                seed=options.seed + page.queries,
            )
    return _result(measured)


def _is_package(name: str) -> bool:
    """Tell whether a contender is this package, with its database backend or without."""
    return name.startswith("package")


def _visit(site: Site, page: Page, session: str, seconds: float) -> Turn:
    before = _cpu_seconds(site)
    found = visit(
        site.url,
        page.path,
        session if page.signed_in else None,
        seconds=seconds,
        workers=WORKERS,
    )
    after = _cpu_seconds(site)
    return Turn(found, None if before is None or after is None else after - before)


def _cpu_seconds(site: Site) -> float | None:
    """Return what the site's processes have used of the CPU so far, or None where nobody says."""
    if not HAS_PROC:
        return None
    pids = [site.process.pid, *children_of(site.process.pid)]
    ticks = sum(int(field) for pid in pids for field in stat_fields(pid)[_USER_TIME:_CHILDREN])
    return ticks / os.sysconf("SC_CLK_TCK")


def _result(measured: Mapping[Page, Turns]) -> Result:
    table = Table(
        "Requests per second, and latency (ms)",
        [
            "contender",
            "page",
            "requests/s",
            f"ratio to {BASE}",
            "p50",
            "p99",
            "CPU of the workers (ms a request)",
            f"ratio to {BASE}",
        ],
    )
    plot = Plot(
        "throughput",
        "Throughput",
        "",
        "requests/s",
        kind="bar",
        ticks=[page.name for page in measured],
    )
    verdicts = []
    for number, (page, turns) in enumerate(measured.items()):
        for name, rounds in turns.items():
            ratio = _ratio(rounds, turns[BASE], "rate")
            cpu_ratio = _ratio(rounds, turns[BASE], "cpu")
            table.add(name, page.name, *_cells(rounds, ratio, cpu_ratio))
            plot.add(name, number, Spread.of(turn.visit.rate for turn in rounds))
            if _is_package(name):
                verdicts.append(
                    Verdict(
                        f"`{name}`, {page.name}: at least 0.98 of {BASE}'s throughput",
                        f"{cell_text(ratio)}; CPU of the workers {cell_text(cpu_ratio)}",
                        ratio.median >= 0.98 if ratio else None,
                    )
                )
    return Result([table], [plot], verdicts, [_note(measured)], left_out())


def _cells(rounds: list[Turn], ratio: Spread | None, cpu_ratio: Spread | None) -> list[Cell]:
    p50, p99 = (
        Spread.of(percentile(turn.visit.latencies, share) * 1000 for turn in rounds)
        for share in (0.5, 0.99)
    )
    cpu = [turn.cpu_ms for turn in rounds if turn.cpu_ms is not None]
    rate = Spread.of(turn.visit.rate for turn in rounds)
    return [rate, ratio, p50, p99, Spread.of(cpu) if cpu else None, cpu_ratio]


def _ratio(rounds: list[Turn], bases: list[Turn], what: str) -> Spread | None:
    pairs = [
        (mine.visit.rate, base.visit.rate) if what == "rate" else (mine.cpu_ms, base.cpu_ms)
        for mine, base in zip(rounds, bases, strict=True)
    ]
    known = [(mine, base) for mine, base in pairs if mine is not None and base]
    return Spread.of_ratios(*zip(*known, strict=True)) if known else None


def _note(measured: Mapping[Page, Turns]) -> str:
    visits = [
        turn.visit for turns in measured.values() for rounds in turns.values() for turn in rounds
    ]
    seconds = sum(item.seconds for item in visits)
    share = sum(item.cpu_seconds for item in visits) / seconds if seconds else 0.0
    return (
        f"gunicorn with {WORKERS} workers for each contender, all running at once and visited in "
        "turns; two connections to each worker stay open, each with one request at a time. "
        f"The visitor itself uses {100 * share:.0f} % of one core. Sites, three PostgreSQL servers "
        "and Valkey share the machine's cores, so that a statement more at any server costs "
        "throughput. The CPU time of a site's own processes says what routing costs there, whatever "
        "else the machine does."
    )


BENCHMARK = Benchmark(
    "request",
    measures="Requests per second and latency of pages with 1, 5 and 20 queries, over HTTP.",
    target="At least 0.98 of the throughput of a random router.",
    run=run,
)
