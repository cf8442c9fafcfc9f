"""What requests ask a monitor, and how they wait."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.readings import Wanted
from tests.monitored import INTERVAL, STREAMING, Cluster, cluster, news, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# What requests ask


def test_sample_has_the_replicas_looked_at(cluster: Cluster) -> None:
    """Each new position of the primary is compared with the replicas' at once."""
    cluster.sample(100)
    assert cluster.woken() == ["r1", "r2"]


def test_wanted_position_has_those_looked_at_that_lack_it(cluster: Cluster) -> None:
    """Only replicas that are not known to have the position are looked at."""
    cluster.sample(100)
    cluster.read(100, "r1")
    cluster.read(50, "r2")
    cluster.woken()
    cluster.monitor.waiting.want(80, 0.5)
    assert cluster.woken() == ["r2"]
    cluster.monitor.waiting.want(101, 0.0)
    assert cluster.woken() == ["r1", "r2"]


def test_highest_wanted_position_counts(cluster: Cluster) -> None:
    """A lower position that is wanted later does not replace the higher one."""
    cluster.monitor.waiting.want(80, 0.5)
    assert cluster.monitor.history.wanted == Wanted(80, 999.5)
    cluster.now += 1.0
    cluster.monitor.waiting.want(70, 0.0)
    assert cluster.monitor.history.wanted == Wanted(80, 999.5)
    cluster.monitor.waiting.want(90, 0.25)
    assert cluster.monitor.history.wanted == Wanted(90, 1000.75)


def test_position_is_as_old_as_anybody_has_told(cluster: Cluster) -> None:
    """A token taken anew for an old position does not make the position young.

    Nor is a lower position younger; of a higher one nothing is known but what its token tells.
    """
    want = cluster.monitor.waiting.want
    assert want(80, 0.5) == 0.5
    cluster.now += 1.0
    assert want(80, 0.0) == 1.5
    assert want(70, 0.25) == 1.5
    assert want(80, 4.0) == 4.0
    assert want(90, 0.25) == 0.25


@pytest.mark.parametrize(
    ("first", "second", "age", "within", "expected"),
    [
        ((STREAMING, 0.1), (STREAMING, 5.0), 0.0, 0.1, True),
        ((STREAMING, 0.1), (STREAMING, 5.0), 0.0, 0.09, False),
        ((STREAMING, 5.0), (STREAMING, 0.1), 0.0, 0.1, True),
        ((STREAMING, 5.0), (STREAMING, 5.0), 4.9, 0.1, True),
        ((STREAMING, 5.0), (STREAMING, 5.0), 4.8, 0.1, False),
        ((ReplicaState.UNREACHABLE, 0.0), (STREAMING, 5.0), 0.0, 0.1, False),
        ((ReplicaState.UNKNOWN, 0.0), (ReplicaState.AHEAD, 0.0), 9.0, 9.0, False),
    ],
)
def test_catching_up_is_expected_by_experience(
    cluster: Cluster,
    first: tuple[ReplicaState, float],
    second: tuple[ReplicaState, float],
    age: float,
    within: float,
    expected: bool,
) -> None:
    """Waiting pays where some replica in service usually has a position of that age so soon."""
    cluster.sample(100)
    for alias, (state, catch_up) in (("r1", first), ("r2", second)):
        cluster.read(50, alias, state=state, catch_up=catch_up)
    assert cluster.monitor.waiting.expects(age, within) is expected


def test_what_was_looked_at_since_then_is_known(cluster: Cluster) -> None:
    """A look counts from its moment on, for the replicas that are in service."""
    cluster.sample(100)
    cluster.read(100, "r1")
    cluster.now += 1.0
    cluster.read(100, "r2")
    replicas = cluster.monitor.health.replicas()
    assert cluster.monitor.waiting.has_looked_since(1000.0, replicas)
    assert not cluster.monitor.waiting.has_looked_since(1000.5, replicas)
    assert cluster.monitor.waiting.has_looked_since(1000.5, replicas[1:])
    assert cluster.monitor.waiting.has_looked_since(1000.5, [])
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    cluster.now += 1.0
    cluster.read(100, "r2")
    assert cluster.monitor.waiting.has_looked_since(1001.5, cluster.monitor.health.replicas())


@pytest.mark.parametrize(
    ("age", "max_lag", "expected"),
    [(0.0, 10.0, []), (2.5, 10.0, []), (2.6, 10.0, ["default"]), (0.1, 0.0, ["default"])],
)
def test_primary_is_sampled_where_the_last_sample_proves_too_little(
    cluster: Cluster, age: float, max_lag: float, expected: list[str]
) -> None:
    """A sample older than a quarter of the lag that is allowed is renewed at once."""
    cluster.sample(100)
    cluster.woken()
    cluster.now += age
    cluster.monitor.known.refresh(max_lag)
    assert cluster.woken() == expected


def test_primary_is_sampled_where_it_never_was(cluster: Cluster) -> None:
    """Before the first sample any request asks for one."""
    cluster.monitor.known.refresh(10.0)
    assert cluster.woken() == ["default"]


def test_replica_that_failed_a_request_is_looked_at_at_once(
    cluster: Cluster, news: list[Any]
) -> None:
    """Reporting a failure takes the replica out, tells it, and has it looked at."""
    cluster.sample(100)
    cluster.read(100)
    cluster.woken()
    news.clear()
    cluster.monitor.report("r1", OSError("refused"))
    assert cluster.replica().state is ReplicaState.UNREACHABLE
    assert cluster.woken() == ["r1"]
    assert news == [("lost", "r1", ReplicaState.UNREACHABLE)]


