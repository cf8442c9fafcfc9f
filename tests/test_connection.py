"""The class of Django's connections: each has it, whoever makes it, and leaves alone what is not its own."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import pytest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.postgresql.base import DatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SqliteWrapper
from django.db.backends.utils import CursorWrapper

from django_replica_router import receivers, scope
from django_replica_router.backends.mixin import TokenMixin
from django_replica_router.connections.connection import (
    ClusterConnection,
    _class_for,
    equip,
    equip_new_connections,
)
from django_replica_router.connections.cursors import WatchedCursor
from django_replica_router.connections.on_primary import OnPrimary
from django_replica_router.connections.on_replica import OnReplica
from django_replica_router.connections.read_only import Unrouted
from django_replica_router.replicas.attributes import UNKNOWN, Attributes
from testproject.notes.models import Note, Tag

pytestmark = pytest.mark.usefixtures("test_site", "note")


def is_equipped(connection: Any) -> bool:
    """Tell whether a connection has the class, once, and what it shares with no other."""
    classes = type(connection).__mro__
    return classes.count(ClusterConnection) == 1 and connection.waiter is not None


def notices_a_write(connection: Any) -> bool:
    """Tell whether what a connection of the primary writes is noticed."""
    with scope() as opened:
        with connection.cursor() as cursor:
            cursor.execute("UPDATE notes_note SET title = title")
        return opened.cluster("default").wrote


def test_connections_of_one_backend_share_a_class() -> None:
    """It is made once, is one of the backend's, and is called as that is."""
    kind = _class_for(DatabaseWrapper)
    assert _class_for(DatabaseWrapper) is kind
    assert issubclass(kind, DatabaseWrapper)
    assert (kind.__name__, kind.__module__) == ("DatabaseWrapper", DatabaseWrapper.__module__)
    assert type(connections["replica1"]) is type(connections["replica2"])
    assert all(is_equipped(connections[alias]) for alias in connections)


def test_nothing_of_the_instance_is_replaced() -> None:
    """Whoever puts something there himself, as Django's test cases do, is not overwritten."""
    with scope():
        Note.objects.get()
        Note.objects.create(title="new", owner_id=Note.objects.get().owner_id)
    for alias in connections:
        kind = type(connections[alias])
        replaced = [
            name
            for name, value in vars(connections[alias]).items()
            # Django's test cases put a method of the class itself back there.
            if callable(found := getattr(kind, name, None))
            and found != getattr(value, "__func__", None)
        ]
        assert not replaced
        assert not [name for name in vars(connections[alias]) if "replica_router" in name]


@contextmanager
def copied() -> Iterator[Any]:
    """Make a copy, as tests do that need a second connection."""
    copy = connections["default"].copy()
    yield copy
    copy.close()


@contextmanager
def made_by_hand() -> Iterator[Any]:
    """Make one past Django's handler of connections, which hears of it when it is opened."""
    made = DatabaseWrapper(connections["default"].settings_dict, "default")
    made.ensure_connection()
    yield made
    made.close()


@contextmanager
def equipped_again() -> Iterator[Any]:
    """Have the app made ready anew, as by a test with other INSTALLED_APPS."""
    create = connections.create_connection
    equip_new_connections()
    try:
        made = connections.create_connection("default")
    finally:
        connections.create_connection = create  # type: ignore[method-assign]
    equip(made)
    yield made
    made.close()


@pytest.mark.parametrize("way", [copied, made_by_hand, equipped_again])
def test_whoever_makes_a_connection_it_has_the_class(way: Callable[[], Any]) -> None:
    """What it writes is noticed."""
    with way() as made:
        assert notices_a_write(made)
        assert is_equipped(made)


def test_without_the_class_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the test above fails where a connection is left as it was made."""
    monkeypatch.setattr(receivers, "equip", lambda connection: None)
    with made_by_hand() as made:
        assert not notices_a_write(made)


def test_each_thread_s_connection_has_it() -> None:
    """Also that of an alias that came after the app was ready."""
    connections.settings["late"] = {**connections.settings["default"]}
    found: list[bool] = []

    def look() -> None:
        for alias in ("default", "late"):
            found.append(is_equipped(connections[alias]))
            connections[alias].close()

    thread = Thread(target=look)
    try:
        thread.start()
        thread.join()
    finally:
        del connections.settings["late"]
    assert found == [True, True]


def test_what_is_around_follows_the_settings(settings: Any) -> None:
    """A connection that is open, and a cursor that is, do as the settings of the moment say."""
    primary, replica = connections["default"], connections["replica1"]
    with replica.cursor() as cursor:
        for enabled, kinds in ((True, [OnPrimary, OnReplica]), (False, [Unrouted, Unrouted])) * 2:
            settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "ENABLED": enabled}
            assert notices_a_write(primary) is enabled
            for _ in range(2):  # the first one of a connection finds out where that leads
                cursor.execute("SELECT 1")
            around = [connection.around for connection in (primary, replica)]  # type: ignore[attr-defined]
            assert [type(one) for one in around] == kinds


class ShoutingCursor(CursorWrapper):
    """What a backend of somebody else's makes."""

    def fetchone(self) -> Any:
        return tuple(str(value).upper() for value in self.cursor.fetchone())


