"""From a commit to the first read of it that a replica serves to its author, over HTTP.

The author writes, and as soon as the answer is there asks for the row, again and again until a
replica serves it. The replication delay is measured beside it: from the commit to the moment at
which that replica has replayed it, as looks about every half millisecond tell.

No read can be served before it is asked for. So there are two figures: the whole time, and by how
much it is later than was possible, which is the later one of the two moments at which the replica
had the row and at which the author's first read arrived. The delay may be negative: a replica may
have a commit before the site is told that the primary has it.

From PostgreSQL 19 on a replica's server waits itself (``WAIT FOR LSN``). There the other way, by
looking again and again, takes its turns beside it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from benchmarks.figures import Spread, percentile
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.load.browsers import Http, Jar
from benchmarks.load.positions import Watcher
from benchmarks.load.rows import create_rows
from benchmarks.load.served import serving
from benchmarks.load.variants import DEFAULT, POLLING, WAITS, Variant, environment, plain
from benchmarks.oracle import PRIMARY
from testproject.cluster import Cluster

LAGS = (0.0, 0.005, 0.05, 0.5)
QUICK_LAGS = (0.0, 0.02)
PATIENCE = 10.0
TARGET_MS = 2.0
WAITING_VERSION = 190000
WAITING_TARGET_MS = 0.3


class Trial(NamedTuple):
    """What became of one write, in seconds.

    Args:
        delay: from the commit until the replica that served had replayed it.
        whole: from the commit until the statement of the first read on a replica.
        late: by how much that was later than possible.
        asked: reads until then, that one included.
    """

    delay: float
    whole: float
    late: float
    asked: int


class Author:
    """A user who writes and reads.

    Args:
        http: the site.
        user: the number of the user and of the row.
    """

    def __init__(self, http: Http, user: int) -> None:
        self._http = http
        self._user = user
        self._jar = Jar(user)
        self._written = 1

    def trial(self, watcher: Watcher) -> Trial | None:
        """Write, and read until a replica serves it; None where none does, or what it shows is old."""
        written = self._http.send(self._jar, "POST", f"/write/?row={self._user}")
        self._written += 1
        reads = [self._read()]
        until = written["committed"] + PATIENCE
        while reads[-1]["alias"] == PRIMARY and reads[-1]["ran"] < until:
            reads.append(self._read())
        read = reads[-1]
        if read["alias"] == PRIMARY or read["versions"][str(self._user)] < self._written:
            return None
        track = watcher.tracks(written["committed"])[read["alias"]]
        visible = track.reached(written["position"] + 1)
        possible = max(visible, reads[0]["asked"])
        return Trial(
            visible - written["committed"],
            read["ran"] - written["committed"],
            read["ran"] - possible,
            len(reads),
        )

    def _read(self) -> dict[str, Any]:
        return self._http.send(self._jar, "GET", f"/read/?rows={self._user}")


class Site(NamedTuple):
    """A contender that is being served."""

    http: Http
    first_user: int


@contextmanager
def sites(cluster: Cluster, variants: list[Variant], users: int) -> Iterator[dict[str, Site]]:
    """Serve the site with every contender."""
    with ExitStack() as stack:
        served = {}
        for number, variant in enumerate(variants):
            url = stack.enter_context(serving(environment(cluster, variant, number)))
            http = stack.enter_context(closing(Http(url)))
            served[variant.name] = Site(http, number * users)
        yield served


def run(options: Options) -> Result:
    """Measure every contender at every lag, in turns."""
    lags = options.pick(LAGS, QUICK_LAGS)
    trials = options.pick(12, 2)
    found: dict[tuple[str, float], list[list[Trial | None]]] = {}
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(replicas=2, cache=True))
        version = cluster.primary.version
        variants = _variants(options, version)
        create_rows(cluster, trials * len(variants))
        watcher = stack.enter_context(Watcher(cluster, pause=0.0003, primary_pause=0.1))
        served = stack.enter_context(sites(cluster, variants, trials))
        # Once for all lags: the authors know what they have written.
        turns = Turns(watcher, served, trials, options.seed)
        for lag in lags:
            options.log(f"freshness: lag {lag:g} s")
            for replica in cluster.replicas:
                replica.set_delay(lag)
            # A long lag takes its time.
            turns.few = min(trials, max(2, round(2 / (lag + 0.1))))
            for name in served:
                turns.take(name)  # to connect, and to know the lag
            values = take_turns(list(served), turns.take, rounds=options.rounds, seed=options.seed)
            found |= {(name, lag): rounds for name, rounds in values.items()}
    return _result(found, lags, version)


def _variants(options: Options, version: int) -> list[Variant]:
    both = [DEFAULT, POLLING] if version >= WAITING_VERSION else [DEFAULT]
    others = [variant for variant in WAITS if variant is not DEFAULT]
    return options.pick([*plain("random", "naive-lsn"), *others, *both], both)


class Turns:
    """Takes a contender's turn: so many trials, each by another author.

    Args:
        watcher: looks at where replicas stand.
        served: the contenders' sites.
        trials: how many authors there are at each.
        seed: what pauses are drawn from.
    """

    def __init__(
        self, watcher: Watcher, served: Mapping[str, Site], trials: int, seed: int
    ) -> None:
        self._watcher = watcher
        self.few = trials
        self._authors = {
            name: [Author(site.http, site.first_user + number) for number in range(trials)]
            for name, site in served.items()
        }
        self._random = random.Random(seed)

    def take(self, name: str) -> list[Trial | None]:
        """Return what became of a contender's writes."""
        found = []
        for author in self._authors[name][: self.few]:
            # Not in step with whatever looks at regular intervals.
            time.sleep(self._random.uniform(0.0, 0.03))
            found.append(author.trial(self._watcher))
        return found


