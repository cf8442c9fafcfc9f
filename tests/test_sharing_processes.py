"""Readings shared by real processes, through a real cache, about real servers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from django_replica_router.replicas.registry import stop_monitors
from testproject.cluster import Cluster
from testproject.cluster.postgres import PostgresServer
from testproject.cluster.programs import LineProgram
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.programs import environment

WORKER = """
import json, sys
import django
from django.conf import settings
settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "SHARE_READINGS": True, "INTERVAL": 0.5}
django.setup()
from django.contrib.auth.models import User
from django_replica_router import scope
from django_replica_router.replicas import registry
from testproject.notes.models import Note

def status():
    monitor = registry.find_monitor("default")
    sharer = registry._registry.sharers["default"]
    replicas = monitor.health.replicas()
    return {
        "leads": sharer.is_leading,
        "beat": sharer._beat.number,
        "rests": [alias for alias in ("default", *monitor.known.readings) if monitor.known.is_told(alias)],
        "states": {replica.alias: replica.state.name for replica in replicas},
        "ages": {replica.alias: min(1e9, replica.age) for replica in replicas},
        "lives": {alias: monitor.servers.life(alias) for alias in monitor.known.aliases},
    }

def read(user, note):
    with scope(user=User(pk=user)):
        found = Note.objects.get(pk=note)
        return [found.title, found._state.db]

def write(user, note, title):
    with scope(user=User(pk=user)):
        Note.objects.filter(pk=note).update(title=title)

for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


class Worker(LineProgram):
    """A process of the site, which does what it is told."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__([sys.executable, "-c", WORKER], environment(cluster))

    def do(self, *command: Any) -> Any:
        """Have it do something, and return what it answers."""
        return self.ask(command)

    @property
    def leads(self) -> bool:
        """It looks at the servers for all."""
        return bool(self.do("status")["leads"])

    @property
    def rests(self) -> set[str]:
        """The servers that it leaves to the look of another process."""
        return set(self.do("status")["rests"])

    def state(self, alias: str) -> str:
        """Return what it knows of a replica's health."""
        return str(self.do("status")["states"][alias])

    def age(self, alias: str) -> float:
        """Return how old it takes a replica's data to be at most."""
        return float(self.do("status")["ages"][alias])


ALL = {"default", "replica1", "replica2"}


def settled(workers: list[Worker]) -> bool:
    """Tell whether one process looks, and the others rest."""
    known = [worker.do("status") for worker in workers]
    is_one = sum(status["leads"] for status in known) == 1
    return is_one and all(set(status["rests"]) == ALL for status in known)


@pytest.fixture
def workers(cluster: Cluster, note: Note) -> Iterator[list[Worker]]:
    """Three processes, of which one looks at the servers; all that is made whole again afterwards."""
    stop_monitors()
    with ExitStack() as stack:
        stack.callback(cluster.heal)
        workers = [stack.enter_context(Worker(cluster)) for _ in range(3)]
        for worker in workers:
            worker.do("read", note.owner_id, note.pk)
        wait_until(lambda: settled(workers), "one process to lead and two to follow")
        yield workers
        for worker in workers:
            if worker.process.poll() is None:
                worker.end(15)


def leader_of(workers: list[Worker]) -> Worker:
    """Return the one that leads, as soon as there is one: who is held up may lose the lead."""
    leading: list[Worker] = []

    def is_one() -> bool:
        leading[:] = [worker for worker in workers if worker.leads]
        return len(leading) == 1

    wait_until(is_one, "one process to lead")
    return leading[0]


def last_asked(server: PostgresServer) -> dict[int, Any]:
    """Return the connections of monitors to a server, and when each was last used."""
    return dict(
        server.execute(
            "SELECT pid, state_change FROM pg_stat_activity "
            "WHERE application_name = 'django-replica-router'"
        )
    )


def test_one_process_asks_the_servers_and_all_use_the_replicas(
    workers: list[Worker], cluster: Cluster, note: Note
) -> None:
    """The others close their connections, and know the same."""
    servers = [cluster.primary, *cluster.replicas]

    def look_ten_times() -> list[tuple[dict[int, Any], dict[int, Any]]]:
        """Return for each server who had asked before ten looks of the leader, and after them."""
        before = [last_asked(server) for server in servers]
        leader = leader_of(workers)
        beat = leader.do("status")["beat"]
        wait_until(
            lambda: not leader.leads or leader.do("status")["beat"] > beat + 10,
            "ten looks of the leader",
        )
        return list(zip(before, [last_asked(server) for server in servers], strict=True))

    # Who has been held up for so long that the others have looked themselves takes the lead again,
    # and they close their connections again.
    wait_until(
        lambda: all(
            len(earlier) == 1 and earlier.keys() == later.keys() and earlier != later
            for earlier, later in look_ten_times()
        ),
        "one process to ask, and no other",
    )
    for worker in workers:
        wait_until(
            lambda worker=worker: worker.do("read", note.owner_id, note.pk)[1] != "default",  # type: ignore[misc]
            "a replica to serve",
        )