class OtherWrapper(DatabaseWrapper):
    """A backend with cursors of its own."""

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return ShoutingCursor(cursor, self)


def assert_watches_its_own_cursors(made: Any) -> None:
    """See that what is around statements runs, and the backend's own class of cursors answers."""
    try:
        assert notices_a_write(made)
        with made.cursor() as cursor:
            cursor.execute("SELECT title FROM notes_note")
            assert cursor.fetchone() == ("FIRST",)
            assert isinstance(cursor, WatchedCursor)
    finally:
        made.close()


def test_a_backend_keeps_its_own_class_of_cursors() -> None:
    """What is around statements runs around theirs."""
    made = OtherWrapper(connections["default"].settings_dict, "default")
    equip(made)
    assert_watches_its_own_cursors(made)


class OfASite(TokenMixin, DatabaseWrapper):
    """What a site derives from the package's own, with a word in what its cursors are."""

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        return ShoutingCursor(cursor, self)


class FurtherOfASite(OfASite):
    """And from that again."""


@pytest.mark.parametrize("kind", [OfASite, FurtherOfASite])
def test_a_backend_of_the_sites_own_keeps_its_class_of_cursors(kind: type[OfASite]) -> None:
    """In front of what the package does, which is done all the same."""
    made = kind(connections["default"].settings_dict, "default")
    assert_watches_its_own_cursors(made)


def test_another_database_has_no_more_than_the_attributes(tmp_path: Path) -> None:
    """Nothing runs around its statements, and its cursors are Django's."""
    described = {"NAME": tmp_path / "lite", "OPTIONS": {}}
    made: Any = SqliteWrapper({**connections["default"].settings_dict, **described}, "lite")
    equip(made)
    for connection in (made, made.copy()):
        assert isinstance(connection, Attributes)
        assert not isinstance(connection, ClusterConnection)
        assert connection.idle_blocks == [None]
        with connection.cursor() as cursor:
            assert cursor.execute("SELECT 1").fetchone() == (1,)
            assert type(cursor) is CursorWrapper
        connection.close()


def test_what_wraps_a_statement_runs_inside() -> None:
    """A wrapper sees what is sent, in Django's order, and takes itself off as ever."""
    seen: list[str] = []

    def named(name: str) -> Any:
        def wrapper(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
            seen.append(name)
            assert isinstance(context["connection"], BaseDatabaseWrapper)
            return execute(sql, params, many, context)

        return wrapper

    before = list(connections["default"].execute_wrappers)
    with (
        connections["default"].execute_wrapper(named("outer")),
        connections["default"].execute_wrapper(named("inner")),
    ):
        Tag.objects.using("default").count()
    assert seen == ["outer", "inner"]
    assert connections["default"].execute_wrappers == before


def calls_of(action: Callable[[], Any]) -> Counter[str]:
    """Return how often each function of the package is called."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, arg: Any) -> None:
        name = frame.f_code.co_filename.rpartition("/django_replica_router/")
        if event == "call" and name[1]:
            found[f"{name[2]}:{frame.f_code.co_name}"] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.not_pooled("there each answer proves where it comes from")
def test_a_statement_on_a_replica_calls_few_functions() -> None:
    """Of a query that is like the one before it, from the router to the rows."""
    with scope(user=1):
        for _ in range(2):
            assert str(Note.objects.get()._state.db).startswith("replica")
        calls = calls_of(Note.objects.get)
    assert calls["connections/on_replica.py:run"] == 1
    assert calls.total() <= 15, calls


def test_the_calls_of_a_statement_are_counted() -> None:
    """Control: what is found out anew for each statement is seen."""
    with scope(user=1):
        for _ in range(2):
            Note.objects.get()
        replica: Any = connections[str(Note.objects.get()._state.db)]
        usual = calls_of(Note.objects.get)
        replica.around = UNKNOWN
        assert calls_of(Note.objects.get).total() > usual.total()
