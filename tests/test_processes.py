"""The package in real server processes: one monitor each, after a fork, too, and none that lingers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection

from django_replica_router import scope
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from testproject.cluster import Cluster
from testproject.cluster.programs import ROOT
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, wait_until, wait_until_routed
from tests.programs import NO_NEWS, SERVERS, environment, serving
from tests.site import PASSWORD


def monitors_at(cluster: Cluster) -> int:
    """Return how many monitors look at the first replica, other than this process's own."""
    pooler = cluster.poolers.get(cluster.replicas[0].name)
    if pooler is not None:  # which keeps its connections to the server for the next one
        clients = pooler.ask("SHOW CLIENTS")
        return sum(row["application_name"] == "django-replica-router" for row in clients)
    ((count,),) = cluster.replicas[0].execute(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'django-replica-router'"
    )
    return int(count)


# Gunicorn with threads, and each way in which Django may hold its connections.
CONNECTIONS: dict[str, dict[str, Any]] = {
    "none kept": {"CONN_MAX_AGE": 0},
    "kept for ever": {"CONN_MAX_AGE": None},
    "health checks": {"CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True},
    "pool": {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 1, "max_size": 4}}},
    "server-side binding": {"OPTIONS": {"server_side_binding": True}},
}


@pytest.mark.parametrize("kind", SERVERS)
def test_each_kind_of_server_keeps_the_promise(
    cluster: Cluster, ann: User, tmp_path: Path, kind: str
) -> None:
    """Sign in and write under lag, read from replicas without, end when told to."""
    keeps_the_promise(cluster, ann, tmp_path / "log", kind)


@pytest.mark.parametrize("options", CONNECTIONS.values(), ids=CONNECTIONS)
def test_each_way_to_hold_connections_keeps_the_promise(
    cluster: Cluster, ann: User, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Persistent connections, health checks, psycopg's pool."""
    keeps_the_promise(cluster, ann, tmp_path / "log", "gunicorn threads", **options)


def keeps_the_promise(cluster: Cluster, ann: User, log: Path, kind: str, **options: Any) -> None:
    """Visit a real server, with replicas that lag and with replicas that do not."""
    note = Note.objects.create(owner=ann, title="first")
    cluster.wait_caught_up()
    stop_monitors()
    wait_until(lambda: monitors_at(cluster) == 0, "this process's own monitor to leave")
    with serving(cluster, kind, log, **options) as client:
        for replica in cluster.replicas:
            replica.pause()
        form = client.get("/login/")
        token = form.cookies["csrftoken"]
        client.post(
            "/login/",
            data={"username": "ann", "password": PASSWORD, "csrfmiddlewaretoken": token},
        )
        for title in ("second", "third"):
            client.post(
                f"/notes/{note.pk}/edit/",
                data={
                    "title": title,
                    "body": "",
                    "csrfmiddlewaretoken": client.cookies["csrftoken"],
                },
            )
            for _ in range(4):  # whichever worker answers
                answer = client.get(f"/api/notes/{note.pk}/").json()
                assert (answer["username"], answer["title"]) == ("ann", title)
                assert set(answer["reads"]) == {"default"}
        for replica in cluster.replicas:
            replica.resume()
        cluster.wait_caught_up()

        def served_by_replica() -> bool:
            reads = client.get(f"/api/notes/{note.pk}/").json()["reads"]
            return bool(reads) and "default" not in reads

        for _ in range(4):
            wait_until(served_by_replica, "a replica to serve")
        expected = 2 if kind.startswith("gunicorn") else 1
        wait_until(lambda: 1 <= monitors_at(cluster) <= expected, "one monitor a process")
    wait_until(lambda: monitors_at(cluster) == 0, "the monitors' connections to end")


CHILD = f"""{NO_NEWS}
import os, sys, time
import django
django.setup()
from django.db import connections
from django_replica_router import scope
from django_replica_router.replicas.registry import find_monitor, get_monitor
from testproject.notes.models import Note

def read_from_replica():
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with scope():
            if Note.objects.all().db.startswith("replica"):
                return True
    return False

assert read_from_replica()
parent = find_monitor("default")
connections.close_all()
pid = os.fork()
if pid == 0:
    assert find_monitor("default") is None
    ok = read_from_replica()
    os._exit(0 if ok and find_monitor("default") not in (None, parent) else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert find_monitor("default") is parent
assert all(p.is_alive() for p in parent._pollers.values())
print("done")
"""


def test_a_forked_process_starts_its_own_monitor(cluster: Cluster) -> None:
    """The parent's threads do not exist in the child, and the parent's go on."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", CHILD],
        env=environment(cluster),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr == ""


HANGING = f"""{NO_NEWS}
import os, sys
import django
django.setup()
from django_replica_router import scope
from testproject.notes.models import Note
with scope():
    Note.objects.count()
print("done")
"""


def test_a_monitor_that_hangs_keeps_no_process_alive(cluster: Cluster) -> None:
    """A server that accepts connections and never answers is left behind at exit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        databases = cluster.django_databases("app")
        databases["replica1"]["PORT"] = str(silent.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", HANGING],
            env={**environment(cluster), "TESTPROJECT_DATABASES": json.dumps(databases)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.not_pooled(
    "the server sees the pooler's connections, which bear the name of whoever used them last"
)
def test_the_monitor_keeps_no_test_database_from_being_dropped(cluster: Cluster) -> None:
    """Under Django's test runner the monitor stays out of the databases that the runner drops."""
    wait_until_routed()
    assert find_monitor("default") is not None

    def databases() -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT DISTINCT datname FROM pg_stat_activity "
                "WHERE application_name = 'django-replica-router'"
            )
            return [name for (name,) in cursor.fetchall()]

    # Of a process that has just ended, as in another test, the server may not know it yet.
    wait_until(lambda: databases() == ["postgres"], "the monitor to be there, and nowhere else")


def test_a_stopped_monitor_starts_again_when_it_is_needed(cluster: Cluster) -> None:
    """Stopping ends its threads and connections; the next read brings them back."""
    before = find_monitor("default")
    assert before is not None
    stop_monitors()
    for poller in before._pollers.values():
        poller.join(TIMEOUT)
        assert not poller.is_alive()
    wait_until(lambda: monitors_at(cluster) == 0, "its connections to end")
    with scope():
        Note.objects.count()
    assert find_monitor("default") is not before
    wait_until_routed()
