"""Runs the same workload for each way of routing and each lag."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Event

from rich.progress import Progress, TaskID

from testproject.cluster import Cluster
from testproject.cluster.gunicorn import Site
from testproject.demo.site import prepare, running_site
from testproject.demo.tally import Tally, total
from testproject.demo.visitor import PERSONAS, Visitor

ROUTINGS = ["random", "pin", "package"]
DEVICES = 2
WARM_UP_SECONDS = 1.0
TICK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Args:
        lags_ms: the lags of the replicas.
        seconds: how long each cell of the table takes.
        seed: what the visitors' lots are drawn from.
    """

    lags_ms: list[int]
    seconds: float
    users: int
    workers: int
    replicas: int
    seed: int

    def phases(self) -> int:
        """Return how often a set of visitors comes: for each cell, and once to warm up."""
        return len(ROUTINGS) * (len(self.lags_ms) + 1)


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of the table."""

    routing: str
    lag_ms: int
    tally: Tally


def run(plan: Plan, progress: Progress) -> list[Cell]:
    """Start the servers, run every cell, stop the servers."""
    task = progress.add_task("starting", total=None)
    with Cluster(replicas=plan.replicas, cache=True, databases=("app",)) as cluster:
        runner = _Runner(cluster, plan, progress, task)
        return [cell for routing in ROUTINGS for cell in runner.run_routing(routing)]


class _Runner:
    """Runs a plan on a cluster."""

    def __init__(self, cluster: Cluster, plan: Plan, progress: Progress, task: TaskID) -> None:
        self._cluster = cluster
        self._plan = plan
        self._progress = progress
        self._task = task
        # Each cell has users of its own, so that none meets what another cell left behind.
        names = [f"user{number}" for number in range(plan.users * plan.phases())]
        self._accounts = iter(prepare(cluster, names, sessions=DEVICES))

    def run_routing(self, routing: str) -> Iterator[Cell]:
        """Serve the site with one way of routing and visit it at each lag."""
        self._show(f"{routing}, warming up")
        self._set_lag(0)
        with running_site(self._cluster, routing, workers=self._plan.workers) as site:
            self._visit(site, lag_ms=0, seconds=WARM_UP_SECONDS)
            for lag_ms in self._plan.lags_ms:
                self._show(f"{routing}, lag {lag_ms} ms")
                self._set_lag(lag_ms)
                tally = self._visit(site, lag_ms=lag_ms, seconds=self._plan.seconds)
                yield Cell(routing, lag_ms, tally)

    def _show(self, description: str) -> None:
        seconds = len(ROUTINGS) * (WARM_UP_SECONDS + len(self._plan.lags_ms) * self._plan.seconds)
        self._progress.update(self._task, description=description, total=seconds)

    def _set_lag(self, lag_ms: int) -> None:
        for replica in self._cluster.replicas:
            replica.set_delay(lag_ms / 1000)

    def _visit(self, site: Site, *, lag_ms: int, seconds: float) -> Tally:
        """Let every visitor of a cell live for some seconds."""
        ended = Event()
        visitors = self._visitors(site, lag_ms / 1000, ended)
        with ThreadPoolExecutor(len(visitors)) as executor:
            try:
                lives = [executor.submit(visitor.live) for visitor in visitors]
                self._wait(site, lives, seconds)
            finally:
                ended.set()
            return total(life.result() for life in lives)

    def _visitors(self, site: Site, lag: float, ended: Event) -> list[Visitor]:
        accounts = list(islice(self._accounts, self._plan.users))
        notes = [note for account in accounts for note in account.notes]
        return [
            Visitor(
                site.url,
                account,
                others=notes,
                persona=PERSONAS[number % len(PERSONAS)],
                lag=lag,
                seed=f"{self._plan.seed} {number}",
                ended=ended,
            )
            for number, account in enumerate(accounts)
        ]

    def _wait(self, site: Site, lives: list[Future[Tally]], seconds: float) -> None:
        """Let the time pass, unless the site or a visitor ends before it is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not any(life.done() for life in lives):
            site.require_running()
            time.sleep(TICK_SECONDS)
            self._progress.advance(self._task, TICK_SECONDS)
