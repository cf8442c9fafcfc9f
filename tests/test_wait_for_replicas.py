"""Waiting for replicas, and rather having none than one that is late."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import transaction

from django_replica_router import (
    await_for_replicas,
    scope,
    use_replica,
    wait_for_replicas,
)
from django_replica_router.errors import (
    ConfigurationError,
    PositionError,
    ReplicasLagError,
    TooStale,
)
from django_replica_router.recording import carrying
from django_replica_router.replicas.registry import find_monitor
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until, wait_until_known, wait_until_routed
from tests.helpers import Served
from tests.site import Client, visit

pytestmark = pytest.mark.usefixtures("test_site", "note")


def resumed_later(cluster: Cluster) -> threading.Timer:
    """Have the replicas replay again in a moment."""

    def resume() -> None:
        for replica in cluster.replicas:
            replica.resume()

    timer = threading.Timer(0.3, resume)
    timer.start()
    return timer


@pytest.mark.parametrize(
    "wait",
    [wait_for_replicas, lambda **kwargs: async_to_sync(await_for_replicas)(**kwargs)],
    ids=["sync", "async"],
)
def test_a_back_fill_waits_for_what_it_has_written(
    lagging: Cluster, wait: Callable[..., None]
) -> None:
    """And goes on when all replicas have it."""
    Note.objects.update(title="second")
    timer = resumed_later(lagging)
    wait()
    timer.join()
    titles = {Note.objects.using(alias).get().title for alias in ("replica1", "replica2")}
    assert titles == {"second"}


def test_who_is_late_is_told(cluster: Cluster) -> None:
    """The one replica that does not replay, and not the one that does."""
    cluster.replicas[1].pause()
    Note.objects.update(title="second")
    with pytest.raises(
        TooStale, match=r"After 0\.5 s these replicas of 'default' are late"
    ) as told:
        wait_for_replicas(timeout=0.5)
    assert list(told.value.replicas) == ["replica2"]
    assert told.value.replicas["replica2"] > 0


def test_a_lag_is_waited_for(lagging: Cluster, settings: Any) -> None:
    """A bound that is wide enough is kept at once, and one that is not, when they have caught up."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "INTERVAL": 0.05}
    wait_until_routed()
    Note.objects.update(title="second")
    wait_for_replicas(max_lag=3600.0, timeout=0.0)
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.2, "lag to be noticed")
    with pytest.raises(TooStale):
        wait_for_replicas(max_lag=0.2, timeout=0.1)
    timer = resumed_later(lagging)
    wait_for_replicas(max_lag=0.2)
    timer.join()


def test_a_token_is_waited_for(lagging: Cluster) -> None:
    """And of what was written since, nothing."""
    wait_for_replicas(token="", timeout=0.0)
    with scope() as opened:
        Note.objects.update(title="second")
        token = opened.token
    with pytest.raises(TooStale):
        wait_for_replicas(token=token, timeout=0.1)
    for replica in lagging.replicas:
        replica.resume()
    wait_for_replicas(token=str(token))
    for replica in lagging.replicas:
        replica.pause()
    Note.objects.update(title="third")
    wait_for_replicas(token=token, timeout=0.0)


def test_inside_a_transaction_nothing_has_a_position(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has a write that could not be located."""
    with transaction.atomic(), pytest.raises(PositionError, match="outside of transactions"):
        wait_for_replicas()
    monkeypatch.setattr(carrying, "locate", lambda primary, mark: None)
    with scope() as opened:
        Note.objects.update(title="second")
        token = opened.token
    with pytest.raises(PositionError, match="position is not known"):
        wait_for_replicas(token=token)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: wait_for_replicas(timeout=-1), "timeout should be a number of seconds"),
        (lambda: wait_for_replicas(max_lag="2"), "max_lag should be a number of seconds"),  # type: ignore[arg-type]
        (lambda: wait_for_replicas(using="replica1"), "using should be the alias of a primary"),
        (lambda: use_replica(on_stale="fail"), "on_stale should be one of"),  # type: ignore[call-overload]
        (lambda: use_replica(on_stale="wait", timeout=-1), "timeout should be a number"),
    ],
)
def test_a_wrong_argument_is_named(cluster: Cluster, call: Callable[[], Any], told: str) -> None:
    """With what was expected."""
    with pytest.raises(ConfigurationError, match=told):
        call()


def test_rather_no_answer_than_the_primary(lagging: Cluster, served: Served) -> None:
    """As for a report that must not burden it. Without being asked, it would have answered."""
    with scope() as opened:
        Note.objects.update(title="second")
        token = opened.token
    served.clear()
    with scope(token=token):
        with (
            use_replica(on_stale="raise"),
            pytest.raises(TooStale, match="No replica of 'default' may serve") as told,
        ):
            Note.objects.get()
        assert set(told.value.replicas) == {"replica1", "replica2"}
        assert served.aliases("notes_note") == set()
        with use_replica():
            assert Note.objects.get().title == "second"
        assert served.only_primary("notes_note")
        with use_replica(on_stale="raise"), pytest.raises(TooStale):
            Note.objects.get()


def test_rather_waiting_than_the_primary(lagging: Cluster, served: Served) -> None:
    """For as long as the code says."""
    with scope() as opened:
        Note.objects.update(title="second")
        token = opened.token
    served.clear()
    with scope(token=token):
        with use_replica(on_stale="wait", timeout=0.2), pytest.raises(TooStale):
            Note.objects.get()
        timer = resumed_later(lagging)
        with use_replica(on_stale="wait", timeout=60.0):
            assert Note.objects.get().title == "second"
        timer.join()
    assert served.only_replicas("notes_note")


def test_a_replica_that_has_it_serves_at_once(cluster: Cluster, served: Served) -> None:
    """Whatever was to happen else."""
    with scope() as opened:
        Note.objects.update(title="second")
    wait_until_known(cluster)
    served.clear()
    with scope(token=opened.token), use_replica(on_stale="raise"):
        assert Note.objects.get().title == "second"
    assert served.only_replicas("notes_note")


def test_a_page_that_wants_no_primary_is_answered_503(lagging: Cluster) -> None:
    """The browser may come again in a moment."""
    with scope() as opened:
        Note.objects.update(title="second")
    assert issubclass(TooStale, ReplicasLagError)

    def action(request: Any) -> Any:
        with scope(token=opened.token), use_replica(on_stale="raise"):
            return Note.objects.count()

    response = visit(Client(), action)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
