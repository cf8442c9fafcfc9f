"""How many functions are called to serve a request: a figure of its cost that no other process disturbs.

The pages are those of ``costing``, and so are the contenders. A request whose first decision had to
wait for a replica calls more, so the median of several counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks.children import Child
from benchmarks.contenders import BY_NAME
from benchmarks.costing import CASES, CONTENDERS
from benchmarks.harness import Benchmark, Options, Result, Table, Verdict
from benchmarks.request import BASE, Page
from testproject.cluster import Cluster
from testproject.demo.site import prepare

REQUESTS = 15
_SHOWN = 12

TARGETS = {Page(5): 175, Page(5, signed_in=True): 295}
"""Half of what the package called of its own functions before its folders were made: 350 and 590."""

Counts = dict[tuple[Page, str], list[dict[str, Any]]]
"""What ``count_calls`` has returned, by page and contender."""


def run(options: Options) -> Result:
    """Have every contender serve every page."""
    pages = [case.page for case in options.pick(CASES, CASES[3:4])]
    contenders = options.pick(CONTENDERS, CONTENDERS[:2])
    requests = options.pick(REQUESTS, 3)
    counts: Counts = {}
    with Cluster(replicas=2, settings={"max_connections": "400"}) as cluster, ExitStack() as stack:
        [account] = prepare(cluster, ["ann"], sessions=1)
        for name in contenders:
            child = stack.enter_context(Child(BY_NAME[name].environment(cluster)))
            for page in pages:
                options.log(f"calls: {name}, {page.name}")
                request = {
                    "path": page.path,
                    "session": account.sessions[0] if page.signed_in else None,
                }
                child.call("benchmarks.timing:warm_up", **request)
                function = "benchmarks.counting:count_calls"
                counts[page, name] = child.call(function, **request, requests=requests)
    return result_of(counts)


def result_of(counts: Counts) -> Result:
    """Return what is to be reported."""
    table = Table(
        "Calls of functions for a request",
        ["contender", "page", "of the router's own", "all", f"more than {BASE}"],
        note="`all` has Django's, the drivers' and those of functions written in C.",
    )
    verdicts = []
    for (page, name), requests in counts.items():
        own = median(sum(request["own"].values()) for request in requests)
        every = median(request["all"] for request in requests)
        added = None if name == BASE else every - median(r["all"] for r in counts[page, BASE])
        table.add(name, page.name, own, every, added)
        if name == "package" and page in TARGETS:
            target = f"`{name}`, {page.name}: at most {TARGETS[page]} of its own functions"
            verdicts.append(Verdict(target, f"{own:g}", own <= TARGETS[page]))
    return Result([table, _by_folder(counts)], verdicts=verdicts, notes=_notes(counts))


def _by_folder(counts: Counts) -> Table:
    pages = list(dict.fromkeys(page for page, _ in counts))
    table = Table(
        "Calls of the package's own functions", ["contender", "folder", *_names_of(pages)]
    )
    for name in dict.fromkeys(name for _, name in counts if name != BASE):
        found = [_typical(counts[page, name]) for page in pages]
        sums: dict[str, list[int]] = {}
        for number, own in enumerate(found):
            for function, times in own.items():
                row = sums.setdefault(_folder_of(function), [0] * len(pages))
                row[number] += times
        for folder, row in sorted(sums.items()):
            table.add(name, folder, *row)
    return table


def _names_of(pages: Sequence[Page]) -> list[str]:
    return [page.name for page in pages]


def _folder_of(function: str) -> str:
    """Return the folder, or the module that is in none, that a function is in."""
    parts = function.partition(":")[0].split("/")
    return parts[1] + "/" if len(parts) > 2 else parts[1]


def _typical(requests: Sequence[Mapping[str, Any]]) -> Mapping[str, int]:
    """Return how often which function was called in the request in the middle."""
    in_order = sorted((request["own"] for request in requests), key=lambda own: sum(own.values()))
    found: Mapping[str, int] = in_order[len(in_order) // 2]
    return found


def _notes(counts: Counts) -> list[str]:
    """Return which functions a contender calls most for the last page."""
    last = {name: requests for (_, name), requests in counts.items() if name != BASE}
    return [
        f"Most called of `{name}` on the last page: {_most_called(_typical(requests))}."
        for name, requests in last.items()
    ]


def _most_called(own: Mapping[str, int]) -> str:
    most = sorted(own.items(), key=lambda item: -item[1])[:_SHOWN]
    return ", ".join(f"`{function}` {times}" for function, times in most)


BENCHMARK = Benchmark(
    "calls",
    measures="How many functions are called for a request, beside a random router.",
    target="Half of what it was, on a page of five queries; no time, so a busy machine does not change it.",
    run=run,
)
