"""What grows with users, replicas and processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.children import Child, alias_environment
from benchmarks.contenders import BY_NAME
from benchmarks.figures import Spread, cell_text
from benchmarks.harness import Benchmark, Options, Plot, Result, Table, Verdict
from django_replica_router.conf import Config
from testproject.cluster import Cluster, PostgresServer, ValkeyServer
from testproject.demo.site import prepare

SHARING = "SHARE_READINGS"
COMPUTED = 1000
"""Processes for which the load is computed from the largest number that was measured."""

_PACKAGE = BY_NAME["package"]
_DATABASE = "app"
_SETTLE_SECONDS = 3.0
_BATCH = 10_000

# Copies the records of one user for other users, whatever their type, under names as long.
_COPY_SCRIPT = """
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  for index, key in ipairs(KEYS) do
    local copy = string.sub(key, 1, -17) .. string.format('%d%015x', index, number)
    redis.call('COPY', key, copy)
    redis.call('PEXPIRE', copy, 3600000)
  end
end
return redis.call('DBSIZE')
"""


@dataclass(slots=True)
class _Found:
    """What was measured so far."""

    by_users: dict[int, dict[str, Spread]] = field(default_factory=dict)
    record_bytes: list[int] = field(default_factory=list)
    by_served: dict[int, dict[str, float]] = field(default_factory=dict)
    by_replicas: dict[int, dict[str, Spread]] = field(default_factory=dict)
    by_processes: dict[bool, dict[int, dict[str, Spread]]] = field(default_factory=dict)


def run(options: Options) -> Result:
    """Let users, replicas and processes become more, one at a time."""
    found = _Found()
    settings = {"max_connections": "600", "shared_preload_libraries": "pg_stat_statements"}
    with Cluster(replicas=2, settings=settings) as cluster:
        [account] = prepare(cluster, ["ann"], sessions=1)
        cluster.primary.execute("CREATE EXTENSION pg_stat_statements", dbname=_DATABASE)
        cluster.wait_caught_up()
        _grow_users(cluster, account.sessions[0], options, found)
        _serve_users(cluster, options, found)
        _grow_replicas(cluster, options, found)
        _grow_processes(cluster, options, found)
    return _result(found, options)


# Users.


def _grow_users(cluster: Cluster, session: str, options: Options, found: _Found) -> None:
    cache = _cache_of(cluster)
    with _child(cluster, 2) as child:
        child.call("benchmarks.deciding:prepare", case="other", session=None, writes=False)
        before = _keys(cache)
        child.call("benchmarks.deciding:prepare", case="ann", session=session, writes=True)
        records = sorted(_keys(cache) - before)
        found.record_bytes = [int(cache.command("MEMORY", "USAGE", key)) for key in records]
        empty, filled = _used_memory(cache), 0
        for users in options.pick([1_000, 10_000, 100_000, 1_000_000], [10, 100]):
            options.log(f"growth: {users:,} users")
            _copy(cache, records, filled, users)
            filled = users
            found.by_users[users] = _measure_users(child, session, options)
            added = (_used_memory(cache) - empty) / users
            found.by_users[users]["bytes"] = Spread.of([added])
    cache.flush()


def _measure_users(child: Child, session: str, options: Options) -> dict[str, Spread]:
    child.call("benchmarks.deciding:prepare", case="ann", session=session, writes=True)
    firsts, repeats = [], []
    for _ in range(options.rounds):
        firsts.append(
            child.call(
                "benchmarks.deciding:first_ns",
                case="ann",
                session=session,
                requests=options.pick(100, 5),
            )
        )
        repeats.append(
            child.call(
                "benchmarks.deciding:repeat_ns",
                case="ann",
                session=session,
                seconds=options.pick(0.05, 0.01),
                instance=False,
            )["django"]
        )
    return {
        "first": Spread.of(item["django"] / 1000 for item in firsts),
        "rest": Spread.of(item["rest"] / 1000 for item in firsts),
        "repeat": Spread.of(repeats),
    }


def _keys(cache: ValkeyServer) -> set[str]:
    return {key.decode() for key in cache.command("KEYS", "*")}


def _used_memory(cache: ValkeyServer) -> int:
    return int(cache.command("INFO", "memory")["used_memory"])


def _copy(cache: ValkeyServer, records: list[str], first: int, last: int) -> None:
    for start in range(first, last, _BATCH):
        stop = min(start + _BATCH, last) - 1
        cache.command("EVAL", _COPY_SCRIPT, len(records), *records, start, stop)


def _cache_of(cluster: Cluster) -> ValkeyServer:
    if cluster.cache is None:
        message = "The cluster has no cache."
        raise ValueError(message)
    return cluster.cache


# One process that serves many users.


def _serve_users(cluster: Cluster, options: Options, found: _Found) -> None:
    served = 0
    with _child(cluster, 2) as child:
        child.call("benchmarks.crowding:serve_users", first=0, last=1)
        time.sleep(_settle(options))
        for users in options.pick([100, 1_000, 10_000, 50_000], [10]):
            options.log(f"growth: a process that has served {users:,} users")
            found.by_served[users] = child.call(
                "benchmarks.crowding:serve_users", first=served, last=users
            )
            served = users


# Replicas and processes.


def _grow_replicas(cluster: Cluster, options: Options, found: _Found) -> None:
    for count in options.pick([1, 4, 16, 64], [2]):
        options.log(f"growth: {count} replicas")
        with _child(cluster, count) as child:
            child.call("benchmarks.crowding:keep_deciding", seconds=_settle(options))
            found.by_replicas[count] = {
                **_load(cluster, options),
                **{
                    name: Spread.of([float(value)])
                    for name, value in child.call("benchmarks.crowding:size").items()
                },
            }


def _grow_processes(cluster: Cluster, options: Options, found: _Found) -> None:
    for sharing in (False, True) if _can_share() else (False,):
        overrides = {"REPLICA_ROUTER": {SHARING: sharing}} if _can_share() else {}
        by_count = found.by_processes[sharing] = {}
        with _child(cluster, 2, overrides) as child:
            for count in options.pick([1, 10, 30, 100], [2]):
                options.log(f"growth: {count} processes{', sharing' if sharing else ''}")
                child.call("benchmarks.crowding:grow", count=count)
                time.sleep(_settle(options) + count / 50)
                by_count[count] = {
                    **_load(cluster, options),
                    "private": Spread.of([child.call("benchmarks.crowding:private_kb") / 1024]),
                }
            child.call("benchmarks.crowding:shrink")


def _can_share() -> bool:
    """Tell whether this version of the package has the setting."""
    return any(field.name == SHARING for field in fields(Config))


def _load(cluster: Cluster, options: Options) -> dict[str, Spread]:
    """Return what the servers do in a second, and how many connections they hold."""
    cache = _cache_of(cluster)
    seconds = options.pick(3.0, 0.5)
    found: dict[str, list[float]] = {"primary": [], "replicas": [], "cache": []}
    for _ in range(min(3, options.rounds)):
        before = _calls(cluster), _commands(cache)
        began = time.monotonic()
        time.sleep(seconds)
        after, took = (_calls(cluster), _commands(cache)), time.monotonic() - began
        calls = {name: after[0][name] - before[0][name] for name in after[0]}
        found["primary"].append(calls["primary"] / took)
        found["replicas"].append(
            sum(value for name, value in calls.items() if name != "primary") / took
        )
        found["cache"].append((after[1] - before[1]) / took)
    return {
        **{name: Spread.of(values) for name, values in found.items()},
        "connections": Spread.of([float(_connections(cluster))]),
    }


def _servers(cluster: Cluster) -> list[PostgresServer]:
    return [cluster.primary, *cluster.replicas]


def _calls(cluster: Cluster) -> dict[str, float]:
    """Return how many statements each server has run in the site's database, but not this one."""
    return {
        server.name: float(
            server.execute(
                "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements "
                "JOIN pg_database d ON d.oid = dbid "
                "WHERE datname = %s AND query NOT LIKE '%%pg_stat_%%'",
                [_DATABASE],
                dbname=_DATABASE,
            )[0][0]
        )
        for server in _servers(cluster)
    }


