"""How much of the reading replicas take over on sites of several kinds, beside an oracle.

Forty users sign in, write, are sent on to a page that shows it, and read on. Each site runs by
itself in a process of its own: the whole of Django, without HTTP, with sessions and users as rows of
the database. The oracle keeps read your writes, knows where each standby stood, and never waits; see
`benchmarks/oracle.py`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import BY_NAME
from benchmarks.figures import Spread
from benchmarks.harness import Benchmark, Options, Result, Table, take_turns
from benchmarks.harness import Verdict as Target
from benchmarks.load.crowd import Habits, Log
from benchmarks.load.kinds import QUICK, SITES, Site
from benchmarks.load.members import FIRST, Members, create_members
from benchmarks.load.positions import Watcher
from benchmarks.load.rows import create_rows
from benchmarks.load.workers import Worker
from benchmarks.oracle import PRIMARY, Oracle, Promise, Track, Verdict
from testproject.cluster import Cluster
from testproject.demo.site import prepare

SETTINGS = {"max_connections": "300", "autovacuum": "off"}
USERS = 40
THREADS = 10
SECONDS = 40.0
WARM_UP_SECONDS = 2.0
LOOK_SECONDS = 0.004
OTHERS_SECONDS = 0.05
"""Seconds between two commits of others: what was seen on the primary is then more than replicas have."""


@dataclass(slots=True)
class Round:
    """What the users of a site met with in one turn, and what the oracle says of it."""

    log: Log
    verdict: Verdict
    seconds: float


Measured = Mapping[Site, Sequence[Round]]


class Runner:
    """Runs sites on a cluster, one at a time.

    Args:
        seconds: how long one turn takes, after warming up.
    """

    def __init__(
        self, cluster: Cluster, watcher: Watcher, seconds: float, options: Options
    ) -> None:
        self._cluster = cluster
        self._watcher = watcher
        self._seconds = seconds
        self._options = options
        self._first = FIRST

    def run(self, site: Site) -> Round:
        """Let the users of a site live for one turn; each turn has users of its own."""
        self._options.log(f"sites: {site.name}, lag {site.lag_text}")
        first, self._first = self._first, self._first + USERS
        habits = Habits(
            first, USERS, USERS, site.write_share, self._options.seed, site.clicking, 0.0
        )
        self._prepare(site)
        floors: dict[int, int] = {}
        with Worker(self._environment(site), threads=THREADS, crowd=Members) as worker:
            warm = self._options.pick(WARM_UP_SECONDS, 0.3) + 2 * site.lag
            self._live(worker, habits, warm, floors)
            return self._live(worker, habits, self._seconds, floors)

    def _prepare(self, site: Site) -> None:
        for replica in self._cluster.replicas:
            replica.set_delay(0)
        self._cluster.wait_caught_up()
        for replica in self._cluster.replicas:
            replica.set_delay(site.lag)
        if self._cluster.cache is not None:
            self._cluster.cache.flush()

    def _live(
        self, worker: Worker, habits: Habits, seconds: float, floors: dict[int, int]
    ) -> Round:
        worker.begin(habits, seconds)
        log = worker.result()
        tracks = self._watcher.tracks(min((event.moment for event in log.events), default=0.0))
        verdict = _oracle(tracks).judge(log.events, floors)
        log.events = []
        return Round(log, verdict, seconds)

    def _environment(self, site: Site) -> dict[str, str]:
        cache = self._cluster.cache
        environ = BY_NAME[site.contender].environment_for(
            self._databases(site),
            cache.url if cache else None,
            overrides={**site.settings, "REPLICA_ROUTER": {"DEBUG": True, **site.router}},
        )
        return {**environ, "DJANGO_SETTINGS_MODULE": "benchmarks.load.ordinary_settings"}

    def _databases(self, site: Site) -> dict[str, Any]:
        databases = self._cluster.django_databases()
        databases[PRIMARY] |= site.primary
        self._cluster.remove_endpoint()
        if site.entrance:
            ports = {replica.name: replica.port for replica in self._cluster.replicas}
            entrance = self._cluster.lead_endpoint(site.entrance, ports)
            alias, *others = ports
            for other in others:
                del databases[other]
            databases[alias] |= {
                "PORT": str(entrance.port),
                "DISABLE_SERVER_SIDE_CURSORS": site.entrance == "transaction",
            }
        return databases


def _oracle(tracks: Mapping[str, Track]) -> Oracle:
    replicas = {alias: track for alias, track in tracks.items() if alias != PRIMARY}
    return Oracle(tracks[PRIMARY], replicas, Promise.WRITTEN)


@contextmanager
def _others_writing(cluster: Cluster) -> Iterator[None]:
    """Have somebody who is no user of the site write again and again."""
    ended = threading.Event()

    def write() -> None:
        with cluster.primary.connect("app") as connection:
            while not ended.wait(OTHERS_SECONDS):
                connection.execute("UPDATE load_row SET version = version + 1 WHERE id = 0")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run(options: Options) -> Result:
    """Run each site in turn, so many times."""
    chosen = options.pick(SITES, QUICK)
    sites = [site for site in chosen if site.missing is None]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(replicas=2, cache=True, settings=SETTINGS))
        prepare(cluster, ["ann"])
        number = USERS * len(sites) * options.rounds
        create_members(cluster, number)
        create_rows(cluster, FIRST + number)
        watcher = stack.enter_context(
            Watcher(cluster, pause=LOOK_SECONDS, primary_pause=LOOK_SECONDS)
        )
        stack.enter_context(_others_writing(cluster))
        seconds = options.pick(SECONDS / options.rounds, 1.0)
        runner = Runner(cluster, watcher, seconds, options)
        measured = take_turns(sites, runner.run, rounds=options.rounds, seed=options.seed)
    return _result(measured, {site.name: site.missing for site in chosen if site.missing})


def _sum(rounds: Sequence[Round]) -> tuple[Log, Verdict]:
    log, verdict = Log(), Verdict()
    for each in rounds:
        log.add(each.log)
        verdict.add(each.verdict)
    return log, verdict


def _result(measured: Measured, left_out: dict[str, str]) -> Result:
    shares = Table(
        "SELECTs on replicas, and in the share of the oracle",
        [
            "contender",
            "site",
            "lag",
            "pages/s",
            "SELECTs",
            "on replicas, %",
            "oracle, %",
            "share of the oracle's",
            "by round",
            "stale: own writes",
            "stale: taken back",
            "log-outs",
            "errors",
        ],
        note="SELECTs of pages that are read. What is taken back is what the user has seen and not "
        "written. A share above 1 with stale reads or log-outs is no merit.",
    )
    missed = Table(
        "SELECTs on the primary that the oracle would have served, by the package's reason",
        ["contender", "site", "lag", "missed", "reasons"],
    )
    for site, rounds in measured.items():
        log, verdict = _sum(rounds)
        shares.add(site.contender, site.name, site.lag_text, *_cells(log, verdict, rounds))
        if site.contender != "random":
            reasons = _reasons(verdict.missed)
            missed.add(site.contender, site.name, site.lag_text, verdict.missed.total(), reasons)
    return Result([shares, missed], [], _targets(measured), [_NOTE], left_out)


def _cells(log: Log, verdict: Verdict, rounds: Sequence[Round]) -> list[Any]:
    reads = max(1, verdict.reads)
    by_round = [ratio for each in rounds if (ratio := each.verdict.ratio) is not None]
    return [
        len(log.seconds) / sum(each.seconds for each in rounds),
        verdict.reads,
        100 * verdict.by_contender / reads,
        100 * verdict.by_oracle / reads,
        verdict.ratio,
        Spread.of(by_round) if by_round else None,
        log.stale_own,
        log.stale_seen,
        log.log_outs,
        log.errors,
    ]


def _reasons(missed: Counter[str]) -> str:
    return ", ".join(f"{reason or 'none told'} {number}" for reason, number in missed.most_common())


def _targets(measured: Measured) -> list[Target]:
    logs = [
        each.log
        for site, rounds in measured.items()
        if site.contender == "package"
        for each in rounds
    ]
    counts = [
        sum(getattr(log, name) for log in logs) for name in ("stale_own", "log_outs", "errors")
    ]
    text = "no stale read of one's own write, no log-out, no error"
    targets = [Target(text, ", ".join(map(str, counts)), not any(counts))]
    for site, rounds in measured.items():
        _, verdict = _sum(rounds)
        share = verdict.by_contender / max(1, verdict.reads) if site.of_all else verdict.ratio
        if site.target is not None:
            whole = "all SELECTs" if site.of_all else "the oracle's"
            targets.append(
                Target(
                    f"{site.name}, lag {site.lag_text}: at least {site.target:g} of {whole}",
                    "-" if share is None else f"{share:.2f}",
                    None if share is None else share >= site.target,
                )
            )
    return targets


_NOTE = (
    f"{USERS} users on each site, each site by itself, on two standbys that delay each commit by the lag. "
    "A user clicks every 0.2 to 0.6 s; every 0.2 to 0.4 s where sessions are saved, every 0.2 s or 0.5 s "
    "where that is five clicks a second or a shop. A tenth of the requests writes, in the last two a "
    "twentieth; one write in five is a new login. Somebody else commits twenty times a second. A page "
    "reads session, user and three rows, in a shop fourteen. Two readers for the oracle: of the session, "
    "who must see what was last saved in it, and of everything else. The oracle never waits, so a share "
    "may exceed 1."
)

BENCHMARK = Benchmark(
    "sites",
    measures="The share of SELECTs on replicas on sites of several kinds, beside an oracle.",
    target="No stale read of one's own write, no log-out, no error; the shares of the first table below.",
    run=run,
)
