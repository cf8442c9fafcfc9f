"""How much of the reading replicas take over, beside an oracle, and who is shown old data.

All contenders run at the same time on the same cluster, each in a process of its own, with users,
rows and a token store of its own; so each meets the same lag and the same machine. The processes
call the whole of Django with the contender's middleware and router, and every read and write
reaches a real server; only HTTP is left out, for there is one machine and there are many points. A
sample of the points is measured over HTTP, too.

The oracle is described in `benchmarks.oracle`. It judges each contender on what that contender's
users did; it knows where each server stood from looks about every millisecond.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from benchmarks.contenders import left_out
from benchmarks.harness import Benchmark, Options, Result
from benchmarks.load.commits import enable, ends_of_commits, located
from benchmarks.load.crowd import Habits, Log
from benchmarks.load.measured import JITTER, Measured, Point, Round, result_of
from benchmarks.load.positions import Watcher
from benchmarks.load.rows import create_rows
from benchmarks.load.served import serving
from benchmarks.load.variants import DEFAULT, WAITS, WRITTEN_ONLY, Variant, environment, plain
from benchmarks.load.workers import Worker
from benchmarks.oracle import PRIMARY, Oracle, Promise, Write
from testproject.cluster import Cluster

SETTINGS = {"max_connections": "400", "autovacuum": "off"}
ROWS_EACH = 16_000
VISITORS = 5
WARMING_USERS = 50
POINT_SECONDS = 10.0
JITTER_SECONDS = (0.0, 0.01, 0.05, 0.1, 0.2)
JITTER_PAUSE = 0.5
PEERS = ["random", "pin", "multidb-router", "replicated", "naive-lsn"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Args:
        rounds: how often each point is measured, one time directly after the other.
        seconds: how long a round takes.
        number: of the first contender; each has users, rows and a token store by its number.
    """

    lags: Sequence[float | str]
    write_shares: Sequence[float]
    populations: Sequence[int]
    variants: Sequence[Variant]
    rounds: int
    seconds: float
    seed: int = 1
    number: int = 0


FULL_LAGS = (0.0, 0.005, 0.05, 0.5, JITTER, 5.0)


HTTP_LAGS = (0.0, 0.05, 0.5)


def http_plan_of(options: Options) -> Plan:
    """Return which points to measure over HTTP."""
    plan = plan_of(options)
    lags = options.pick(HTTP_LAGS, (0.0,))
    return replace(
        plan,
        lags=lags,
        write_shares=[0.1],
        populations=[50],
        variants=[DEFAULT],
        number=len(plan.variants),
    )


def plan_of(options: Options) -> Plan:
    """Return what the options ask for."""
    if options.quick:
        # The lag is longer than a slow machine takes from a write to the read that follows it, and
        # most users let it pass before they write again: the time is enough for many of both.
        return Plan([0.1], [0.2], [50], [*plain("random"), DEFAULT, WRITTEN_ONLY], 1, 2.5)
    variants = [*plain(*PEERS), *WAITS, WRITTEN_ONLY]
    seconds = POINT_SECONDS / options.rounds
    return Plan(
        FULL_LAGS, [0.01, 0.1, 0.3], [50, 5000], variants, options.rounds, seconds, options.seed
    )


def measure(
    cluster: Cluster, watcher: Watcher, plan: Plan, options: Options, *, over_http: bool = False
) -> Measured:
    """Measure every point."""
    with ExitStack() as stack:
        workers = {}
        for number, variant in enumerate(plan.variants, plan.number):
            environ = environment(cluster, variant, number)
            url = stack.enter_context(serving(environ)) if over_http else None
            workers[variant] = stack.enter_context(Worker(environ, url=url))
        runner = Runner(cluster, watcher, workers, plan)
        runner.warm_up()
        for lag in plan.lags:
            with lagging(cluster, lag, plan.seed):
                for point in _points_of(plan, lag):
                    options.log(f"offload: {point}{', HTTP' if over_http else ''}")
                    runner.run(point)
        return runner.measured


def _points_of(plan: Plan, lag: float | str) -> list[Point]:
    return [Point(lag, share, users) for users in plan.populations for share in plan.write_shares]


@contextlib.contextmanager
def lagging(cluster: Cluster, lag: float | str, seed: int) -> Iterator[None]:
    """Have all replicas lag for the length of the block."""
    if isinstance(lag, str):
        with _jittering(cluster, seed):
            yield
        return
    for replica in cluster.replicas:
        replica.set_delay(lag)
    yield