def _commands(cache: ValkeyServer) -> float:
    return float(cache.command("INFO", "stats")["total_commands_processed"])


def _connections(cluster: Cluster) -> int:
    return sum(
        int(
            server.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = %s AND pid <> pg_backend_pid()",
                [_DATABASE],
                dbname=_DATABASE,
            )[0][0]
        )
        for server in _servers(cluster)
    )


def _settle(options: Options) -> float:
    return options.pick(_SETTLE_SECONDS, 0.5)


@contextmanager
def _child(
    cluster: Cluster, replicas: int, overrides: Mapping[str, Any] | None = None
) -> Iterator[Child]:
    with Child(alias_environment(cluster, _PACKAGE, replicas, overrides)) as child:
        yield child


# The report.


def _result(found: _Found, options: Options) -> Result:
    return Result(
        [
            _users_table(found),
            _served_table(found),
            _replicas_table(found),
            _processes_table(found, options),
        ],
        [_users_plot(found), _processes_plot(found)],
        _verdicts(found),
        [_NOTE, _records_note(found), *_sharing_note(found)],
    )


def _users_table(found: _Found) -> Table:
    table = Table(
        "By users whose records are in the cache",
        [
            "contender",
            "users",
            "a later decision (ns)",
            "the first (microseconds)",
            "of it, outside the cache's client",
            "bytes a user",
        ],
        note="Bytes are what `used_memory` of the cache server has grown by, for each user.",
    )
    for users, figures in found.by_users.items():
        cells = [figures[name] for name in ("repeat", "first", "rest", "bytes")]
        table.add("package", f"{users:,}", *cells)
    return table


