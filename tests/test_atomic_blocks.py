"""Every other block, and isolation levels."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections
from django.http import HttpRequest
from django.test import Client, testcases
from psycopg import IsolationLevel

from django_replica_router.transactions import atomic_requests
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests import site
from tests.atomic_requests import (  # noqa: F401 - fixtures
    ABOVE,
    BLOCKS,
    HERE,
    SESSION,
    BlockAround,
    BlockBefore,
    BlockInstead,
    Patch,
    atomic,
    edited,
    in_block,
    own_block,
    reconnecting,
    show,
    title,
)
from tests.backend import wire
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("atomic")


# Every other block


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_block_of_the_codes_own_keeps_reads(edited: Note, block: Callable[[], str]) -> None:
    """Inside the handler's, also where a shortcut led to a replica before."""
    assert show(lambda: [title(), block(), title()]) == ["first", "NEW", "first"]


def test_a_view_without_the_handlers_block_may_open_one(edited: Note, monkeypatch: Patch) -> None:
    """The first block of a view that is marked is its own."""
    monkeypatch.setattr(site.run, "_non_atomic_requests", {"default"}, raising=False)

    def view(request: HttpRequest) -> list[str]:
        assert not connection.in_atomic_block
        return [title(), own_block(title), title()]

    assert visit(Client(), view) == ["first", "NEW", "first"]


@pytest.mark.parametrize("middleware", [BlockAround, BlockBefore, BlockInstead])
def test_a_block_of_a_middleware_keeps_reads(
    edited: Note, settings: Any, middleware: type[Any]
) -> None:
    """Whether the handler's is inside it, or there is none."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{HERE}.{middleware.__name__}"]
    assert visit(Client(), lambda request: [title(), title()]) == ["NEW", "NEW"]


def test_a_block_of_a_middleware_that_has_ended_keeps_nothing(edited: Note, settings: Any) -> None:
    """The handler's is the next one, and alone."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{HERE}.BlockThatEnds"]
    view = in_block(title)
    assert visit(Client(), lambda request: [request.META["seen"], view(request)]) == [
        "NEW",
        "first",
    ]


def test_a_test_case_keeps_reads(edited: Note) -> None:
    """Its own blocks are around everything."""
    seen: list[Any] = []

    class Case(testcases.TestCase):
        databases = {"default", "replica1", "replica2"}  # noqa: RUF012 - as Django has it

        def test(self) -> None:
            Note.objects.update(title="of the test")
            seen.extend(visit(Client(), lambda request: [title(), len(connection.atomic_blocks)]))

    outcome = unittest.TestResult()
    unittest.TestSuite([Case("test")]).run(outcome)
    assert not outcome.errors, outcome.errors[0][1]
    assert seen == ["of the test", 3]


def test_a_block_that_nobody_knows_keeps_reads(edited: Note) -> None:
    """Code of before Django's own may say so by hand."""

    def view(request: HttpRequest) -> str:
        connection.in_atomic_block = True
        try:
            return title()
        finally:
            connection.in_atomic_block = False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site.run, "_non_atomic_requests", {"default"}, raising=False)
        assert visit(Client(), view) == "NEW"


def test_a_site_without_autocommit_is_in_a_transaction_of_its_own(
    edited: Note, monkeypatch: Patch
) -> None:
    """The handler's block is a part of that."""
    monkeypatch.setitem(connections.settings["default"], "AUTOCOMMIT", False)
    connections["default"].close()
    try:
        assert show(lambda: [title(), title()]) == ["NEW", "NEW"]
    finally:
        connections["default"].close()


# Isolation levels


@pytest.mark.usefixtures("reconnecting")
@pytest.mark.parametrize("level", ABOVE)
def test_a_higher_isolation_level_keeps_reads(
    edited: Note, monkeypatch: Patch, level: IsolationLevel
) -> None:
    """By Django's setting."""
    options = {**connections.settings["default"]["OPTIONS"], "isolation_level": level}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    assert show(lambda: [title(), title()]) == ["NEW", "NEW"]


@pytest.mark.not_pooled("the pooler's connections are older than the setting")
@pytest.mark.usefixtures("reconnecting")
def test_a_higher_isolation_level_of_the_server_keeps_reads(edited: Note, cluster: Cluster) -> None:
    """By the role, the database or the server's own settings: it is asked once."""
    primary = cluster.primary
    primary.execute("ALTER DATABASE app SET default_transaction_isolation = 'repeatable read'")
    try:
        assert show(lambda: [title(), title()]) == ["NEW", "NEW"]
    finally:
        primary.execute("ALTER DATABASE app RESET default_transaction_isolation")


@pytest.mark.not_pooled("a session is set", modes=["transaction"])
@pytest.mark.usefixtures("reconnecting")
def test_a_higher_isolation_level_of_the_session_keeps_reads(edited: Note) -> None:
    """By a statement of the code's, on all connections alike."""
    assert show(title) == "first"
    for alias in connections:
        with connections[alias].cursor() as cursor:
            cursor.execute(SESSION)
    try:
        assert show(lambda: [title(), title()]) == ["NEW", "NEW"]
    finally:
        connections.close_all()


@pytest.mark.usefixtures("reconnecting")
@pytest.mark.parametrize("level", [IsolationLevel.READ_UNCOMMITTED, IsolationLevel.READ_COMMITTED])
def test_read_committed_by_name_costs_no_question(
    edited: Note, monkeypatch: Patch, level: IsolationLevel
) -> None:
    """The server's default does not matter then."""
    options = {**connections.settings["default"]["OPTIONS"], "isolation_level": level}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    with wire() as sent:
        assert show(title) == "first"
    assert sent.sent == []


@pytest.mark.usefixtures("reconnecting")
def test_the_servers_level_is_asked_once_outside_of_the_transaction(edited: Note) -> None:
    """It costs no BEGIN."""
    with wire() as sent:
        assert [show(title), show(title)] == ["first", "first"]
    (asked,) = sent.sent
    assert "default_transaction_isolation" in asked


@pytest.mark.usefixtures("reconnecting")
def test_an_unknown_level_is_a_higher_one(
    edited: Note, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    """Until the server tells it."""
    with pytest.MonkeyPatch.context() as patch:

        def fail(raw: Any) -> str:
            raise OSError("away")

        patch.setattr(atomic_requests.transacting, "default_isolation", fail)
        assert show(title) == "NEW"
    assert "'default' does not tell its default isolation level: away" in caplog.text
    assert show(title) == "first"