@contextlib.contextmanager
def _jittering(cluster: Cluster, seed: int) -> Iterator[None]:
    """Change the lag of each replica again and again."""
    ended = threading.Event()
    draw = random.Random(seed)

    def change() -> None:
        while not ended.wait(JITTER_PAUSE):
            for replica in cluster.replicas:
                replica.set_delay(draw.choice(JITTER_SECONDS))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Runner:
    """Runs points on a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        watcher: Watcher,
        workers: Mapping[Variant, Worker],
        plan: Plan,
    ) -> None:
        self.measured = Measured()
        self._cluster = cluster
        self._watcher = watcher
        self._workers = workers
        self._plan = plan
        self._floors: dict[tuple[int, Promise], dict[int, int]] = {}

    def warm_up(self) -> None:
        """Let every process connect to everything and get to know the servers."""
        seconds = self._plan.seconds
        for number, worker in enumerate(self._workers.values(), self._plan.number):
            first = (number + 1) * ROWS_EACH - WARMING_USERS
            worker.begin(Habits(first, WARMING_USERS, VISITORS, 0.2), seconds)
        for worker in self._workers.values():
            worker.result()

    def run(self, point: Point) -> None:
        """Let all contenders live through a point at the same time, in so many rounds."""
        for _ in range(self._plan.rounds):
            crowds = {
                variant: self._habits(point, number)
                for number, variant in enumerate(self._workers, self._plan.number)
            }
            for variant, habits in crowds.items():
                self._workers[variant].begin(habits, self._plan.seconds)
            logs = {variant: self._workers[variant].result() for variant in crowds}
            self._judge(point, crowds, logs)

    def _habits(self, point: Point, number: int) -> Habits:
        plan = self._plan
        cases = [(u, s) for u in plan.populations for s in plan.write_shares]
        case = cases.index((point.users, point.write_share))
        before = sum(users for users, _ in cases[:case])
        first = number * ROWS_EACH + before
        return Habits(first, point.users, VISITORS, point.write_share, plan.seed)

    def _judge(
        self, point: Point, crowds: Mapping[Variant, Habits], logs: Mapping[Variant, Log]
    ) -> None:
        since = min((e.moment for log in logs.values() for e in log.events), default=0.0)
        tracks = self._watcher.tracks(since)
        replicas = {alias: track for alias, track in tracks.items() if alias != PRIMARY}
        for track in replicas.values():
            self.measured.pauses += track.pauses()
        writes = [e for log in logs.values() for e in log.events if isinstance(e, Write)]
        # What is known so far is the position before the commit, plus one.
        first = min((write.position - 1 for write in writes), default=None)
        ends = {} if first is None else ends_of_commits(self._cluster, first)
        for variant, log in logs.items():
            events = located(log.events, ends)
            verdicts = {
                promise: Oracle(tracks[PRIMARY], replicas, promise).judge(
                    events, self._floors.setdefault((crowds[variant].first, promise), {})
                )
                for promise in Promise
            }
            log.events = []  # judged: a long run would hold millions of them
            self.measured.rounds.setdefault((point, variant), []).append(Round(log, verdicts))


NOTES = [
    "All contenders at the same time on one cluster of a primary and two replicas, each in a process "
    "of its own with its own users, rows and token store. The whole of Django, without HTTP.",
    "Each read is judged by where replicas stood at the moment at which it came to the site, as far "
    "as looks about every millisecond tell; the oracle never waits. Two promises: read your writes, "
    "and with it monotonic reads. `benchmarks/oracle.py` describes both, and where they err.",
]


def run(options: Options) -> Result:
    """Measure all points in Django, and a few over HTTP."""
    plan, over_http = plan_of(options), http_plan_of(options)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(replicas=2, cache=True, settings=SETTINGS))
        create_rows(cluster, ROWS_EACH * (len(plan.variants) + 1))
        enable(cluster)
        watcher = stack.enter_context(Watcher(cluster))
        measured = measure(cluster, watcher, plan, options)
        sample = measure(cluster, watcher, over_http, options, over_http=True)
    return result_of(measured, sample, left_out(*PEERS), NOTES)


BENCHMARK = Benchmark(
    "offload",
    measures="the share of reads on replicas beside an oracle, and stale reads, by lag and writes",
    target="no stale read, and at least 0.99 of the oracle at every point",
    run=run,
)
