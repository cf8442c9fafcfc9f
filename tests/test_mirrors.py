"""Test runs of sites: an alias that mirrors its primary is the primary, and nobody's news."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections

from django_replica_router import scope, signals
from django_replica_router.errors import ConfigurationError
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas import mirrors
from django_replica_router.replicas.registry import find_monitor, stop_monitors
from django_replica_router.testing import mirrors_are_replicas, point_mirrors_to_primaries
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.mirrored import REPLICAS, addresses, mirrored

__all__ = ["addresses", "mirrored"]


def wait_for_primaries() -> None:
    """Return once the monitor has seen that both aliases are the primary."""
    with scope():
        Note.objects.first()

    def are_seen() -> bool:
        found = find_monitor("default")
        assert found is not None
        return all(
            reading.state is ReplicaState.PRIMARY for reading in found.known.readings.values()
        )

    wait_until(are_seen, "the mirrors to be known")


@pytest.fixture
def sent() -> Iterator[list[Any]]:
    """Return the list of the signals that are sent."""
    news: list[Any] = []

    def note(sender: Any, **kwargs: Any) -> None:
        news.append(sender)

    signals.replica_lost.connect(note)
    signals.replica_restored.connect(note)
    yield news
    signals.replica_lost.disconnect(note)
    signals.replica_restored.disconnect(note)


@pytest.mark.usefixtures("mirrored")
def test_a_mirror_in_a_test_run_is_no_news(
    caplog: pytest.LogCaptureFixture, sent: list[Any]
) -> None:
    """No warning comes from a thread at a moment of its own, and no signal."""
    caplog.clear()
    wait_for_primaries()
    stop_monitors()
    loud = [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]
    assert (loud, sent) == ([], [])


@pytest.mark.usefixtures("mirrored")
def test_control_of_a_mirror_that_is_no_news(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of a test run, or where nothing says that it mirrors, it is a mistake, and told."""
    monkeypatch.setattr(mirrors, "is_under_test", lambda: False)
    caplog.clear()
    wait_for_primaries()
    wait_until(lambda: "does not serve: is the primary itself." in caplog.text, "the line")
    assert mirrors.is_test_mirror("replica1", "default") is False


@pytest.mark.usefixtures("mirrored")
def test_an_alias_that_mirrors_nothing_is_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings have to say that it is a mirror."""
    assert mirrors.is_test_mirror("replica1", "default") is True
    monkeypatch.setitem(connections.settings["replica1"]["TEST"], "MIRROR", None)
    assert mirrors.is_test_mirror("replica1", "default") is False
    assert mirrors.is_test_mirror("nowhere", "default") is False


@pytest.mark.usefixtures("mirrored")
def test_mirrors_serve_inside_the_block() -> None:
    """Pointed to the primary, they are replicas for the routing rules."""
    with mirrors_are_replicas(), scope():
        assert Note.objects.all().db in REPLICAS


def test_a_mirror_at_another_address_is_refused_with_what_to_do(addresses: None) -> None:
    """The error names what is different, and does not ask for what is set."""
    with mirrors_are_replicas(), scope(), pytest.raises(ConfigurationError) as caught:
        Note.objects.first()
    assert str(caught.value) == (
        "'replica1' is not the database of 'default': it has another PORT. TEST['MIRROR'] copies only "
        "the NAME: give 'replica1' the HOST and PORT of 'default' in the settings of your tests, or "
        "call point_mirrors_to_primaries() first."
    )


def test_another_database_is_refused_with_what_to_do(addresses: None) -> None:
    """Where the name differs, the databases of the test were not set up."""
    point_mirrors_to_primaries()
    connections["replica1"].settings_dict["NAME"] = "other"
    with mirrors_are_replicas(), scope(), pytest.raises(ConfigurationError) as caught:
        Note.objects.first()
    assert str(caught.value) == (
        "'replica1' is not the database of 'default': it has another NAME. Set TEST['MIRROR'] of "
        "'replica1' to 'default', and set up the test databases."
    )
