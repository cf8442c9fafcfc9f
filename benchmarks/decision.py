"""What it costs to decide where a read goes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.children import Child, alias_environment
from benchmarks.contenders import CONSTANT, left_out, present
from benchmarks.figures import Spread, cell_text, text_of
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from testproject.cluster import Cluster
from testproject.demo.site import prepare

BASE = "multidb-router"
USUAL = 2
"""The number of replicas of the tables that do not vary it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of visitor, and how the router is asked.

    Args:
        signed_in: the browser carries a session.
        wrote: its user has written a moment ago.
        instance: the hint ``instance`` is given.
        first: the first decision of a request, else one after the first.
    """

    name: str
    signed_in: bool = False
    wrote: bool = False
    instance: bool = False
    first: bool = False


ANONYMOUS = Case("anonymous")
TOKEN = Case("signed in, with token", signed_in=True, wrote=True)
INSTANCE = Case("with token and an instance", signed_in=True, wrote=True, instance=True)
FIRST_ANONYMOUS = Case("first: anonymous", first=True)
FIRST_SIGNED_IN = Case("first: signed in, no token", signed_in=True, first=True)
FIRST_TOKEN = Case("first: signed in, with token", signed_in=True, wrote=True, first=True)
SIGNED_IN = Case("signed in, no token", signed_in=True)

REPEAT = (ANONYMOUS, SIGNED_IN, TOKEN, INSTANCE)
FIRST = (FIRST_ANONYMOUS, FIRST_SIGNED_IN, FIRST_TOKEN)
GROWING = (TOKEN, FIRST_TOKEN)

Figures = dict[Case, dict[str, Any]]


def run(options: Options) -> Result:
    """Measure every contender with several numbers of replicas."""
    counts = options.pick([1, USUAL, 16, 64], [USUAL])
    contenders = [CONSTANT, *present()]
    values: dict[tuple[str, int], list[Figures]] = {}
    with Cluster(replicas=2, settings={"max_connections": "300"}) as cluster:
        sessions = [account.sessions[0] for account in prepare(cluster, ["a", "b"], sessions=1)]
        for count in counts:
            options.log(f"decision: {count} replicas")
            with ExitStack() as stack:
                children = {
                    contender.name: stack.enter_context(
                        Child(alias_environment(cluster, contender, count))
                    )
                    for contender in contenders
                }

                def measure(
                    name: str, children: Mapping[str, Child] = children, count: int = count
                ) -> Figures:
                    return _measure(children[name], options, sessions, full=count == USUAL)

                measured = take_turns(
                    list(children),
                    measure,
                    rounds=options.rounds if count == USUAL else min(3, options.rounds),
                    seed=options.seed + count,
                )
            values |= {(name, count): rounds for name, rounds in measured.items()}
    return _result(values, counts)


def _measure(child: Child, options: Options, sessions: list[str], *, full: bool) -> Figures:
    """Take one turn: every case, or those that show how cost grows with the replicas."""
    figures: Figures = {}
    seconds = options.pick(0.06, 0.01)
    requests = options.pick(100, 10)
    for case in (*REPEAT, *FIRST) if full else GROWING:
        visitor = {
            "case": "token" if case.wrote else "plain" if case.signed_in else "anonymous",
            "session": sessions[case.wrote] if case.signed_in else None,
        }
        alias = child.call("benchmarks.deciding:prepare", **visitor, writes=case.wrote)
        if case.first:
            found = child.call("benchmarks.deciding:first_ns", **visitor, requests=requests)
        else:
            found = child.call(
                "benchmarks.deciding:repeat_ns", **visitor, seconds=seconds, instance=case.instance
            )
        figures[case] = {**found, "alias": alias}
    return figures


def _spread(rounds: list[Figures], case: Case, what: str = "django") -> Spread | None:
    known = [figures[case][what] for figures in rounds if what in figures.get(case, {})]
    return Spread.of(known) if known else None


def _result(values: Mapping[tuple[str, int], list[Figures]], counts: list[int]) -> Result:
    usual = {name: rounds for (name, count), rounds in values.items() if count == USUAL}
    result = Result(
        tables=[
            _repeat_table(usual),
            _first_table(usual),
            _growth_table(values, counts),
            _memory_table(usual),
        ],
        plots=[_growth_plot(values, counts), _bar_plot(usual)],
        verdicts=_verdicts(values, usual, counts),
        left_out=left_out(),
        notes=[
            "Each contender decides in a process of its own, in real requests with its own "
            "middleware. `router.db_for_read` is what Django calls (it walks the routers and looks "
            "at the hints); the method is the router's alone. A loop's own cost is taken off, and "
            "of each round the best of 25 short loops counts. First decisions are asked before the "
            "request has read anything; the median of a round's requests counts. With more aliases "
            "than servers, aliases share servers: the package's monitor looks at each alias.",
            _floor_note(usual),
        ],
    )
    return result


def _floor_note(usual: Mapping[str, list[Figures]]) -> str:
    ratio = _ratio(usual, CONSTANT.name, ANONYMOUS, ANONYMOUS, "django")
    return (
        f"`{CONSTANT.name}` is {CONSTANT.title}. No router can be faster than it; through Django "
        f"it takes {cell_text(ratio)} of {BASE}'s time."
    )


def _repeat_table(usual: Mapping[str, list[Figures]]) -> Table:
    table = Table(
        f"A decision after the first of a request, {USUAL} replicas (ns)",
        ["contender", "case", "router.db_for_read", "ratio", "the method alone", "ratio", "to"],
        note=f"Ratios are to {BASE} in the same case and round.",
    )
    for case in REPEAT:
        for name, rounds in usual.items():
            cells: list[Spread | None] = []
            for what in ("django", "method"):
                cells += [_spread(rounds, case, what), _ratio(usual, name, case, case, what)]
            table.add(name, case.name, *cells, _server(rounds, case))
    return table


def _ratio(
    usual: Mapping[str, list[Figures]], name: str, case: Case, base_case: Case, what: str
) -> Spread | None:
    """Return the ratio to the base, each of its own case, or None where one has no such figure."""
    pairs = [
        (mine[case][what], base[base_case][what])
        for mine, base in zip(usual[name], usual.get(BASE, []), strict=False)
        if what in mine[case] and what in base[base_case]
    ]
    return Spread.of_ratios(*zip(*pairs, strict=True)) if pairs else None


def _server(rounds: list[Figures], case: Case) -> str:
    kinds = {"primary" if figures[case]["alias"] == "default" else "replica" for figures in rounds}
    return " or ".join(sorted(kinds))


def _first_table(usual: Mapping[str, list[Figures]]) -> Table:
    table = Table(
        f"The first decision of a request, {USUAL} replicas (microseconds)",
        [
            "contender",
            "case",
            "router.db_for_read",
            "in the cache's client",
            "the rest",
            "commands",
        ],
        note="The time in the cache's client is that of redis-py and of the server; `commands` is "
        "how many the decision sends.",
    )
    for case in FIRST:
        for name, rounds in usual.items():
            times = [_spread(rounds, case, what) for what in ("django", "cache", "rest")]
            commands = _spread(rounds, case, "commands")
            table.add(name, case.name, *(time and time.scaled(1e-3) for time in times), commands)
    return table


def _growth_table(values: Mapping[tuple[str, int], list[Figures]], counts: list[int]) -> Table:
    table = Table(
        "By number of replicas, `router.db_for_read` (microseconds)",
        ["contender", "case", *map(str, counts)],
    )
    for case in GROWING:
        for name in dict.fromkeys(name for name, _ in values):
            cells = [_spread(values[name, count], case) for count in counts]
            table.add(name, case.name, *(cell and cell.scaled(1e-3) for cell in cells))
    return table


def _memory_table(usual: Mapping[str, list[Figures]]) -> Table:
    table = Table(
        f"Memory of a decision after the first, {USUAL} replicas",
        ["contender", "case", "bytes for a moment", "blocks kept a call"],
        note="By `tracemalloc`, the peak during a call; by `sys.getallocatedblocks`, what stays.",
    )
    for case in (ANONYMOUS, TOKEN):
        for name, rounds in usual.items():
            table.add(
                name, case.name, _spread(rounds, case, "bytes"), _spread(rounds, case, "kept")
            )
    return table


def _growth_plot(values: Mapping[tuple[str, int], list[Figures]], counts: list[int]) -> Plot:
    plot = Plot(
        "replicas",
        "A decision after the first, with token",
        "replicas",
        "ns",
        log="xy",
    )
    for (name, count), rounds in values.items():
        spread = _spread(rounds, TOKEN)
        if count in counts and spread is not None:
            plot.add(name, count, spread)
    return plot


def _bar_plot(usual: Mapping[str, list[Figures]]) -> Plot:
    cases = [ANONYMOUS, TOKEN, FIRST_ANONYMOUS, FIRST_TOKEN]
    plot = Plot(
        "cases",
        f"router.db_for_read, {USUAL} replicas",
        "",
        "ns",
        kind="bar",
        ticks=[case.name for case in cases],
        log="y",
    )
    for name, rounds in usual.items():
        for number, case in enumerate(cases):
            spread = _spread(rounds, case)
            if spread is not None:
                plot.add(name, number, spread)
    return plot


def _verdicts(
    values: Mapping[tuple[str, int], list[Figures]],
    usual: Mapping[str, list[Figures]],
    counts: list[int],
) -> list[Verdict]:
    verdicts = []
    for name in ("package", "package+backend"):
        if name in usual and BASE in usual:
            verdicts += [
                _ratio_verdict(name, usual, case, what)
                for case in (ANONYMOUS, SIGNED_IN, TOKEN)
                for what in ("django", "method")
            ]
            verdicts += [_flat_verdict(name, values, counts), _first_verdict(name, usual)]
    return verdicts


def _ratio_verdict(name: str, usual: Mapping[str, list[Figures]], case: Case, what: str) -> Verdict:
    # Beside the peer's decision that also ends at a replica: pinned, it skips its own work.
    ratio = _ratio(usual, name, case, ANONYMOUS, what)
    way = "asked through Django" if what == "django" else "the router's method alone"
    return Verdict(
        f"`{name}`, {case.name}, {way}: a decision after the first takes at most 0.5 of {BASE}'s",
        cell_text(ratio),
        ratio.median <= 0.5 if ratio else None,
    )


def _flat_verdict(
    name: str, values: Mapping[tuple[str, int], list[Figures]], counts: list[int]
) -> Verdict:
    few, many = (_spread(values[name, count], TOKEN) for count in (counts[0], counts[-1]))
    growth = many.median / few.median if few and many else 0.0
    return Verdict(
        f"`{name}`: flat in the number of replicas (within 1.2)",
        f"{text_of(growth)} from {counts[0]} to {counts[-1]}",
        growth <= 1.2,
    )


def _first_verdict(name: str, usual: Mapping[str, list[Figures]]) -> Verdict:
    spread = _spread(usual[name], FIRST_SIGNED_IN, "rest")
    return Verdict(
        f"`{name}`: the first decision without token takes under 10 us apart from the cache read",
        cell_text(spread and spread.scaled(1e-3)) + " us",
        spread.median < 10_000 if spread else None,
    )


BENCHMARK = Benchmark(
    "decision",
    measures="What it costs to decide where a read goes.",
    target="After the first decision at most half of django-multidb-router's time, whatever the "
    "number of replicas; the first one without token under 10 microseconds apart from the one "
    "cache read.",
    run=run,
)