def _result(
    found: Mapping[tuple[str, float], list[list[Trial | None]]],
    lags: Sequence[float],
    version: int,
) -> Result:
    table = Table(
        "From a commit to its author's first read on a replica, ms",
        [
            "contender",
            "lag",
            "replication delay",
            "commit to read",
            "later than possible",
            "p95 of that",
            "reads until then",
            "never, or old",
        ],
        note="Medians of the trials of a round, and their spread over rounds. Over HTTP: the first "
        "read cannot arrive before the answer to the write has. Without a lag, `random` shows what the "
        "same read takes where nothing is checked.",
    )
    plot = Plot("late", "How much later than possible", "lag, ms", "ms at the median")
    for (name, lag), rounds in found.items():
        known = [[trial for trial in turn if trial is not None] for turn in rounds]
        lost = sum(trial is None for turn in rounds for trial in turn)
        known = [turn for turn in known if turn]
        if not known:
            table.add(name, f"{lag * 1000:g} ms", *[None] * 5, lost)
            continue
        late = _spread(known, "late")
        table.add(
            name,
            f"{lag * 1000:g} ms",
            _spread(known, "delay"),
            _spread(known, "whole"),
            late,
            percentile([trial.late * 1000 for turn in known for trial in turn], 0.95),
            Spread.of(statistics.median(trial.asked for trial in turn) for turn in known),
            lost,
        )
        plot.add(name, lag * 1000, late)
    verdicts = _verdicts(found, lags, version)
    notes = []
    if version < WAITING_VERSION:
        notes.append(
            f"This was measured on PostgreSQL {version // 10000}: waiting by `WAIT FOR LSN` takes a server "
            f"of 19 or newer, which `REPLICA_ROUTER_POSTGRES_BIN` may name."
        )
    return Result(tables=[table], plots=[plot], verdicts=verdicts, notes=notes)


def _spread(rounds: list[list[Trial]], name: str) -> Spread:
    return Spread.of(
        statistics.median(getattr(trial, name) * 1000 for trial in turn) for turn in rounds
    )


def _verdicts(
    found: Mapping[tuple[str, float], list[list[Trial | None]]],
    lags: Sequence[float],
    version: int,
) -> list[Verdict]:
    target = WAITING_TARGET_MS if version >= WAITING_VERSION else TARGET_MS
    verdicts = []
    for lag in lags:
        trials = [trial for turn in found[DEFAULT.name, lag] for trial in turn if trial is not None]
        if not trials:
            continue
        late = 1000 * statistics.median(trial.late for trial in trials)
        verdicts.append(
            Verdict(
                f"at most {target:g} ms later than possible at the median, lag {lag * 1000:g} ms",
                f"{late:.2f} ms",
                late <= target,
            )
        )
    return verdicts


BENCHMARK = Benchmark(
    "freshness",
    measures="the time from a commit to its author's first read on a replica, over HTTP",
    target="the replication delay plus at most 2 ms at the median, 0.3 ms from PostgreSQL 19 on",
    run=run,
)