def test_server_that_fails_is_given_time(cluster: Cluster) -> None:
    """While looks at a server fail, nobody hurries the next one; stopping does."""
    looks = cluster.monitor.known.looks["r1"]
    looks.failures = 1
    cluster.sample(100)
    cluster.monitor.waiting.want(50, 0.0)
    cluster.monitor.report("r1", OSError("refused"))
    assert cluster.woken() == ["r2"]
    cluster.monitor.stop()
    assert cluster.woken() == ["default", "r1", "r2"]


def test_monitor_knows_whom_it_serves(cluster: Cluster) -> None:
    """Another list of replicas, another order or another interval wants another monitor."""
    monitor = cluster.monitor
    assert monitor.serves(("r1", "r2"), INTERVAL)
    assert monitor.serves(["r1", "r2"], INTERVAL)
    assert not monitor.serves(("r1",), INTERVAL)
    assert not monitor.serves(("r2", "r1"), INTERVAL)
    assert not monitor.serves(("r1", "r2", "r3"), INTERVAL)
    assert not monitor.serves(("r1", "r2"), 0.5)


# Waiting


def test_wait_ends_at_once_where_there_is_nothing_to_wait_for(cluster: Cluster) -> None:
    """What is found by the first look is returned, without any wait, also with no time at all."""
    for timeout in (60.0, 0.0, -1.0):
        looks: list[int] = []

        def look(looks: list[int] = looks) -> str:
            looks.append(1)
            return "found"

        assert cluster.monitor.waiting.wait_for(look, timeout) == "found"
        assert len(looks) == 1


@pytest.mark.parametrize("found", [False, 0, ""], ids=repr)
def test_anything_but_none_ends_the_wait(cluster: Cluster, found: Any) -> None:
    """A look may find something false, and that ends the wait as well."""
    assert cluster.monitor.waiting.wait_for(lambda: found, 60.0) is found


@pytest.mark.parametrize("timeout", [0.0, 0.001])
def test_wait_in_vain_ends_with_its_time(cluster: Cluster, timeout: float) -> None:
    """After the time-out there is a last look, and then None."""
    looks: list[int] = []
    assert cluster.monitor.waiting.wait_for(lambda: looks.append(1), timeout) is None
    assert len(looks) >= 1


def test_last_look_after_the_time_out_counts(cluster: Cluster) -> None:
    """What is there when the time is over is found."""
    answers = iter([None, "late"])
    assert cluster.monitor.waiting.wait_for(lambda: next(answers, "late"), 0.001) == "late"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((100, STREAMING), (100, STREAMING), True),
        ((101, STREAMING), (500, STREAMING), True),
        ((100, STREAMING), (99, STREAMING), False),
        ((100, STREAMING), (0, ReplicaState.UNREACHABLE), True),
        ((0, ReplicaState.AHEAD), (0, ReplicaState.TIMELINE), True),
        ((100, STREAMING), (0, ReplicaState.UNKNOWN), False),
    ],
)
def test_all_replicas_in_service_are_waited_for(
    cluster: Cluster,
    first: tuple[int, ReplicaState],
    second: tuple[int, ReplicaState],
    expected: bool,
) -> None:
    """A position has arrived where no replica that serves lacks it; the others do not matter."""
    cluster.sample(100)
    for alias, (lsn, state) in (("r1", first), ("r2", second)):
        cluster.read(lsn, alias, state=state)
    assert cluster.monitor.waiting.wait_for_all(100, 0.001) is expected
    assert cluster.monitor.history.wanted.lsn == 100


def test_who_reads_does_not_wait_for_a_replica_that_is_too_old_to_serve(cluster: Cluster) -> None:
    """One that is delayed by hours would keep every response back."""
    cluster.sample(100, at=1000.0)
    cluster.read(100, "r1")
    cluster.sample(200, at=1005.0)
    cluster.read(200, "r2")
    cluster.now = 1005.0
    for max_lag, expected in ((10.0, False), (1.0, True)):
        assert cluster.monitor.waiting.wait_for_all(200, 0.001, max_lag) is expected


@pytest.mark.parametrize("event", ["read", "sample"])
def test_wait_ends_with_the_news(cluster: Cluster, event: str) -> None:
    """Every reading and every sample wakes all who wait, each of whom looks again."""
    cluster.sample(100)
    cluster.read(100)
    found: list[Any] = []
    waiting = threading.Semaphore(0)

    def look() -> int | None:
        waiting.release()
        if event == "read":
            return lsn if (lsn := cluster.replica().watermark) > 100 else None
        return timeline if (timeline := cluster.monitor.history.timeline) == 2 else None

    threads = [
        threading.Thread(target=lambda: found.append(cluster.monitor.waiting.wait_for(look, 60.0)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert waiting.acquire(timeout=5.0)
    # publish_... takes the lock, which a waiter gives away only when it waits.
    cluster.read(101) if event == "read" else cluster.sample(110, timeline=2)
    for thread in threads:
        thread.join(5.0)
    assert found == ([101] * 3 if event == "read" else [2] * 3)


def test_error_of_a_look_reaches_who_waits(cluster: Cluster) -> None:
    """A look that fails does not hang, and leaves the monitor usable."""

    def fail() -> None:
        raise ValueError("look")

    with pytest.raises(ValueError, match="look"):
        cluster.monitor.waiting.wait_for(fail, 60.0)
    cluster.read(100)
