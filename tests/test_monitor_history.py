"""Replicas ahead of the primary, timelines, and the signals of a monitor."""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

import pytest

from django_replica_router.policy import Replica, ReplicaState, may_serve
from django_replica_router.replicas.readings import Wanted
from django_replica_router.signals import replica_restored
from django_replica_router.values.tokens import Position
from tests.monitored import BAD, STREAMING, Cluster, cluster, news, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# Ahead of the primary


def test_replica_ahead_of_the_primary_is_out_and_stays_out(cluster: Cluster) -> None:
    """A replica that has more than its primary follows another history, also when it is overtaken."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    assert cluster.replica().state is ReplicaState.AHEAD
    for lsn in (149, 150, 151, 500):
        cluster.now += 1.0
        cluster.sample(lsn)
        cluster.read(150)
        assert cluster.replica().state is ReplicaState.AHEAD
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.read(500)
    assert cluster.replica().state is ReplicaState.AHEAD
    assert cluster.replica("r2").state is ReplicaState.UNKNOWN


def test_replica_that_was_rebuilt_is_no_longer_ahead(cluster: Cluster) -> None:
    """Another server, or another life of it, is given another chance."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    cluster.monitor.known.forget("r1")
    cluster.now += 1.0
    cluster.sample(102)
    cluster.read(102)
    assert may_serve(cluster.replica(), Position(1, 102), 1.0)


def test_replica_at_the_primarys_very_position_is_not_ahead(cluster: Cluster) -> None:
    """Having all that the primary has is what a good replica does."""
    cluster.sample(100)
    cluster.read(120)
    cluster.now += 1.0
    cluster.sample(120)
    assert cluster.replica().state is STREAMING


def test_reading_that_is_newer_than_the_sample_proves_nothing(cluster: Cluster) -> None:
    """A replica that was asked after the primary may have more than the primary had then."""
    cluster.sample(100)
    cluster.now += 1.0
    cluster.read(150)
    cluster.sample(101, at=cluster.now - 0.5)
    assert cluster.replica().state is STREAMING


def test_answer_that_took_long_proves_nothing(cluster: Cluster) -> None:
    """A replica whose answer came after the primary was asked may have more, though asked before."""
    cluster.sample(90)
    asked_replica = cluster.now + 1.0
    asked_primary = cluster.now + 1.2
    cluster.now += 1.5  # now the replica's answer is here, of a moment since it was asked
    cluster.read(105, at=asked_replica)
    cluster.sample(
        100, at=asked_primary
    )  # the primary's answer was there first, its thread was not
    assert cluster.replica().state is STREAMING
    cluster.now += 1.0
    cluster.sample(104)
    assert cluster.replica().state is ReplicaState.AHEAD


# Timelines


def test_after_a_failover_old_readings_do_not_count(cluster: Cluster) -> None:
    """When the primary is on a new timeline, nothing that was replayed before is known to be of it."""
    cluster.sample(100, timeline=1)
    cluster.read(100, "r1")
    cluster.read(90, "r2")
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    assert cluster.monitor.history.timeline == 2
    assert [replica.state for replica in cluster.monitor.health.replicas()] == [
        ReplicaState.UNKNOWN
    ] * 2
    assert [replica.watermark for replica in cluster.monitor.health.replicas()] == [-1] * 2


def test_after_a_failover_a_replica_counts_from_the_baseline_on(cluster: Cluster) -> None:
    """A replica is unknown until it has replayed what the new timeline had when it was first seen."""
    cluster.sample(100, timeline=1)
    cluster.read(100)
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    for lsn in (100, 105, 109):
        cluster.now += 1.0
        cluster.read(lsn)
        assert cluster.replica() == Replica("r1", ReplicaState.UNKNOWN, -1, math.inf)
    cluster.sample(120, timeline=2)
    cluster.read(111)
    assert cluster.replica().state is STREAMING
    assert cluster.replica().watermark == 111
    assert cluster.replica().age == 3.0


def test_ejected_replica_is_judged_anew_after_a_failover(cluster: Cluster) -> None:
    """A replica that was ahead of the old primary may follow the new one."""
    cluster.sample(100)
    cluster.read(150)
    cluster.now += 1.0
    cluster.sample(101)
    assert cluster.replica().state is ReplicaState.AHEAD
    cluster.now += 1.0
    cluster.sample(150, timeline=2)
    cluster.now += 1.0
    cluster.sample(300, timeline=2)
    cluster.read(300)
    assert cluster.replica().state is STREAMING