def test_followers_notice_lag(workers: list[Worker], cluster: Cluster, note: Note) -> None:
    """A replica that does not replay any more grows old for all."""
    cluster.replicas[0].pause()
    cluster.primary.execute("UPDATE notes_note SET body = 'more'", dbname="app")
    for worker in workers:
        wait_until(
            lambda worker=worker: worker.age("replica1") > 2.0 > worker.age("replica2"),  # type: ignore[misc]
            "one replica to lag",
        )
    wait_until(lambda: settled(workers), "one process to lead and two to follow")
    cluster.replicas[0].resume()
    for worker in workers:
        wait_until(lambda worker=worker: worker.age("replica1") < 2.0, "no replica to lag")  # type: ignore[misc]


def test_followers_notice_that_a_replica_is_gone_and_back(
    workers: list[Worker], cluster: Cluster, note: Note
) -> None:
    """Nobody believes in it while it is away, and each has looked itself when it is back."""
    lives = [worker.do("status")["lives"]["replica1"] for worker in workers]
    cluster.replicas[0].kill()
    for worker in workers:
        # By who waited for its answer for long before the connection broke, it is called silent.
        wait_until(
            lambda worker=worker: worker.state("replica1") in {"UNREACHABLE", "SILENT"},  # type: ignore[misc]
            "its loss",
        )
        assert worker.do("read", note.owner_id, note.pk)[0] == "first"
    cluster.replicas[0].start()
    for worker, life in zip(workers, lives, strict=True):
        wait_until(lambda worker=worker: worker.state("replica1") == "STREAMING", "its return")  # type: ignore[misc]
        assert worker.do("status")["lives"]["replica1"] != life
    wait_until(lambda: settled(workers), "the others to rest again")


def test_another_takes_over_from_one_that_was_killed(
    workers: list[Worker], cluster: Cluster, note: Note
) -> None:
    """Its beat runs out; until there is another one, the others look themselves."""
    leader = leader_of(workers)
    leader.kill()
    rest = [worker for worker in workers if worker is not leader]
    wait_until(lambda: settled(rest), "another leader")
    cluster.replicas[0].pause()
    cluster.primary.execute("UPDATE notes_note SET body = 'more'", dbname="app")
    for worker in rest:
        wait_until(
            lambda worker=worker: worker.age("replica1") > 2.0 > worker.age("replica2"),  # type: ignore[misc]
            "one replica to lag",
        )


def test_another_takes_over_from_one_that_is_held_up(workers: list[Worker]) -> None:
    """When it goes on it follows."""
    leader = leader_of(workers)
    rest = [worker for worker in workers if worker is not leader]
    os.kill(leader.process.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: settled(rest), "another leader")
    finally:
        os.kill(leader.process.pid, signal.SIGCONT)
    wait_until(lambda: settled(workers), "two to follow")


def test_without_the_cache_each_looks_itself(workers: list[Worker], cluster: Cluster) -> None:
    """Nobody goes blind with the cache, and one leads again when it is back."""
    assert cluster.cache is not None
    cluster.cache.kill()
    for worker in workers:
        wait_until(lambda worker=worker: worker.rests == set(), "nobody to rest")  # type: ignore[misc]
    began = [last_asked(server) for server in cluster.replicas]
    wait_until(
        lambda: all(
            sum(earlier.get(pid) != at for pid, at in last_asked(server).items()) == 3
            for server, earlier in zip(cluster.replicas, began, strict=True)
        ),
        "all three to look",
    )
    for worker in workers:
        wait_until(
            lambda worker=worker: (
                worker.state("replica1") == "STREAMING" and worker.age("replica1") < 2.0
            ),  # type: ignore[misc]
            "a fresh reading",
        )
    cluster.cache.start()
    wait_until(lambda: settled(workers), "one to lead again")


@pytest.mark.parametrize("delay", [0.0, 0.3])
def test_own_writes_are_seen_in_every_process(
    workers: list[Worker], cluster: Cluster, note: Note, delay: float
) -> None:
    """Written in one process, read at once in the two others, from wherever it may be read."""
    for replica in cluster.replicas:
        replica.set_delay(delay)
    served = set()
    for number in range(60):
        workers[number % 3].do("write", note.owner_id, note.pk, f"title {number}")
        for other in (1, 2):
            reader = workers[(number + other) % 3]
            title, alias = reader.do("read", note.owner_id, note.pk)
            assert title == f"title {number}"
            served.add(alias)
    for worker in workers:
        wait_until(
            lambda worker=worker: worker.do("read", note.owner_id, note.pk)[1] != "default",  # type: ignore[misc]
            "a replica to serve",
        )
    assert delay or served != {"default"}


def test_who_ends_makes_room(workers: list[Worker]) -> None:
    """A leader that is stopped in good order takes its beat away."""
    leader = leader_of(workers)
    leader.end(15)
    rest = [worker for worker in workers if worker is not leader]
    wait_until(lambda: settled(rest), "another leader")
