"""The package's database backend and other ways of using the driver."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from psycopg.adapt import Loader
from psycopg.rows import dict_row

from django_replica_router import scope, use_primary
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import OWN, UNPREPARED, _own_engine, current_state, engine, execute, only_writes  # noqa: F401 - fixtures
from tests.written import note, wrote  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# Other ways of using the driver -------------------------------------------------------------------


OPTIONS: dict[str, dict[str, Any]] = {
    "server-side binding": {"OPTIONS": {"server_side_binding": True, "prepare_threshold": 0}},
    "pool": {"OPTIONS": {"pool": {"min_size": 1, "max_size": 2}}, "CONN_MAX_AGE": 0},
    "serializable": {"OPTIONS": {"isolation_level": 4}},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, id=name, marks=[UNPREPARED] if "binding" in name else [])
        for name, options in OPTIONS.items()
    ],
)
def test_options_of_the_connection(
    ann: User, cluster: Cluster, only_writes: None, options: dict[str, Any]
) -> None:
    """However the driver is set up, the position comes with the COMMIT."""
    with engine(OWN, **options):
        before = cluster.primary.insert_lsn()
        with scope(user=ann):
            with transaction.atomic():
                Tag.objects.create(name="blue")
            state = current_state()
            assert state.checkpoint is not None
        assert wrote(ann).position.lsn > before
        with scope(user=ann), transaction.atomic():
            assert not Note.objects.filter(pk=-1).update(body="new")


def test_a_row_factory_of_the_connection_disturbs_nothing(ann: User, only_writes: None) -> None:
    """Rows of another kind are the site's own business."""
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            connection.connection.row_factory = dict_row
        assert current_state().checkpoint is not None
    wrote(ann)


class Foreign(Loader):
    """Makes of every value something of the site's own."""

    def load(self, data: Any) -> Any:
        return ("foreign", bytes(data))


def test_types_of_the_sites_own_are_nothing_to_go_by(ann: User, only_writes: None) -> None:
    """What the server says is read as it stands on the wire, whatever the site makes of values."""
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            for name in ("text", "bool"):
                connection.connection.adapters.register_loader(name, Foreign)
        assert current_state().checkpoint is not None
    connection.close()
    wrote(ann)
    assert Tag.objects.count() == 1


def test_a_pipeline_commits_plainly(ann: User, cluster: Cluster, only_writes: None) -> None:
    """A pipeline takes one statement a message: the position is asked for at the end."""
    before = cluster.primary.insert_lsn()
    with scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
            pipeline = connection.connection.pipeline()
            pipeline.__enter__()
        assert current_state().checkpoint is None
        pipeline.__exit__(None, None, None)
    assert wrote(ann).position.lsn > before


def test_logs_and_counts_are_those_without_the_backend(
    ann: User, caplog: pytest.LogCaptureFixture, django_assert_num_queries: Any
) -> None:
    """The message is one COMMIT for whoever counts or logs."""
    with (
        caplog.at_level(logging.DEBUG, "django.db.backends"),
        scope(user=ann),
        django_assert_num_queries(3) as captured,
        transaction.atomic(),
    ):
        Tag.objects.create(name="blue")
    assert [query["sql"].split()[0] for query in captured] == ["BEGIN", "INSERT", "COMMIT"]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("COMMIT" in message for message in messages) == 1
    assert not any("wal" in message for message in messages)


def test_the_server_has_nothing_to_remark(ann: User, note: Note) -> None:
    """The message raises no notice of its own, and passes on those of the transaction."""
    notices: list[str] = []
    with scope(user=ann), transaction.atomic():
        connection.connection.add_notice_handler(
            lambda diagnostic: notices.append(diagnostic.message_primary)
        )
        execute("DO $$ BEGIN RAISE NOTICE 'from the transaction'; END $$")
    assert notices == ["from the transaction"]


def test_use_primary_and_the_rest_stay_as_they_are(ann: User, note: Note) -> None:
    """Inside a transaction and after it, the primary serves who has written."""
    with scope(user=ann):
        with transaction.atomic():
            note.save()
            assert Note.objects.get()._state.db == "default"
        assert Note.objects.get()._state.db == "default"
        with use_primary():
            assert Note.objects.get()._state.db == "default"