def test_failover_ends_all_waiting_for_old_positions(cluster: Cluster) -> None:
    """A position of the old timeline is not chased on the new one."""
    cluster.sample(100)
    cluster.monitor.waiting.want(10**6, 0.0)
    cluster.sample(110, timeline=2)
    assert cluster.monitor.history.wanted == Wanted()


def test_failover_is_logged_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The first sample of a new timeline leaves one line, the very first sample none."""
    caplog.set_level(logging.INFO, "django_replica_router")
    cluster.sample(100)
    assert caplog.messages == []
    cluster.sample(110, timeline=2)
    cluster.sample(120, timeline=2)
    assert caplog.messages == [
        "The primary 'default' is on timeline 2 now: its replicas count again once they have "
        "replayed it."
    ]


# Signals


def test_change_is_told_once(cluster: Cluster, news: list[Any]) -> None:
    """A signal is sent when a replica begins or ceases to serve, and not again while it lasts."""
    cluster.sample(100)
    for _ in range(3):
        cluster.read(100)
    assert news == [("restored", "r1", None)]
    news.clear()
    for _ in range(3):
        cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert news == [("lost", "r1", ReplicaState.UNREACHABLE)]
    news.clear()
    cluster.read(100)
    cluster.read(100)
    assert news == [("restored", "r1", None)]


def test_another_reason_is_no_further_loss(
    cluster: Cluster, news: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Between two states that do not serve nothing is sent; the log has each reason."""
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert news == []
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.read(100, state=ReplicaState.PROMOTED)
    cluster.monitor.known.lose("r1", ReplicaState.SILENT, "")
    cluster.read(100)
    assert news == [
        ("restored", "r1", None),
        ("lost", "r1", ReplicaState.UNREACHABLE),
        ("restored", "r1", None),
    ]
    for state in (ReplicaState.UNREACHABLE, ReplicaState.PROMOTED, ReplicaState.SILENT):
        assert state.value in caplog.text


@pytest.mark.parametrize("state", [state for state in BAD if state is not ReplicaState.UNKNOWN])
def test_loss_tells_the_state(cluster: Cluster, news: list[Any], state: ReplicaState) -> None:
    """The signal of a loss says what is wrong."""
    cluster.sample(100)
    cluster.read(100, "r2")
    news.clear()
    cluster.read(100, "r2", state=state)
    assert news == [("lost", "r2", state)]


def test_ejection_is_told(cluster: Cluster, news: list[Any]) -> None:
    """A replica that is found ahead by a sample is told lost, once."""
    cluster.sample(100)
    cluster.read(150)
    news.clear()
    for _ in range(3):
        cluster.now += 1.0
        cluster.sample(101)
        cluster.read(150)
    assert news == [("lost", "r1", ReplicaState.AHEAD)]


def test_failover_is_told_as_a_loss(cluster: Cluster, news: list[Any]) -> None:
    """A replica that does not count on a new timeline is lost, before it is restored."""
    cluster.sample(100)
    cluster.read(100)
    cluster.now += 1.0
    cluster.sample(110, timeline=2)
    cluster.read(111)
    assert news == [
        ("restored", "r1", None),
        ("lost", "r1", ReplicaState.UNKNOWN),
        ("restored", "r1", None),
    ]


def test_listener_that_fails_harms_nobody(cluster: Cluster, news: list[Any]) -> None:
    """A receiver that raises keeps neither the others nor the monitor from going on."""

    def fail(**kwargs: Any) -> None:
        raise ValueError("listener")

    replica_restored.connect(fail)
    try:
        cluster.sample(100)
        cluster.read(100)
    finally:
        replica_restored.disconnect(fail)
    assert news == [("restored", "r1", None)]
    assert cluster.replica().state is STREAMING


def test_listener_may_ask_the_monitor(cluster: Cluster) -> None:
    """Signals are sent outside the lock: a listener in another thread may use the monitor."""
    found: list[Any] = []

    def ask(**kwargs: Any) -> None:
        thread = threading.Thread(
            target=lambda: found.append(cluster.monitor.waiting.wait_for(lambda: "free", 0.0))
        )
        thread.start()
        thread.join(5.0)

    replica_restored.connect(ask)
    try:
        cluster.read(100)
    finally:
        replica_restored.disconnect(ask)
    assert found == ["free"]


def test_changes_are_logged(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which replica is out and why, and when it is back."""
    caplog.set_level(logging.INFO, "django_replica_router")
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, OSError("refused"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "Replica 'r1' serves."),
        (
            "WARNING",
            "Replica 'r1' does not serve: cannot be connected to, or does not answer. refused",
        ),
    ]
