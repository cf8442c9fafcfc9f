"""One run: servers, proxies, site and visitors for a while, with faults; then the check."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from testproject.cluster import Cluster
from testproject.cluster.gunicorn import LONG_KEEP_ALIVE, serving
from testproject.cluster.programs import run_django
from tests.torture.arena import DATABASE, Arena, ArenaError, aliases_of
from tests.torture.bound import longest_read
from tests.torture.checker import Verdict, check, has_yielded
from tests.torture.control_reader import ControlReader
from tests.torture.faults import EVICTING, USUAL
from tests.torture.history import PRIMARY, History, Recorder
from tests.torture.proxy import ProxyProcess
from tests.torture.schedule import HOLD_SECONDS, Director, Step, schedule
from tests.torture.schema import FILL_SCRATCH, SCHEMA
from tests.torture.server import STATS_PAGE, environment, get_stats
from tests.torture.visitors import Habits, Tab, User

CLUSTER_SETTINGS = {
    "max_connections": "200",
    # Replay waits no longer for a read than this, then cancels it.
    "max_standby_streaming_delay": "100ms",
    "max_standby_archive_delay": "100ms",
}

MAX_LAG = 2.0
TOLERANCE = 0.75
"""Seconds beyond ``MAX_LAG``. The primary's samples are of its flush position, which may be behind
asynchronous commits by three times ``wal_writer_delay``, that is 0.6 s; and a sample takes a moment
on a machine whose processors are all busy."""

# A short life of tokens, so that many expire: that must be harmless.
ROUTER: Mapping[str, Any] = {"MAX_LAG": MAX_LAG, "TOKEN_TTL": 5.0}
STRICT: Mapping[str, Any] = {**ROUTER, "MONOTONIC_SHARE": 1}
"""Monotonic reads yield to nothing."""

READ_ONLY_EVERY = 4
WARM_UP_SECONDS = 1.0
LOOK_SECONDS = 1.0
SETTLING_SECONDS = 0.5
JOIN_SECONDS = 30.0
PROLONGED = 10.0
"""So many times as long a run lasts at most on a machine that is too slow for what it should see."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to do.

    Args:
        seconds: at least so long, and until every fault has occurred.
        seed: of the schedule and of the visitors' choices.
        faults: which; see ``FAULTS``. With ``cache_evict`` the cache is one that drops keys.
        control: name of a sabotage of the package, or nothing.
        router: values of ``REPLICA_ROUTER``.
        changes_lag: replicas that no fault has taken lag more or less all the time.
        delays: seconds by which each replica replays late from the start.
        targets: the only replicas that faults take, counted from 0; all where there are none.
        hold: least and most seconds that faults last.
        stops_early: end as soon as there is a violation.
        reads: go on until so many values were read, at most ``PROLONGED`` times as long.
        pooler: mode of a PgBouncer between the site and the proxy of each server; none where empty.
            So near the site, it is met by every fault of network and servers, while the site's
            connections to it live on.
        atomic_requests: the site has ``ATOMIC_REQUESTS`` on its primary.
        endpoint: what leads the site's one alias for reading to all replicas: "roundrobin" or "leastconn"
            of HAProxy, "session" or "transaction" of PgBouncer; each replica has its own where empty.
    """

    seconds: float = 60.0
    seed: int = 1
    workers: int = 3
    threads: int = 3
    replicas: int = 3
    users: int = 12
    faults: Sequence[str] = USUAL
    control: str = ""
    router: Mapping[str, Any] = field(default_factory=lambda: dict(ROUTER))
    habits: Habits = field(default_factory=Habits)
    changes_lag: bool = True
    delays: Sequence[float] = ()
    targets: Sequence[int] = ()
    hold: tuple[float, float] = HOLD_SECONDS
    stops_early: bool = False
    reads: int = 0
    pooler: str = ""
    atomic_requests: bool = False
    endpoint: str = ""
    max_staleness: float = MAX_LAG + TOLERANCE

    @property
    def may_yield(self) -> bool:
        """Whether what was seen, not written, may be given up."""
        return self.router.get("MONOTONIC_SHARE") != 1

    @property
    def longest_read(self) -> float:
        """Return the seconds that a single read may take."""
        return longest_read(self.router, self.replicas)

    def check(self, history: History) -> Verdict:
        """Check a history by what holds in this run."""
        return check(
            history,
            max_staleness=self.max_staleness,
            may_yield=self.may_yield,
            longest_read=self.longest_read,
        )


@dataclass(slots=True)
class Result:
    """What came of it."""

    plan: Plan
    history: History
    verdict: Verdict
    injected: Counter[str]
    steps: list[Step]
    seconds: float
    conflicts: int
    evicted: int
    stats: dict[int, dict[str, Any]]
    load: tuple[float, float, float]
    log: str
    failure: str = ""

    def gaps(self) -> list[str]:
        """Return what the run should have covered, and has not."""
        gaps = [
            f"the fault {name} did not occur"
            for name in self.plan.faults
            if not self.injected[name]
        ]
        if "conflict" in self.plan.faults and not self.conflicts:
            gaps.append("no statement was cancelled by a recovery conflict")
        if "cache_evict" in self.plan.faults and not self.evicted:
            gaps.append("the cache has dropped no key")
        if "lossy_failover" in self.plan.faults:
            if not self.verdict.lost:
                gaps.append("no failover lost an acknowledged write")
            if not self.verdict.recovered:
                gaps.append("no user was watched after a failover")
        if self.plan.may_yield and not any(map(has_yielded, self.history.ops)):
            gaps.append("no read has yielded")
        if not self.verdict.by_replica:
            gaps.append("no read was served by a replica")
        if not self.verdict.by_primary:
            gaps.append("no read was served by the primary")
        return gaps


def new_cluster(replicas: int) -> Cluster:
    """Return a cluster, not started, that has what a run needs."""
    return Cluster(replicas=replicas, databases=(DATABASE,), settings=CLUSTER_SETTINGS)


def run(plan: Plan, cluster: Cluster, tell: Callable[[str], None] = lambda line: None) -> Result:
    """Run the plan on a cluster that has been started, and check what happened.

    Raises:
        ArenaError: the cluster is not what the plan is for.
    """
    if len(cluster.replicas) != plan.replicas:
        raise ArenaError(
            f"The plan is for {plan.replicas} replicas, and the cluster has "
            f"{len(cluster.replicas)}. Start it by new_cluster({plan.replicas}), or heal() it."
        )
    recorder = Recorder()
    ended = threading.Event()
    with ExitStack() as stack:
        servers = aliases_of(cluster)
        proxy = stack.enter_context(
            ProxyProcess({alias: server.port for alias, server in servers.items()})
        )
        arena = Arena(cluster, proxy, recorder, ended, float(plan.router["TOKEN_TTL"]))
        names = [f"u{number}" for number in range(1, plan.users + 1)]
        databases = cluster.django_databases(DATABASE)
        databases["default"]["ATOMIC_REQUESTS"] = plan.atomic_requests
        prepare(cluster, databases, names)
        arena.entrances = cluster.lead_poolers(plan.pooler, proxy.ports)
        for alias, port in arena.entrances.items():
            databases[alias]["PORT"] = str(port)
            databases[alias]["DISABLE_SERVER_SIDE_CURSORS"] = plan.pooler == "transaction"
        if plan.endpoint:
            databases = _behind_endpoint(cluster, plan.endpoint, databases, proxy.ports)
            stack.callback(cluster.remove_endpoint)
        if cluster.cache is None:
            raise ArenaError("The cluster has no cache. Start it with cache=True.")
        cluster.cache.settings = EVICTING if "cache_evict" in plan.faults else {}
        cluster.cache.restart()  # empty
        environ = environment(databases, cluster.cache.url, plan.router, plan.control)
        site = stack.enter_context(
            serving(
                "tests.torture.wsgi",
                environ,
                workers=plan.workers,
                threads=plan.threads,
                keep_alive=LONG_KEEP_ALIVE,
                page=STATS_PAGE,
            )
        )
        arena.site = site
        arena.control_reader = stack.enter_context(
            ControlReader(arena.entrances[PRIMARY], DATABASE)
        )
        director = Director(arena, plan.seed, changes_lag=plan.changes_lag)
        users = [
            User(name, number, is_read_only=number % READ_ONLY_EVERY == 0)
            for number, name in enumerate(names, 1)
        ]
        for replica, delay in zip(cluster.replicas, plan.delays, strict=False):
            replica.set_delay(delay)
        steps: list[Step] = []
        failure = ""
        with _visitors(plan, users, site.port, arena):
            began = time.monotonic()
            recorder.began = began
            try:
                _direct(plan, director, arena, steps, tell)
            except Exception as error:
                failure = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - began
        stats = get_stats(site) if not failure else {}
        history = arena.history()
        return Result(
            plan,
            history,
            plan.check(history),
            director.injected,
            steps,
            seconds,
            arena.conflicts,
            arena.evicted,
            stats,
            os.getloadavg(),
            site.log_tail(),
            failure,
        )


def _behind_endpoint(
    cluster: Cluster,
    kind: str,
    databases: Mapping[str, dict[str, Any]],
    ports: Mapping[str, int],
) -> dict[str, dict[str, Any]]:
    """Put one alias in the place of those of all replicas, and return the databases of the site."""
    replicas = [alias for alias in databases if alias != PRIMARY]
    entrance = cluster.lead_endpoint(kind, {alias: ports[alias] for alias in replicas})
    endpoint = databases[replicas[0]] | {
        "PORT": str(entrance.port),
        "DISABLE_SERVER_SIDE_CURSORS": kind == "transaction",
        "CONN_MAX_AGE": 0,  # each request may meet another server
    }
    return {PRIMARY: databases[PRIMARY], "replicas": endpoint}


def prepare(cluster: Cluster, databases: Mapping[str, Mapping[str, Any]], names: list[str]) -> None:
    """Create tables and users on the primary, where there are none, and wait for the replicas."""
    assert cluster.cache is not None
    primary = cluster.primary
    tables = primary.execute("SELECT to_regclass('auth_user')", dbname=DATABASE)
    if tables == [(None,)]:
        run_django(environment(databases, cluster.cache.url, {}), "migrate", "--verbosity", "0")
        primary.execute(SCHEMA, dbname=DATABASE)
        primary.execute(FILL_SCRATCH, dbname=DATABASE)
    for number, name in enumerate(["", *names]):
        for table in ("torture_register", "torture_visit"):
            primary.execute(
                f"INSERT INTO {table} VALUES (%s, 0) ON CONFLICT DO NOTHING",
                [number],
                dbname=DATABASE,
            )
        if name:
            primary.execute(
                "INSERT INTO auth_user (id, username, password, is_superuser, first_name, "
                "last_name, email, is_staff, is_active, date_joined) "
                "VALUES (%s, %s, '!', false, '', '', '', false, true, now()) "
                "ON CONFLICT DO NOTHING",
                [number, name],
                dbname=DATABASE,
            )
    cluster.wait_caught_up()


@contextmanager
def _visitors(
    plan: Plan,
    users: Sequence[User],
    port: int,
    arena: Arena,
) -> Iterator[None]:
    """Have the users visit the site for the length of the block."""
    threads = []
    for user in users:
        first, second = user.devices
        for number, (device, is_first) in enumerate(
            [(first, True), (first, False), (second, True)]
        ):
            tab = Tab(
                user,
                device,
                is_first=is_first,
                port=port,
                gate=arena.gate,
                write_gate=arena.write_gate,
                recorder=arena.recorder,
                habits=plan.habits,
                random=Random(f"{plan.seed} {user.name} {number}"),
                ended=arena.ended,
                dawdling=arena.dawdling,
            )
            threads.append(
                threading.Thread(target=tab.run, name=f"{user.name}-{number}", daemon=True)
            )
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        arena.ended.set()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _direct(
    plan: Plan,
    director: Director,
    arena: Arena,
    steps: list[Step],
    tell: Callable[[str], None],
) -> None:
    """Perform the schedule until the time is over and all faults have occurred."""
    began = looked = time.monotonic()
    arena.ended.wait(WARM_UP_SECONDS)
    targets = plan.targets or range(plan.replicas)
    for steps_of_round in schedule(plan.seed, plan.faults, targets, hold=plan.hold):
        for step in steps_of_round:
            elapsed = time.monotonic() - began
            has_occurred = all(director.injected[name] for name in plan.faults)
            if elapsed >= plan.seconds and has_occurred and _has_read(plan, arena, elapsed):
                return
            names = " and ".join(name for name, _ in step.faults)
            tell(f"{elapsed:7.1f} s  {names or 'nothing'}")
            director.perform(step)
            steps.append(step)
            if plan.stops_early and time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if _is_violated(plan, arena):
                    return


def _is_violated(plan: Plan, arena: Arena) -> bool:
    """Tell whether there are violations, also when what is under way has been answered: that may excuse them."""
    if not plan.check(arena.history()).violations:
        return False
    arena.ended.wait(SETTLING_SECONDS)
    return bool(plan.check(arena.history()).violations)


def _has_read(plan: Plan, arena: Arena, elapsed: float) -> bool:
    """Tell whether enough was read, or the machine is too slow for that."""
    if not plan.reads or elapsed >= PROLONGED * plan.seconds:
        return True
    return check(arena.history()).checked_reads >= plan.reads
