"""What a monitor knows of a replica: at first, its age, its watermark."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_replica_router.policy import Replica, ReplicaState, may_serve
from django_replica_router.replicas.readings import Wanted
from django_replica_router.values.tokens import NOWHERE, Position
from tests.monitored import BAD, STREAMING, Cluster, cluster, news, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# At first


def test_at_first_nothing_is_known(cluster: Cluster) -> None:
    """Before any look no replica may serve, no timeline is known, and nothing is asked for."""
    assert cluster.monitor.health.replicas() == [
        Replica("r1", ReplicaState.UNKNOWN, -1, math.inf),
        Replica("r2", ReplicaState.UNKNOWN, -1, math.inf),
    ]
    assert cluster.monitor.history.timeline is None
    assert cluster.monitor.known.primary_identity is None
    assert cluster.monitor.history.wanted == Wanted(-1, -math.inf)
    assert cluster.woken() == []


def test_reading_without_a_sample_is_of_unknown_age(cluster: Cluster) -> None:
    """A replica that answers before the primary did may be of any age, and serves nobody."""
    cluster.read(100)
    assert cluster.replica() == Replica("r1", STREAMING, 100, math.inf)
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)


def test_a_monitor_that_was_stopped_has_no_news(
    cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
    news: list[tuple[str, str, ReplicaState | None]],
) -> None:
    """What one of its threads that hung finds out late is no business of the next monitor's."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.stop()
    caplog.clear()
    news.clear()
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "late")
    assert (caplog.messages, news) == ([], [])


def test_monitor_that_was_never_started_can_be_stopped(cluster: Cluster) -> None:
    """Making a monitor starts no thread; stopping it then is no error, and ends it for good."""
    monitor = cluster.monitor
    threads = [monitor._primary_poller, monitor._watcher, *monitor._pollers.values()]
    monitor.stop()
    assert [thread.ident for thread in threads] == [None] * 4
    assert monitor.known.stopped


# Age


def test_replica_is_as_old_as_the_newest_sample_that_it_has_replayed(cluster: Cluster) -> None:
    """Age counts from the moment of the newest sample at or before the watermark."""
    for second in range(5):
        cluster.sample(100 + 10 * second, at=1000.0 + second)
    cluster.now = 1004.5
    for lsn, age in [
        (99, math.inf),
        (100, 4.5),
        (109, 4.5),
        (110, 3.5),
        (139, 1.5),
        (140, 0.5),
        (999, 0.5),
    ]:
        fresh = Cluster()
        fresh.now = 1004.5
        for second in range(5):
            fresh.sample(100 + 10 * second, at=1000.0 + second)
        fresh.read(lsn)
        assert fresh.replica().age == age, lsn


def test_idle_cluster_does_not_age(cluster: Cluster) -> None:
    """Where nothing is written for an hour, a replica that has everything stays fresh."""
    for _ in range(3600):
        cluster.sample(100)
        cluster.read(100)
        cluster.now += 1.0
        assert cluster.replica().age == 1.0
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)


def test_replica_whose_receiver_died_ages(cluster: Cluster) -> None:
    """A replica that answers but gets nothing more ages from the last sample it has replayed."""
    for second in range(20):
        cluster.sample(100 + second)
        cluster.read(min(100 + second, 105))
        assert cluster.replica().state is STREAMING
        assert cluster.replica().age == max(0.0, second - 5.0)
        cluster.now += 1.0
    assert not may_serve(cluster.replica(), NOWHERE, 10.0)


def test_replica_that_catches_up_is_young_again(cluster: Cluster) -> None:
    """Age falls at once when the backlog has been replayed, in steps where it is replayed in parts."""
    for second in range(10):
        cluster.sample(100 + second)
        cluster.read(100)
        cluster.now += 1.0
    assert cluster.replica().age == 10.0
    cluster.read(104)
    assert cluster.replica().age == 6.0
    cluster.read(109)
    assert cluster.replica().age == 1.0


def test_age_grows_with_the_clock_between_two_looks(cluster: Cluster) -> None:
    """Nothing that was known a moment ago is taken for known now."""
    cluster.sample(100)
    cluster.read(100)
    cluster.now += 2.25
    assert cluster.replica().age == 2.25


