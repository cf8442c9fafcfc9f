"""How often a request goes to each server, by the servers' own counts."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.children import Child
from benchmarks.contenders import Contender, left_out, present
from benchmarks.figures import Spread, cell_text
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict, take_turns
from benchmarks.wire import MONITOR, CountingProxy
from testproject.cluster import Cluster
from testproject.demo.site import prepare

BASE = "none"
CONTENDERS = (
    "none",
    "random",
    "multidb-router",
    "replicated",
    "naive-lsn",
    "package",
    "package+backend",
)

SCENARIOS = {
    "read, anonymous": ["get /bench/5/"],
    "read, signed in": ["get /bench/mine/5/"],
    "write": ["post /bench/write/"],
    "write in a transaction": ["post /bench/write/atomic/"],
    "write, then read": ["post /bench/write/", "get /bench/mine/5/"],
    "read, signed in, new connections": ["close", "get /bench/mine/5/"],
}
"""What is asked for, by the name that the tables use."""

DELAY = 0.01
"""Seconds for a round trip to a server, where a second look tells their number by the time taken."""

_SITE = re.compile(r'"(notes_|django_session|auth_user)')
_OBSERVER = "pg_stat_statements"
_DATABASE = "app"

Figures = dict[str, float]


def run(options: Options) -> Result:
    """Walk through every scenario with every contender, alone on the servers."""
    contenders = present(*options.pick(CONTENDERS, (BASE, "package", "package+backend")))
    times = options.pick(100, 5)
    measured: dict[str, dict[str, list[Figures]]] = {}
    settings = {"shared_preload_libraries": "pg_stat_statements", "track_io_timing": "off"}
    with Cluster(replicas=2, settings=settings) as cluster:
        [account] = prepare(cluster, ["ann"], sessions=1)
        cluster.primary.execute("CREATE EXTENSION pg_stat_statements", dbname=_DATABASE)
        cluster.wait_caught_up()

        def measure(contender: Contender) -> dict[str, Figures]:
            options.log(f"roundtrips: {contender.name}")
            return _Walk(cluster, contender, account.sessions[0], times).run()

        for contender, rounds in take_turns(
            contenders, measure, rounds=min(2, options.rounds), seed=options.seed
        ).items():
            measured[contender.name] = {
                scenario: [figures[scenario] for figures in rounds] for scenario in rounds[0]
            }
    return _result(measured)


class _Walk:
    """One contender's turn: a process of its own, behind proxies that count."""

    def __init__(self, cluster: Cluster, contender: Contender, session: str, times: int) -> None:
        self._cluster = cluster
        self._contender = contender
        self._session = session
        self._times = times

    def run(self) -> dict[str, Figures]:
        """Return the figures of each scenario, each for one pass through its steps."""
        with ExitStack() as stack:
            proxies = {
                server.name: stack.enter_context(CountingProxy(server.host, server.port))
                for server in (self._cluster.primary, *self._cluster.replicas)
            }
            child = stack.enter_context(Child(self._environment(proxies)))
            child.call("benchmarks.walking:warm_up", scenarios=SCENARIOS, session=self._session)
            return {scenario: self._walk(child, proxies, scenario) for scenario in SCENARIOS}

    def _environment(self, proxies: Mapping[str, CountingProxy]) -> dict[str, str]:
        databases = self._cluster.django_databases()
        for alias, database in databases.items():
            name = "primary" if alias == "default" else alias
            database |= {
                "ENGINE": self._contender.engine,
                "PORT": str(proxies[name].port),
                "OPTIONS": {"sslmode": "disable", "gssencmode": "disable"},
            }
        cache = self._cluster.cache
        return {
            **self._contender.environment_for(databases, cache.url if cache else None),
            "BENCHMARKS_PROBE": "1",
        }

    def _walk(
        self, child: Child, proxies: Mapping[str, CountingProxy], scenario: str
    ) -> dict[str, float]:
        def walk(times: int) -> tuple[Any, float]:
            began = time.monotonic()
            found = child.call(
                "benchmarks.walking:walk",
                scenario=scenario,
                steps=SCENARIOS[scenario],
                session=self._session,
                times=times,
            )
            return found, time.monotonic() - began

        walk(1)  # opens what it needs
        self._reset()
        before = {name: proxy.round_trips() for name, proxy in proxies.items()}
        found, seconds = walk(self._times)
        trips = {name: proxy.round_trips() - before[name] for name, proxy in proxies.items()}
        figures = self._per_pass(trips, found, self._statements())
        monitor = sum(counts[MONITOR] for counts in trips.values())
        for proxy in proxies.values():
            proxy.delay = DELAY
        slow_times = max(self._times // 5, 2)
        slow_seconds = walk(slow_times)[1]
        for proxy in proxies.values():
            proxy.delay = 0.0
        by_time = (slow_seconds / slow_times - seconds / self._times) / DELAY
        return {**figures, "monitor": monitor / seconds, "by_time": by_time}

    def _reset(self) -> None:
        for server in (self._cluster.primary, *self._cluster.replicas):
            server.execute("SELECT pg_stat_statements_reset()", dbname=_DATABASE)
        if self._cluster.cache:
            self._cluster.cache.command("CONFIG", "RESETSTAT")

    def _statements(self) -> dict[str, Counter[bool]]:
        """Return how many statements each server has run, by whether they are the site's own."""
        found: dict[str, Counter[bool]] = {}
        for server in (self._cluster.primary, *self._cluster.replicas):
            rows = server.execute(
                "SELECT query, calls FROM pg_stat_statements JOIN pg_database d ON d.oid = dbid "
                "WHERE datname = %s",
                [_DATABASE],
                dbname=_DATABASE,
            )
            counts: Counter[bool] = Counter()
            for query, calls in rows:
                if _OBSERVER not in query:
                    counts[_SITE.search(query) is not None] += calls
            found[server.name] = counts
        return found

    def _per_pass(
        self,
        trips: Mapping[str, Counter[str]],
        found: Mapping[str, Any],
        statements: Mapping[str, Counter[bool]],
    ) -> Figures:
        replicas = [replica.name for replica in self._cluster.replicas]

        def on(names: Sequence[str], count: Mapping[str, Counter[Any]], key: Any) -> float:
            return sum(count[name][key] for name in names) / self._times

        return {
            "primary": on(["primary"], trips, ""),
            "replicas": on(replicas, trips, ""),
            "cache": found["cache"] / self._times,
            "site_primary": on(["primary"], statements, True),
            "site_replicas": on(replicas, statements, True),
            "own_primary": on(["primary"], statements, False),
            "own_replicas": on(replicas, statements, False),
            "cache_server": self._cache_commands() / self._times,
        }

    def _cache_commands(self) -> float:
        """Return the commands that the cache server counts, those inside scripts among them."""
        if self._cluster.cache is None:
            return 0.0
        stats = self._cluster.cache.command("INFO", "commandstats")
        text = stats.decode() if isinstance(stats, bytes) else str(stats)
        known = re.findall(r"cmdstat_([\w|]+)['\"]?: ?.*?calls['\"]?[=:] ?(\d+)", text)
        skipped = {"info", "client|setinfo", "client|setname", "hello", "config|resetstat"}
        return float(sum(int(calls) for name, calls in known if name not in skipped))


def _spread(rounds: Sequence[Figures], what: str) -> Spread:
    return Spread.of(figures[what] for figures in rounds)


def _result(measured: Mapping[str, Mapping[str, list[Figures]]]) -> Result:
    trips = Table(
        "Round trips of a request",
        [
            "contender",
            "scenario",
            "to the primary",
            "to replicas",
            "to the cache",
            "in all",
            "to PostgreSQL, by time",
        ],
        note="Counted on the way, on the connections of the requests: the site's own statements "
        "are among them. `write, then read` is two requests. By time is how much longer it takes "
        f"where each round trip to PostgreSQL takes {1000 * DELAY:.0f} ms more, in those. Of a new "
        "connection its first message and what Django sends to prepare it count, too.",
    )
    statements = Table(
        "Statements of a request, by pg_stat_statements, and commands, by INFO commandstats",
        [
            "contender",
            "scenario",
            "primary: the site's",
            "primary: others",
            "replicas: the site's",
            "replicas: others",
            "cache",
            "monitor, round trips/s",
        ],
        note="Others are BEGIN and COMMIT, and what routing adds: also the package's monitor, "
        "whose looks do not depend on the number of requests. The cache counts commands inside "
        "scripts, too.",
    )
    plot = Plot("trips", "Round trips of a request, to all servers", "", "round trips", kind="bar")
    plot.ticks = list(SCENARIOS)
    for number, scenario in enumerate(SCENARIOS):
        for name, scenarios in measured.items():
            rounds = scenarios[scenario]
            total = Spread.of(sum(figures[what] for what in _TRIPS) for figures in rounds)
            counts = [_spread(rounds, what) for what in _TRIPS]
            trips.add(name, scenario, *counts, total, _spread(rounds, "by_time"))
            statements.add(name, scenario, *(_spread(rounds, what) for what in _STATEMENTS))
            plot.add(name, number, total)
    return Result([trips, statements], [plot], _verdicts(measured), [_NOTE], left_out(*CONTENDERS))


_READS = ("read, anonymous", "read, signed in", "read, signed in, new connections")
_TRIPS = ("primary", "replicas", "cache")
_STATEMENTS = (
    "site_primary",
    "own_primary",
    "site_replicas",
    "own_replicas",
    "cache_server",
    "monitor",
)
_NOTE = (
    "One process for each contender, alone on the servers. A proxy before each PostgreSQL server "
    "counts how often a client speaks after the server has, and tells the monitor's connections by "
    "their `application_name`: so what is sent at once is one round trip. Round trips "
    "to the cache are the commands that redis-py sends."
)


def _verdicts(measured: Mapping[str, Mapping[str, list[Figures]]]) -> list[Verdict]:
    verdicts = []
    for name, allowed in (("package", 1.0), ("package+backend", 0.0)):
        if name not in measured:
            continue
        mine, base = measured[name], measured[BASE]
        for scenario in ("read, anonymous", "read, signed in"):
            cache = _spread(mine[scenario], "cache")
            verdicts.append(
                Verdict(
                    f"`{name}`, {scenario}: at most one cache read",
                    cell_text(cache),
                    cache.median <= 1.0,
                )
            )
        for scenario in _READS:
            extra = _extra(mine[scenario], base[scenario], ("primary", "replicas"))
            verdicts.append(
                Verdict(
                    f"`{name}`, {scenario}: no round trip of its own to PostgreSQL",
                    cell_text(extra),
                    extra.median <= 0.05,
                )
            )
        for scenario in ("write", "write in a transaction"):
            extra = _extra(mine[scenario], base[scenario], ("primary",))
            cache = _spread(mine[scenario], "cache")
            verdicts += [
                Verdict(
                    f"`{name}`, {scenario}: {allowed:.0f} extra round trips to the primary",
                    cell_text(extra),
                    extra.median <= allowed + 0.05,
                ),
                Verdict(
                    f"`{name}`, {scenario}: one cache write, in all at most two commands",
                    cell_text(cache),
                    cache.median <= 2.0,
                ),
            ]
    return verdicts


def _extra(mine: Sequence[Figures], base: Sequence[Figures], servers: Sequence[str]) -> Spread:
    """Return the round trips beyond those of a site without a router."""
    # Without a router all of them go to the primary, so what is read elsewhere is not extra.
    usual = _spread(base, "primary").median
    return Spread.of(sum(figures[name] for name in servers) - usual for figures in mine)


BENCHMARK = Benchmark(
    "roundtrips",
    measures="How often a request goes to the primary, to the replicas and to the cache.",
    target="A read: at most one cache read, and no statement of the package's own, amortised. A "
    "write: no extra round trip to the primary with the package's backend, one without it; one "
    "cache write.",
    run=run,
)