def _served_table(found: _Found) -> Table:
    table = Table(
        "One process that has served so many users",
        ["contender", "users", "microseconds a scope", "memory (MB)", "memory blocks", "threads"],
    )
    for users, figures in found.by_served.items():
        cells = [figures[name] for name in ("us", "rss_mb", "blocks", "threads")]
        table.add("package", f"{users:,}", *cells)
    return table


def _replicas_table(found: _Found) -> Table:
    table = Table(
        "One process, by replicas",
        [
            "contender",
            "replicas",
            "statements/s at the primary",
            "at replicas",
            "connections",
            "threads",
            "memory (MB)",
        ],
        note="Aliases share two servers. Nobody asks for anything: it is the monitor that looks.",
    )
    for count, figures in found.by_replicas.items():
        names = ("primary", "replicas", "connections", "threads", "rss_mb")
        table.add("package", str(count), *(figures[name] for name in names))
    return table


def _processes_table(found: _Found, options: Options) -> Table:
    table = Table(
        "Two replicas, by processes that each decide once a second",
        [
            "contender",
            "processes",
            "statements/s at the primary",
            "at replicas",
            "cache commands/s",
            "connections",
            "memory of its own (MB)",
        ],
    )
    names = ("primary", "replicas", "cache", "connections", "private")
    for sharing, by_count in found.by_processes.items():
        label = "package, sharing readings" if sharing else "package"
        for count, figures in by_count.items():
            table.add(label, str(count), *(figures[name] for name in names))
        if not sharing and not options.quick:
            largest = max(by_count)
            factor = COMPUTED / largest
            cells = [by_count[largest][name].scaled(factor).median for name in names[:-1]]
            table.add(label, f"{COMPUTED:,}, computed from {largest}", *cells, None)
    return table


def _users_plot(found: _Found) -> Plot:
    plot = Plot("users", "Cost of a decision", "users in the cache", "microseconds", log="xy")
    for users, figures in found.by_users.items():
        plot.add("the first of a request", users, figures["first"])
        plot.add("the first, outside the cache's client", users, figures["rest"])
        plot.add("a later one", users, figures["repeat"].scaled(1e-3))
    return plot


def _processes_plot(found: _Found) -> Plot:
    plot = Plot("processes", "Load of the monitors", "processes", "statements/s", log="xy")
    for sharing, by_count in found.by_processes.items():
        for count, figures in by_count.items():
            for name in ("primary", "replicas"):
                label = f"{name}{', sharing readings' if sharing else ''}"
                plot.add(label, count, figures[name])
    return plot


def _verdicts(found: _Found) -> list[Verdict]:
    few, many = found.by_users[min(found.by_users)], found.by_users[max(found.by_users)]
    growth = many["repeat"].median / few["repeat"].median
    per_user = sum(found.record_bytes)
    verdicts = [
        Verdict(
            f"decisions flat from {min(found.by_users):,} to {max(found.by_users):,} users "
            "(within 1.2)",
            cell_text(growth),
            growth <= 1.2,
        ),
        Verdict("at most 200 bytes per active user", f"{per_user} bytes", per_user <= 200),
    ]
    target = "with sharing, the monitors' load does not depend on the processes (within 1.5)"
    if True not in found.by_processes:
        return [*verdicts, Verdict(target, f"there is no {SHARING} yet", None)]
    shared = found.by_processes[True]
    loads = {n: s["primary"].median + s["replicas"].median for n, s in shared.items()}
    ratio = loads[max(loads)] / loads[min(loads)] if loads[min(loads)] else 0.0
    text = f"{cell_text(ratio)} from {min(loads)} to {max(loads)} processes"
    return [*verdicts, Verdict(target, text, ratio <= 1.5)]


_NOTE = (
    "Records of users are copies of those that one real write of a signed-in user has left, made "
    "inside the cache server under names as long. Processes are forked from one that has loaded "
    "the site; each starts the package's own monitor, and decides once a second. Statements are "
    "counted by pg_stat_statements."
)


def _records_note(found: _Found) -> str:
    sizes = " and ".join(map(str, found.record_bytes))
    return (
        f"A signed-in user's write leaves {len(found.record_bytes)} records, which take {sizes} "
        "bytes by MEMORY USAGE. The cache server's own tables, which grow by doubling, come on top."
    )


def _sharing_note(found: _Found) -> list[str]:
    if True in found.by_processes:
        return []
    return [f"The setting `{SHARING}` does not exist in this version, and is not measured."]


BENCHMARK = Benchmark(
    "growth",
    measures="What grows with users, replicas and processes.",
    target="Decisions flat; at most 200 bytes in the cache per active user; with sharing of "
    "readings, a load of the monitors that does not depend on the number of processes.",
    run=run,
)