def test_old_samples_are_dropped_and_age_is_not_understated() -> None:
    """A replica that is further behind than the samples reach keeps its last known moment."""
    cluster = Cluster()
    cluster.sample(100)
    cluster.read(100)
    began = cluster.now
    for second in range(3000):
        cluster.now += 1.0
        cluster.sample(200 + second)
    cluster.read(150)
    assert cluster.replica().age == cluster.now - began


steps = st.lists(
    st.tuples(st.sampled_from(["write", "replay", "sample", "read", "lose"]), st.integers(1, 9)),
    max_size=40,
)


@given(steps)
def test_age_is_never_less_than_the_truth(script: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: all that was written before "now - age" has been replayed."""
    cluster = Cluster()
    commits: list[tuple[float, int]] = []
    written = replayed = 100
    for action, amount in script:
        cluster.now += amount / 4
        if action == "write":
            written += amount
            commits.append((cluster.now, written))
        elif action == "replay":
            replayed = min(written, replayed + amount)
        elif action == "sample":
            cluster.sample(written)
        elif action == "read":
            cluster.read(replayed)
        else:
            cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "gone")
        known = cluster.replica()
        assert known.watermark <= replayed
        assert all(lsn <= replayed for at, lsn in commits if at < cluster.now - known.age)


# Watermark


def test_watermark_never_falls(cluster: Cluster) -> None:
    """What a replica was once seen to have replayed stays replayed, whatever it says later."""
    cluster.sample(200)
    for lsn, watermark in [(100, 100), (150, 150), (120, 150), (0, 150), (-1, 150), (151, 151)]:
        cluster.read(lsn)
        assert cluster.replica().watermark == watermark


def test_replicas_are_known_apart(cluster: Cluster) -> None:
    """A reading of one replica says nothing of another."""
    cluster.sample(100)
    cluster.read(100, "r1")
    assert cluster.replica("r1").state is STREAMING
    assert cluster.replica("r2") == Replica("r2", ReplicaState.UNKNOWN, -1, math.inf)


@pytest.mark.parametrize("state", BAD)
def test_replica_in_bad_health_has_no_watermark(cluster: Cluster, state: ReplicaState) -> None:
    """Whatever a replica has replayed before, in another state it serves nobody."""
    cluster.sample(100)
    cluster.read(100)
    cluster.read(100, state=state)
    replica = cluster.replica()
    assert (replica.state, replica.watermark, replica.age) == (state, -1, math.inf)
    cluster.read(100)
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)


def test_forgotten_replica_serves_nobody_until_it_is_read_again(cluster: Cluster) -> None:
    """A server that is another one than before has replayed nothing that is known."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.forget("r1")
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)
    assert cluster.replica().watermark == -1
    cluster.read(60)  # rebuilt from a backup: lower than before, and that counts
    assert cluster.replica().watermark == 60


def test_replica_that_was_started_anew_is_of_unknown_age_at_first(cluster: Cluster) -> None:
    """What it shows may be less than it showed before, up to what the primary had at the start."""
    cluster.sample(90)
    cluster.now += 1.0
    cluster.read(100)
    cluster.sample(100)
    cluster.now += 1.0
    cluster.monitor.known.forget("r1")
    cluster.read(100)
    assert cluster.replica() == Replica("r1", STREAMING, 100, math.inf)
    cluster.now += 1.0
    cluster.sample(110)
    cluster.read(109)
    assert cluster.replica().age == math.inf
    cluster.read(110)
    assert cluster.replica().age == 0.0


def test_lost_replica_serves_nobody_until_it_is_read_again(cluster: Cluster) -> None:
    """A replica that failed a request is out at once, and back with the next look that succeeds."""
    cluster.sample(100)
    cluster.read(100)
    cluster.monitor.known.lose("r1", ReplicaState.UNREACHABLE, "refused")
    assert cluster.replica().state is ReplicaState.UNREACHABLE
    assert not may_serve(cluster.replica(), NOWHERE, 1e9)
    cluster.read(100)
    assert may_serve(cluster.replica(), Position(1, 100), 1.0)
