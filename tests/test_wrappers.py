"""Django's connections of a thread, found quickly: always the one that Django itself has there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist

from django_replica_router.replicas import wrappers
from django_replica_router.replicas.wrappers import connection_of, watch_wrappers


@pytest.fixture
def another() -> Iterator[Any]:
    """Have another connection stand where the primary's did, as a live server of a test has it."""
    before = connection_of("default")
    connections["default"] = another = before.copy()
    yield another
    connections["default"] = before


def test_it_is_the_one_that_django_has() -> None:
    """Also the second time, when Django is not asked."""
    assert connection_of("default") is connections["default"]
    assert connection_of("default") is connections["default"]
    assert connection_of("replica1") is connections["replica1"]


def test_django_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is what makes it quick."""
    known = connection_of("default")
    monkeypatch.setattr(wrappers, "connections", {})
    assert connection_of("default") is known


def test_one_that_takes_its_place_is_found(another: Any) -> None:
    """Nobody reads by the one before, which may be in no transaction."""
    assert connection_of("default") is another


def test_unnoticed_it_would_not_be() -> None:
    """Control: the test above fails where nobody watches."""
    before, storage = connection_of("default"), connections._connections  # type: ignore[attr-defined]
    try:
        storage.default = before.copy()
        assert connection_of("default") is before
    finally:
        storage.default = before


def test_one_that_was_deleted_is_made_anew() -> None:
    """As Django does."""
    before = connection_of("default")
    try:
        del connections["default"]
        made = connection_of("default")
        assert made is not before
        assert made is connections["default"]
    finally:
        connections["default"] = before


def test_each_thread_has_its_own() -> None:
    """And finds it again."""
    found: list[Any] = []

    def find() -> None:
        found.extend([connection_of("default"), connection_of("default"), connections["default"]])
        found[0].close()

    thread = Thread(target=find)
    thread.start()
    thread.join()
    assert found[0] is found[1] is found[2]
    assert found[0] is not connection_of("default")


def test_each_task_of_an_event_loop_has_its_own() -> None:
    """Django keeps them apart there, in one thread."""
    outside = connection_of("default")

    async def find() -> tuple[Any, Any]:
        return connection_of("default"), connections["default"]

    async def find_twice() -> list[tuple[Any, Any]]:
        return await asyncio.gather(find(), find())

    (one, its), (other, others) = asyncio.run(find_twice())
    assert one is its
    assert other is others
    assert len({id(outside), id(one), id(other)}) == 3
    assert connection_of("default") is outside


def test_an_alias_that_is_none_is_told() -> None:
    """By Django."""
    with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
        connection_of("nowhere")


def test_they_are_watched_once() -> None:
    """Also where the app is made ready again."""
    kind = type(connections)
    watch_wrappers()
    assert type(connections) is kind
    assert connection_of("default") is connections["default"]


def test_nothing_is_kept_before_they_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody would tell of one that takes their place."""
    monkeypatch.setattr(wrappers._watched, "edition", None)
    monkeypatch.setattr(wrappers._here, "known", wrappers._Known(None))
    assert connection_of("default") is connections["default"]
    assert wrappers._here.known.wrappers == {}
