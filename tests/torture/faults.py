"""The faults: each a generator that breaks something, yields while it is broken, and mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from threading import Event, Thread

import psycopg

from testproject.cluster.processes import wait_for
from tests.torture.arena import DATABASE, Arena, ArenaError
from tests.torture.history import PRIMARY
from tests.torture.proxy import MODES
from tests.torture.schema import FILL_SCRATCH

LAGS = (0.0, 0.02, 0.1, 0.4, 1.0, 2.0)
CONFLICT_PAUSE = 0.05
COUNT_SECONDS = 1.5

LOCK_SECONDS = 5.0
"""So long the replay of a lock may take, while nobody reads the table anywhere."""

DDL_TIMES = 5

LASTING = 6.0
"""Seconds; more than ``longest_read`` of the usual settings."""

LULL_SECONDS = 2.0
"""So long the package may leave a server alone that it has met dead."""

LOSS_SECONDS = 0.5
"""So long users write what no replica gets."""

EVICTIONS = 5
EVICTED_BYTES = 500
"""Some five keys. Where most are dropped, the store is found to have been emptied, by other means."""

CACHE_MEMORY = str(1 << 30)
EVICTING = {"maxmemory": CACHE_MEMORY, "maxmemory-policy": "allkeys-random"}
"""Settings of a cache that drops keys to make room."""

Fault = Callable[[Arena, str, Random], Iterator[None]]


@dataclass(frozen=True, slots=True)
class Spec:
    """A fault, and what else may be broken at the same time.

    Args:
        run: breaks and mends.
        scope: "replica" takes one replica, "cluster" all servers, "cache" and "worker" those.
        least: seconds for which it lasts at least. What may hold a read up lasts for longer than any read
            may be held up, so that one which is shows.
    """

    run: Fault
    scope: str
    least: float = 0.0


# 1. One replica ----------------------------------------------------------------------------------


def lag(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Replay late."""
    arena.replicas[alias].set_delay(random.choice(LAGS[2:]))
    yield
    arena.replicas[alias].set_delay(0)


