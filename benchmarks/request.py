"""What routing leaves of a site's throughput."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.contenders import left_out, present
from benchmarks.figures import Spread, cell_text, percentile
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.sites import WORKERS, running
from benchmarks.visits import Visit, visit
from testproject.cluster import Cluster
from testproject.demo.site import Site, prepare

BASE = "random"
WARM_UP_SECONDS = 2.0


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
Visits = dict[str, list[Visit]]


def run(options: Options) -> Result:
    """Visit every page of every contender's site."""
    contenders = present(*options.pick([], ["none", BASE, "package", "package+backend"]))
    pages = options.pick(PAGES, PAGES[-1:])
    seconds = options.pick(1.2, 0.5)
    measured: dict[Page, Visits] = {}
    with Cluster(replicas=2, settings={"max_connections": "400"}) as cluster, ExitStack() as stack:
        [account] = prepare(cluster, ["ann"], sessions=1)
        sites = {
            contender.name: stack.enter_context(running(cluster, contender))
            for contender in contenders
        }

        def go(name: str, page: Page, seconds: float) -> Visit:
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


def _visit(site: Site, page: Page, session: str, seconds: float) -> Visit:
    return visit(
        site.url,
        page.path,
        session if page.signed_in else None,
        seconds=seconds,
        workers=WORKERS,
    )


def _result(measured: Mapping[Page, Visits]) -> Result:
    table = Table(
        "Requests per second, and latency (ms)",
        ["contender", "page", "requests/s", f"ratio to {BASE}", "p50", "p99"],
    )
    plot = Plot(
        "throughput",
        "Throughput",
        "",
        "requests/s",
        kind="bar",
        ticks=[page.name.replace(", ", ",\n") for page in measured],
    )
    verdicts = []
    for number, (page, visits) in enumerate(measured.items()):
        bases = [item.rate for item in visits[BASE]]
        for name, rounds in visits.items():
            rates = [item.rate for item in rounds]
            ratio = Spread.of_ratios(rates, bases)
            p50, p99 = (
                Spread.of(percentile(item.latencies, share) * 1000 for item in rounds)
                for share in (0.5, 0.99)
            )
            table.add(name, page.name, Spread.of(rates), ratio, p50, p99)
            plot.add(name, number, Spread.of(rates))
            if name.startswith("package"):
                verdicts.append(
                    Verdict(
                        f"`{name}`, {page.name}: at least 0.98 of {BASE}'s throughput",
                        cell_text(ratio),
                        ratio.median >= 0.98,
                    )
                )
    return Result([table], [plot], verdicts, [_note(measured)], left_out())


def _note(measured: Mapping[Page, Visits]) -> str:
    visits = [item for found in measured.values() for rounds in found.values() for item in rounds]
    seconds = sum(item.seconds for item in visits)
    share = sum(item.cpu_seconds for item in visits) / seconds if seconds else 0.0
    return (
        f"gunicorn with {WORKERS} workers for each contender, all running at once and visited in "
        "turns; two connections to each worker stay open, each with one request at a time. "
        f"The visitor itself uses {100 * share:.0f} % of one core. Sites, three PostgreSQL servers "
        "and Valkey share the machine's cores, so that a statement more at any server costs "
        "throughput."
    )


BENCHMARK = Benchmark(
    "request",
    measures="Requests per second and latency of pages with 1, 5 and 20 queries, over HTTP.",
    target="At least 0.98 of the throughput of a random router.",
    run=run,
)
