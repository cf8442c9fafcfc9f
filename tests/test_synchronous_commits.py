"""Where commits wait for standbys: a replica shows a row before the primary does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest

from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, wait_until, wait_until_known
from tests.site import sign_in, visit

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