def pause(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Stop replaying, and go on answering."""
    arena.replicas[alias].pause()
    yield
    arena.replicas[alias].resume()


def cut(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Receive nothing from the primary, and go on answering."""
    arena.replicas[alias].cut()
    yield
    arena.replicas[alias].reconnect()


def kill(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Crash, and come back."""
    arena.replicas[alias].kill()
    yield
    arena.replicas[alias].start()


def suspend(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Hang: take connections and answer nothing."""
    arena.replicas[alias].suspend()
    yield
    arena.replicas[alias].resume_process()


def network(mode: str) -> Fault:
    """Return the fault of a broken network between the site and a replica."""

    def broken(arena: Arena, alias: str, random: Random) -> Iterator[None]:
        arena.proxy.set_mode(alias, mode)
        yield
        arena.proxy.set_mode(alias, "pass")

    return broken


def rebuild(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Come back from an older copy of itself, at first without a way to catch up."""
    replica = arena.replicas[alias]
    old = replica.data_directory.with_name(f"{replica.data_directory.name}-old")
    replica.kill()
    copy_directory(replica.data_directory, old)
    replica.start()
    yield
    # Nobody asks meanwhile: whoever meets the dead server goes elsewhere, and from then on is
    # known to have seen more than the old copy has.
    with arena.gate.closed():
        replica.kill()
        shutil.rmtree(replica.data_directory)
        old.rename(replica.data_directory)
        with (replica.data_directory / "postgresql.auto.conf").open("a") as file:
            file.write("primary_conninfo = ''\nrecovery_min_apply_delay = 0\n")
        replica.start()
        arena.ended.wait(LULL_SECONDS)
    yield
    replica.reconnect()


def copy_directory(directory: Path, target: Path) -> None:
    """Copy a data directory, which stays its owner's."""
    shutil.copytree(directory, target, symlinks=True)
    owner = directory.stat()
    for path in [target, *target.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)


def stray(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Be promoted by mistake, while the primary goes on."""
    replica = arena.replicas[alias]
    replica.set_delay(0)
    replica.promote()
    yield
    replica.rebuild(arena.primary)


def replayed_lock(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Replay the lock of a table, and not the commit that frees it."""
    replica = arena.replicas[alias]
    replica.set_delay(0)
    with arena.primary.connect(DATABASE) as connection:
        connection.execute("BEGIN")
        connection.execute("LOCK TABLE torture_register IN ACCESS EXCLUSIVE MODE")
        replica.wait_replayed(arena.primary.flush(), timeout=LOCK_SECONDS)
        replica.pause()
        connection.execute("COMMIT")
    yield
    replica.resume()


def ddl(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Change the tables while they are read, again and again."""
    for _ in range(DDL_TIMES):
        with suppress(psycopg.Error):
            arena.execute(
                "ALTER TABLE torture_register ADD COLUMN extra bigint",
                "ALTER TABLE torture_register DROP COLUMN extra",
            )
        yield


def conflict(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Have long reads of replicas meet vacuum, truncation and locks of the primary."""
    before = arena.count_conflicts()
    done = Event()
    worker = Thread(target=_make_conflicts, args=(arena, random, done), daemon=True)
    arena.dawdling.set()
    worker.start()
    yield
    yield
    done.set()
    worker.join()
    arena.dawdling.clear()
    # The server counts a cancelled statement when its process is next at rest.
    wait_for(lambda: arena.count_conflicts() > before, timeout=COUNT_SECONDS)
    arena.conflicts += max(0, arena.count_conflicts() - before)


def _make_conflicts(arena: Arena, random: Random, done: Event) -> None:
    while not done.wait(CONFLICT_PAUSE):
        with suppress(psycopg.Error):
            arena.execute("TRUNCATE torture_scratch", FILL_SCRATCH)
            arena.execute("VACUUM (INDEX_CLEANUP ON) torture_register")
            if random.random() < 0.3:
                arena.execute("BEGIN; LOCK TABLE torture_register; COMMIT")


# 2. The primary ------------------------------------------------------------------------------


def primary_network(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Break the network between the site and the primary."""
    mode = random.choice(MODES[1:])
    with arena.window("primary", f"network of the primary: {mode}"):
        arena.proxy.set_mode(PRIMARY, mode)
        yield
        arena.proxy.set_mode(PRIMARY, "pass")
        arena.wait_reachable(PRIMARY)


def primary_restart(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Crash the primary, and start it again.

    Nobody writes at that moment: of what is committed asynchronously, a crash may lose the last,
    by PostgreSQL's own contract.
    """
    with arena.write_gate.closed():
        arena.primary.flush()
        with arena.window("primary", "crash and restart"):
            arena.primary.kill()
            arena.primary.start()
            arena.wait_reachable(PRIMARY)
    yield


def failover(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Kill the primary and promote the most advanced replica; the others follow it.

    Replication is asynchronous, and a failover may lose what was acknowledged. Here it loses
    nothing: nobody writes, and the next primary has everything, when the old one is killed. What
    is tested is the change of timeline, and that positions of the old one mislead nobody.
    """
    arena.settle(arena.idle())
    with arena.write_gate.closed():
        arena.settle(arena.idle())
        for name in arena.idle():
            arena.replicas[name].cut()  # the package may write a record for those who wait
        chosen = max(arena.idle(), key=arena.received_lsn)
        old, heir = arena.primary, arena.replicas[chosen]
        with arena.window("primary", f"failover from {old.name} to {heir.name}"):
            old.kill()
            heir.promote()
            arena.primary = heir
            arena.lead(PRIMARY, heir)
            arena.wait_reachable(PRIMARY)
    # For a while the heir is reached by both aliases, as where nobody has told the site.
    for name in arena.idle():
        if name != chosen:
            arena.replicas[name].follow(heir)
    yield
    arena.replace(chosen, old)


def old_timeline(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Fail over, and leave one replica on the old timeline, ahead of where the new one begins."""
    if len(arena.idle()) < 2:
        raise ArenaError("A replica can be left behind only where there is another.")
    arena.settle(arena.idle())
    with arena.write_gate.closed():
        arena.settle(arena.idle())
        chosen = random.choice([name for name in arena.idle() if name != alias])
        old, heir, left = arena.primary, arena.replicas[chosen], arena.replicas[alias]
        others = [name for name in arena.idle() if name not in {chosen, alias}]
        for name in (*others, chosen):  # who follows the heir must not be ahead of it
            arena.replicas[name].cut()
        # Rows of nobody, so that nothing that was acknowledged is lost with the old timeline.
        arena.execute("TRUNCATE torture_scratch", *[FILL_SCRATCH, "TRUNCATE torture_scratch"] * 20)
        arena.execute(
            "INSERT INTO torture_scratch SELECT n, repeat(md5(n::text), 30)"
            " FROM generate_series(1, 4000) n"
        )
        left.wait_replayed(old.flush())
        with arena.window("primary", f"failover from {old.name} to {heir.name} before {left.name}"):
            old.kill()
            heir.promote()
            arena.primary = heir
            arena.lead(PRIMARY, heir)
            arena.wait_reachable(PRIMARY)
        arena.execute("TRUNCATE torture_scratch", FILL_SCRATCH)
    for name in others:
        arena.replicas[name].follow(heir)
    yield
    left.rebuild(heir)
    left.set_delay(0)
    arena.replace(chosen, old)


def lossy_failover(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Kill the primary while users write and all replicas are behind; promote the most advanced.

    What was acknowledged last is lost, as asynchronous replication allows. Tokens of the old
    timeline are ahead of the new one: they must neither let anybody see less than what has
    survived, nor hold anybody on the primary for longer than they live.
    """
    names = sorted(arena.idle())
    arena.settle(names)
    for name in random.sample(names, len(names) - 1):
        if random.random() < 0.5:
            arena.replicas[name].set_delay(random.choice(LAGS[2:5]))
        else:
            arena.replicas[name].cut()
    yield
    for name in names:
        arena.replicas[name].cut()
    arena.wait_for_write()
    arena.ended.wait(LOSS_SECONDS)
    chosen = max(names, key=arena.received_lsn)
    old, heir = arena.primary, arena.replicas[chosen]
    with arena.window("primary", f"failover with loss from {old.name} to {heir.name}"):
        old.kill()
        heir.promote()
        arena.fork(heir)
        arena.primary = heir
        arena.lead(PRIMARY, heir)
        arena.wait_reachable(PRIMARY)
    for name in names:
        if name != chosen:
            arena.replicas[name].follow(heir)
    yield
    arena.replace(chosen, old)
    arena.watch_recovery()


# 3. Cache and workers ----------------------------------------------------------------------------


def cache_flush(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Empty the cache."""
    if arena.cluster.cache is not None:
        arena.cluster.cache.flush()
    yield


def cache_kill(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Crash the cache; it comes back empty."""
    if arena.cluster.cache is not None:
        arena.cluster.cache.kill()
    yield
    if arena.cluster.cache is not None:
        arena.cluster.cache.start()


def cache_restore(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Crash the cache; it comes back with what it had a while ago."""
    cache = arena.cluster.cache
    if cache is not None:
        cache.command("SAVE")
    yield
    if cache is not None:
        cache.kill()
        cache.start()
        for file in cache.data_directory.glob("*.rdb"):
            file.unlink()  # else it would come back with that from every crash


def cache_suspend(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Hang the cache."""
    if arena.cluster.cache is not None:
        arena.cluster.cache.suspend()
    yield
    if arena.cluster.cache is not None:
        arena.cluster.cache.resume_process()


def cache_evict(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Have the cache drop some of its keys, as if another application needed room."""
    cache = arena.cluster.cache
    for _ in range(EVICTIONS if cache is not None else 0):
        assert cache is not None
        before = int(cache.command("INFO", "stats")["evicted_keys"])
        used = int(cache.command("INFO", "memory")["used_memory"])
        cache.command("CONFIG", "SET", "maxmemory", used - EVICTED_BYTES)
        cache.command("DBSIZE")  # with the next command it makes room, if not before
        cache.command("CONFIG", "SET", "maxmemory", CACHE_MEMORY)
        arena.evicted += int(cache.command("INFO", "stats")["evicted_keys"]) - before
        yield


def worker_kill(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Kill one worker process of the site."""
    if arena.site is not None:
        with arena.window("worker", "SIGKILL of a worker"):
            arena.site.kill_worker(random.randrange(100))
    yield


def worker_hup(arena: Arena, alias: str, random: Random) -> Iterator[None]:
    """Replace all worker processes, as a release does."""
    if arena.site is not None:
        with arena.window("worker", "SIGHUP of the site"):
            arena.site.replace_workers()
    yield


FAULTS: dict[str, Spec] = {
    "lag": Spec(lag, "replica"),
    "pause": Spec(pause, "replica"),
    "cut": Spec(cut, "replica"),
    "kill": Spec(kill, "replica"),
    "suspend": Spec(suspend, "replica", LASTING),
    "refuse": Spec(network("refuse"), "replica"),
    "blackhole": Spec(network("blackhole"), "replica", LASTING),
    "reset": Spec(network("reset"), "replica"),
    "rebuild": Spec(rebuild, "replica"),
    "stray": Spec(stray, "replica"),
    "conflict": Spec(conflict, "replica"),
    "replayed_lock": Spec(replayed_lock, "replica", LASTING),
    "ddl": Spec(ddl, "replica"),
    "primary_network": Spec(primary_network, "cluster"),
    "primary_restart": Spec(primary_restart, "cluster"),
    "failover": Spec(failover, "cluster"),
    "old_timeline": Spec(old_timeline, "cluster"),
    "lossy_failover": Spec(lossy_failover, "cluster"),
    "cache_flush": Spec(cache_flush, "cache"),
    "cache_kill": Spec(cache_kill, "cache"),
    "cache_restore": Spec(cache_restore, "cache"),
    "cache_suspend": Spec(cache_suspend, "cache", LASTING),
    "cache_evict": Spec(cache_evict, "cache"),
    "worker_kill": Spec(worker_kill, "worker"),
    "worker_hup": Spec(worker_hup, "worker"),
}

USUAL = tuple(name for name in FAULTS if name != "cache_evict")
"""All but that for which the cache must be one that drops keys: of such a one more is asked, which
might hide what is missing elsewhere."""
