"""A replica that has not replayed the latest migration serves nobody."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User

from django_replica_router import receivers
from django_replica_router.conf import get_config
from testproject.cluster import Cluster
from testproject.cluster.programs import ROOT
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.programs import environment, serving

MIGRATE = """
import sys
import django
django.setup()
from django.core.management import call_command
from django.db import connection, migrations
from django.db.migrations.loader import MigrationLoader

class AddColumn(migrations.Migration):
    dependencies = [("notes", "0002_trigger_and_function")]
    operations = [migrations.RunSQL(sys.argv[1])]

original = MigrationLoader.load_disk

def load_disk(self):
    original(self)
    self.disk_migrations["notes", "9999_" + sys.argv[2]] = AddColumn("9999_" + sys.argv[2], "notes")

MigrationLoader.load_disk = load_disk
call_command("migrate", verbosity=0)
"""


def migrate(cluster: Cluster, sql: str, name: str) -> None:
    """Run a migration in a process of its own, as a deployment does."""
    subprocess.run(
        [sys.executable, "-c", MIGRATE, sql, name], env=environment(cluster), cwd=ROOT, check=True
    )


def read_in_both_workers(client: httpx.Client, status: int) -> None:
    """Read the column twenty times, and until both workers have answered: always with that status."""
    workers: list[str] = []

    def have_both() -> bool:
        answer = client.get("/column/")
        assert answer.status_code == status, answer.text
        workers.append(answer.headers["X-Worker"])
        return len(workers) >= 20 and len(set(workers)) == 2

    wait_until(have_both, "both workers to answer")


@pytest.fixture
def column(cluster: Cluster) -> Iterator[str]:
    """The name of a column that does not exist yet, and is gone afterwards."""
    yield "extra"
    cluster.primary.execute("ALTER TABLE notes_tag DROP COLUMN IF EXISTS extra", dbname="app")
    cluster.primary.execute("DELETE FROM django_migrations WHERE name LIKE '9999%'", dbname="app")


def test_no_worker_reads_from_a_replica_that_lacks_the_migration(
    cluster: Cluster, ann: User, tmp_path: Path, column: str
) -> None:
    """Two workers that were running before read the new column, of anonymous visitors, too."""
    Note.objects.create(owner=ann, title="first")
    cluster.wait_caught_up()
    with serving(
        cluster, "gunicorn sync", tmp_path / "log", settings="tests.worker_settings"
    ) as client:
        read_in_both_workers(client, 500)  # there is no such column yet
        for replica in cluster.replicas:
            replica.pause()
        migrate(cluster, "ALTER TABLE notes_tag ADD COLUMN extra integer DEFAULT 7", "add")
        read_in_both_workers(client, 200)


def test_a_migration_that_nobody_else_learns_of_is_told_of(
    settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A job without the site's cache says what that means, and what to do."""
    local = {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    settings.CACHES = {**settings.CACHES, "alone": local}
    settings.REPLICA_ROUTER = {"CACHE": "alone"}
    receivers._tell_where_nobody_learns_of_it("default", get_config())
    assert "'default' is known to this process only: the cache 'alone'" in caplog.text


def test_a_migration_that_all_learn_of_is_no_news(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """With the site's own cache nothing is said."""
    receivers._tell_where_nobody_learns_of_it("default", get_config())
    assert not caplog.text
