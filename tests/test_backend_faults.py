"""The package's database backend when things go wrong."""

from __future__ import annotations

import signal
import threading

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.backend import (  # noqa: F401 - fixtures
    OWN,
    _cut,
    _own_engine,
    _wait_for_commit,
    engine,
    execute,
    is_pinned,
    only_writes,
    plain_role,
    touching_view,
)
from tests.conftest import wait_until
from tests.site import visit
from tests.torture.proxy import ProxyProcess
from tests.written import note, signed_in  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# When things go wrong -----------------------------------------------------------------------------


def test_a_connection_lost_at_commit_pins_though_no_write_was_noticed(
    signed_in: Client,
    ann: User,
    touching_view: str,
    cluster: Cluster,
) -> None:
    """Whether it was committed, and whether anything was written, is unknown."""

    @transaction.atomic
    def touch() -> None:
        execute(touching_view)
        ((pid,),) = execute("SELECT pg_backend_pid()")
        cluster.primary.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def action(request: HttpRequest) -> None:
        with pytest.raises(DatabaseError):
            touch()

    visit(signed_in, action)
    assert is_pinned(ann)
    assert visit(signed_in, lambda request: Note.objects.db) == "default"


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_an_answer_to_a_commit_that_is_lost_pins(ann: User, cluster: Cluster) -> None:
    """The server has committed, and the line is cut before it says so."""

    @transaction.atomic
    def tag() -> None:
        Tag.objects.create(name="blue")
        # The record of the commit is written, and nobody is told until such a standby has it.
        cluster.primary.configure(synchronous_standby_names="nobody")
        pid = connection.connection.info.backend_pid
        cutters.append(threading.Thread(target=_cut, args=(cluster, proxy, pid)))
        cutters[0].start()

    cutters: list[threading.Thread] = []
    with (
        ProxyProcess({"primary": cluster.primary.port}) as proxy,
        engine(OWN, PORT=str(proxy.ports["primary"])),
    ):
        try:
            with scope(user=ann), pytest.raises(DatabaseError):
                tag()
        finally:
            for cutter in cutters:
                cutter.join(30)
            cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    wait_until(
        lambda: cluster.primary.execute("SELECT name FROM notes_tag", dbname="app") == [("blue",)],
        "the server to show what it has committed",
    )


@pytest.mark.not_pooled("which server connection it has is known to the pooler")
def test_a_commit_that_was_interrupted_pins(ann: User, cluster: Cluster, only_writes: None) -> None:
    """Nobody knows what became of a COMMIT that the process did not wait for."""

    @transaction.atomic
    def tag() -> None:
        Tag.objects.create(name="blue")
        cluster.primary.configure(synchronous_standby_names="nobody")
        interrupter.start()

    def interrupt() -> None:
        try:
            _wait_for_commit(cluster, pid)
        finally:  # else who commits would wait for ever
            signal.raise_signal(signal.SIGINT)

    connection.ensure_connection()
    pid = connection.connection.info.backend_pid
    interrupter = threading.Thread(target=interrupt)
    # A shell has processes that it starts in the background ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with scope(user=ann), pytest.raises(KeyboardInterrupt):
            tag()
    finally:
        interrupter.join(30)
        signal.signal(signal.SIGINT, before)
        cluster.primary.configure(synchronous_standby_names=None)
    assert is_pinned(ann)
    assert connection.get_autocommit()
    assert execute("SELECT name FROM notes_tag") == [("blue",)]


@pytest.mark.not_pooled("a role is set for the session")
def test_a_position_that_is_refused_fails_no_commit(
    ann: User, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What the package asks for may fail; the transaction was committed all the same."""
    with plain_role(cluster, "pg_walfile_name(pg_lsn)"), scope(user=ann):
        with transaction.atomic():
            Tag.objects.create(name="blue")
        assert execute("SELECT count(*) FROM notes_tag") == [(1,)]
    assert is_pinned(ann)
    assert "told no position with a COMMIT" in caplog.text


@pytest.mark.not_pooled("a role is set for the session")
def test_an_error_in_front_of_the_commit_is_an_error(ann: User, cluster: Cluster) -> None:
    """Nothing is taken for committed that is not."""
    with plain_role(cluster, "pg_current_xact_id_if_assigned()"), scope(user=ann):
        with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():
            Tag.objects.create(name="blue")
        assert execute("SELECT count(*) FROM notes_tag") == [(0,)]
