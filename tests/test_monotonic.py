"""A later request of a user never sees older data than an earlier one."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import reads, use_primary
from django_replica_router.monitor import Monitor
from django_replica_router.policy import ReplicaState
from django_replica_router.registry import find_monitor
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import (
    PATIENT,
    TIMEOUT,
    everybodys_key,
    forget_the_server,
    impatient,
    stand_still,
    wait_until,
    wait_until_known,
)
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.test_faults import backend

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="old")
    wait_until_known(cluster)
    return note


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    assert request.user.is_authenticated
    return Note.objects.get().title


def by_somebody_else(cluster: Cluster, text: str) -> None:
    """Change the note, for nobody whom the package knows."""
    cluster.primary.execute("UPDATE notes_note SET title = %s", [text], dbname="app")


WAYS: dict[str, Any] = {
    "unsafe method": lambda client: visit(client, title, "post"),
    "use_primary": lambda client: visit(client, use_primary(title)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_the_primary_showed_is_not_taken_back(
    ann: User, note: Note, cluster: Cluster, way: Any
) -> None:
    """Having read from the primary, a user is not sent to a replica that lacks what was there."""
    client = sign_in(ann)
    wait_until_known(cluster)
    assert visit(client, title) == "old"
    for replica in cluster.replicas:
        replica.pause()
    by_somebody_else(cluster, "new")
    assert visit(client, title) == "old"
    assert way(client) == "new"
    assert visit(client, title) == "new"


def test_what_one_replica_showed_is_not_taken_back_by_the_other(
    ann: User, note: Note, cluster: Cluster, served: Served, settings: Any
) -> None:
    """Where the usual replica comes back after a failure, it must have what its stand-in showed."""
    client = sign_in(ann)
    wait_until_known(cluster)
    visit(client, title)
    (usual,) = served.aliases("notes_note") - {"default"}
    mine = next(replica for replica in cluster.replicas if replica.name == usual)
    mine.kill()
    by_somebody_else(cluster, "new")
    other = next(replica for replica in cluster.replicas if replica.name != usual)
    other.wait_replayed(cluster.primary.flush())
    for _ in range(3):
        assert visit(client, title) == "new"
    mine.start()
    mine.pause()
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(
        lambda: monitor.readings[usual].state is ReplicaState.STREAMING, "it to be known again"
    )
    for _ in range(3):
        assert visit(client, title) == "new"


def test_leaving_the_usual_replica_does_not_go_back_in_time(
    ann: User, note: Note, cluster: Cluster, served: Served
) -> None:
    """What the usual replica showed is recorded nowhere, and must not be missing on its stand-in."""
    client = sign_in(ann)
    wait_until_known(cluster)
    visit(client, title)
    (usual,) = served.aliases("notes_note") - {"default"}
    mine = next(replica for replica in cluster.replicas if replica.name == usual)
    other = next(replica for replica in cluster.replicas if replica.name != usual)
    other.pause()
    by_somebody_else(cluster, "new")
    mine.wait_replayed(cluster.primary.flush())
    assert visit(client, title) == "new"
    mine.kill()
    connections[usual].close()  # as a worker that has not met it yet
    try:
        with impatient(cluster, usual):
            for _ in range(5):
                assert visit(client, title) == "new"
    finally:
        mine.start()


@pytest.mark.not_pooled(
    "it notices that a connection at rest has ended, and gives another one of the same server",
    modes=["transaction"],
)
def test_what_the_primary_showed_after_a_fault_is_not_taken_back(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """A read that was run again on the primary counts as one there, also where it was the last."""
    client = sign_in(ann)
    stand_still(cluster)
    by_somebody_else(cluster, "new")

    def action(request: HttpRequest) -> list[str]:
        assert request.user.is_authenticated
        before = Note.objects.get()
        alias = str(before._state.db)
        usual = next(replica for replica in cluster.replicas if replica.name == alias)
        usual.execute("SELECT pg_terminate_backend(%s, 5000)", [backend(alias)])
        return [before.title, Note.objects.get().title]

    assert visit(client, action) == ["old", "new"]
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(
        lambda: all(r.state is ReplicaState.STREAMING for r in monitor.replicas()),
        "both replicas to be in service",
    )
    for _ in range(3):
        assert visit(client, title) == "new"


def test_what_was_shown_while_the_cache_hung_is_not_taken_back_on_another_device(
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Nobody could tell the other device's process: so the response waits for the replicas."""
    wait_for_all = Monitor.wait_for_all

    def resume() -> None:
        for replica in cluster.replicas:
            replica.resume()

    def wait(monitor: Monitor, lsn: int, timeout: float, max_lag: float) -> bool:
        resume()
        return wait_for_all(monitor, lsn, TIMEOUT, max_lag)

    monkeypatch.setattr(Monitor, "wait_for_all", wait)
    laptop, phone = sign_in(ann), sign_in(ann)
    for device in (laptop, phone):
        visit(device, title)
    settings.REPLICA_ROUTER = {**PATIENT, "STORE_TIMEOUT": 0.25}
    forget_the_server()
    stand_still(cluster)
    request.addfinalizer(resume)
    by_somebody_else(cluster, "new")
    assert cluster.cache is not None
    cluster.cache.suspend()
    try:
        assert visit(laptop, title) == "new"
    finally:
        cluster.cache.resume_process()
    # The phone is answered by a process that has read nothing meanwhile, and has missed nothing.
    settings.REPLICA_ROUTER = PATIENT
    reads._blind.clear()
    forget_the_server()
    assert visit(phone, title) == "new"


def test_all_devices_of_a_user_meet_the_same_replica(
    ann: User, note: Note, cluster: Cluster, served: Served
) -> None:
    """What the laptop has shown is not missing on the phone."""
    devices = [sign_in(ann) for _ in range(4)]
    wait_until_known(cluster)
    for device in devices:
        visit(device, title)
    served.clear()
    for device in devices:
        visit(device, title)
    assert len(served.aliases()) == 1
    assert served.only_replicas()


def test_it_can_be_switched_off(ann: User, note: Note, cluster: Cluster, settings: Any) -> None:
    """A site that prefers replicas to this guarantee says so."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}
    client = sign_in(ann)
    stand_still(cluster)
    by_somebody_else(cluster, "new")
    assert visit(client, use_primary(title)) == "new"
    assert visit(client, title) == "old"


def test_nothing_is_remembered_for_nobody(note: Note, cluster: Cluster) -> None:
    """An anonymous reader without a session has no key, and costs the store nothing."""

    def anonymous(request: HttpRequest) -> str:
        return Note.objects.get().title

    visit(Client(), anonymous, "post")
    assert cluster.cache is not None
    assert cluster.cache.command("KEYS", "*") == [everybodys_key()]
