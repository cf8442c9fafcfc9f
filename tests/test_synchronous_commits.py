"""Where commits wait for standbys: a replica shows a row before the primary does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Thread

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest

from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, stand_still, wait_until, wait_until_known
from tests.site import PASSWORD, sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


def title(request: HttpRequest) -> str:
    """Return what the reader sees of the one note."""
    assert request.user.is_authenticated
    return Note.objects.get().title


def change(cluster: Cluster) -> None:
    """Change the note, for nobody whom the package knows."""
    cluster.primary.execute("UPDATE notes_note SET title = 'new'", dbname="app")


@contextmanager
def commits_waiting(cluster: Cluster) -> Iterator[None]:
    """Have a change wait, inside the block, for a standby that never comes."""
    cluster.primary.configure(synchronous_standby_names="nobody")
    commit = Thread(target=change, args=[cluster])
    try:
        commit.start()
        yield
        assert commit.is_alive()
    finally:
        cluster.primary.configure(synchronous_standby_names=None)
        commit.join(TIMEOUT)


def is_shown(cluster: Cluster) -> bool:
    """Tell whether every replica shows the change."""
    rows = [
        replica.execute("SELECT title FROM notes_note", dbname="app")
        for replica in cluster.replicas
    ]
    return all(row == [("new",)] for row in rows)


@pytest.mark.parametrize("waits", [True, False])
def test_the_primary_may_not_show_yet_what_a_replica_has_shown(
    ann: User, cluster: Cluster, waits: bool
) -> None:
    """No position tells: the primary's is never behind. A limit that the documents name; else it shows the same."""
    client = sign_in(ann)
    Note.objects.create(owner=ann, title="old")
    wait_until_known(cluster)
    assert visit(client, title) == "old"
    if not waits:
        change(cluster)
        wait_until(lambda: is_shown(cluster), "the change")
        assert [visit(client, title), visit(client, title, "post")] == ["new", "new"]
        return
    with commits_waiting(cluster):
        wait_until(lambda: is_shown(cluster), "the change")
        assert [visit(client, title), visit(client, title, "post")] == ["new", "old"]
    assert visit(client, title, "post") == "new"


WAITS = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


def end_the_wait(cluster: Cluster, function: str) -> None:
    """End by hand the one commit that waits for a standby."""
    wait_until(lambda: cluster.primary.execute(WAITS, dbname="app"), "a commit that waits")
    ((pid,),) = cluster.primary.execute(WAITS, dbname="app")
    cluster.primary.execute(f"SELECT {function}({pid})", dbname="app")


@pytest.mark.parametrize("blocks", [False, True], ids=["autocommit", "atomic"])
@pytest.mark.parametrize(
    ("function", "told"), [("pg_cancel_backend", "done"), ("pg_terminate_backend", "error")]
)
def test_a_write_whose_wait_for_a_standby_is_ended_is_seen_by_its_user(
    ann: User, cluster: Cluster, function: str, told: str, blocks: bool
) -> None:
    """It is there, whatever its writer was told, and replicas that have not replayed it do not serve them."""
    client, other = sign_in(ann), sign_in(User.objects.create_user("bob", password=PASSWORD))
    Note.objects.create(owner=ann, title="old")
    wait_until_known(cluster)
    stand_still(cluster)

    def write(request: HttpRequest) -> str:
        assert request.user.is_authenticated
        try:
            with transaction.atomic() if blocks else nullcontext():
                Note.objects.update(title="new")
        except DatabaseError:
            connection.close()  # as the end of a request does outside of tests
            return "error"
        return "done"

    cluster.primary.configure(synchronous_standby_names="nobody")
    ending = Thread(target=end_the_wait, args=[cluster, function])
    try:
        ending.start()
        assert visit(client, write, "post") == told
    finally:
        ending.join(TIMEOUT)
        cluster.primary.configure(synchronous_standby_names=None)
    assert [visit(client, title), visit(other, title)] == ["new", "old"]
