"""What a look at a replica means."""

from __future__ import annotations

import math
from typing import Any

import psycopg
import pytest

from django_replica_router.policy import Replica, ReplicaState, may_serve
from django_replica_router.sql.answering import ServerIdentity
from django_replica_router.sql.standby import Examination, ReplicaAnswer
from django_replica_router.values.tokens import Position
from tests.monitored import STREAMING, Cluster, cluster, no_real_monitor  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


# What a look at a replica means


SYSTEM = "7000000000000000001"
PRIMARY_LIFE = ("start", "10.0.0.1", 5432)
LIFE = ("start", "10.0.0.2", 5432)
OTHER_LIFE = ("start", "10.0.0.3", 5432)
MINE = ServerIdentity(SYSTEM, LIFE)
FOREIGN = ServerIdentity("7000000000000000002", LIFE)
HEALTHY = Examination(is_paused=False, delay=0.0, has_receiver=True, timeline=1)


class Replies:
    """What the replica "r1" says of itself, to a poller which is run by hand."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.poller = cluster.monitor._pollers["r1"]
        self.poller.looks.identity = MINE
        self.answer = ReplicaAnswer(True, 100, LIFE)
        self.system = SYSTEM
        self.examination = HEALTHY
        self.examined = 0
        self.takes = 0.0
        cluster.monitor.known.primary_looks.identity = ServerIdentity(SYSTEM, PRIMARY_LIFE)
        monkeypatch.setattr("django_replica_router.sql.standby.ask_replica", self._ask)
        monkeypatch.setattr("django_replica_router.sql.standby.examine_replica", self._examine)
        monkeypatch.setattr("django_replica_router.sql.answering.identify", self._identify)

    def _ask(self, connection: Any) -> ReplicaAnswer:
        self.cluster.now += self.takes
        return self.answer

    def _identify(self, connection: Any) -> ServerIdentity:
        return ServerIdentity(self.system, self.answer.life, self.answer.in_recovery)

    def _examine(self, connection: Any) -> Examination:
        self.examined += 1
        return self.examination

    def look(self) -> ReplicaState:
        """Take one look, and return the state that it gives."""
        self.poller.look(None)  # type: ignore[arg-type]
        return self.cluster.replica().state


@pytest.fixture
def replies(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Replies:
    """Return the answers of a replica that is in perfect health."""
    return Replies(cluster, monkeypatch)


def test_healthy_replica_streams(cluster: Cluster, replies: Replies) -> None:
    """A standby of the same cluster and timeline that tells its position serves."""
    assert replies.look() is ReplicaState.UNKNOWN  # the primary was not asked yet
    cluster.sample(100)
    cluster.now += 1.0
    cluster.sample(100)
    assert replies.look() is STREAMING
    assert cluster.replica() == Replica("r1", STREAMING, 100, 0.0)
    assert cluster.monitor.known.readings["r1"].read_at == cluster.now


@pytest.mark.parametrize("in_recovery", [True, False])
@pytest.mark.parametrize("replayed", [None, 0, 100])
@pytest.mark.parametrize("identity", [None, MINE, FOREIGN], ids=["unknown", "mine", "foreign"])
@pytest.mark.parametrize("timeline", [0, 1, 2])
@pytest.mark.parametrize("has_sample", [True, False])
def test_unknown_is_never_healthy(
    cluster: Cluster,
    replies: Replies,
    in_recovery: bool,
    replayed: int | None,
    identity: ServerIdentity | None,
    timeline: int,
    has_sample: bool,
) -> None:
    """A replica streams only where all that is asked is known and right, and else tells why not."""
    if has_sample:
        cluster.sample(100)
    replies.poller.looks.identity = identity
    replies.answer = ReplicaAnswer(in_recovery, replayed, LIFE)
    replies.examination = HEALTHY._replace(timeline=timeline)
    faults = [
        (not has_sample, ReplicaState.UNKNOWN),
        (identity != MINE, ReplicaState.FOREIGN),
        (not in_recovery, ReplicaState.PROMOTED),
        (timeline != 1, ReplicaState.TIMELINE),
        (replayed is None, ReplicaState.NO_POSITION),
    ]
    expected = next((state for holds, state in faults if holds), STREAMING)
    assert replies.look() is expected
    assert cluster.replica().watermark == (replayed if expected is STREAMING else -1)


def test_primary_itself_is_told_from_a_promoted_replica(cluster: Cluster, replies: Replies) -> None:
    """An alias that reaches the primary is no replica, and says so."""
    cluster.sample(100)
    replies.answer = ReplicaAnswer(False, 100, PRIMARY_LIFE)
    assert replies.look() is ReplicaState.PRIMARY


def test_pooler_that_leads_to_another_cluster_is_noticed(
    cluster: Cluster, replies: Replies
) -> None:
    """On one connection, the next answer may be of a server that was never asked who it is."""
    cluster.sample(100)
    assert replies.look() is STREAMING
    replies.system = FOREIGN.system
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    assert replies.look() is ReplicaState.FOREIGN


def test_replica_that_stayed_on_the_old_timeline_is_out(cluster: Cluster, replies: Replies) -> None:
    """A replica that has more than the new primary, of the old history, does not serve."""
    cluster.sample(500)
    replies.answer = replies.answer._replace(replayed=500)
    assert replies.look() is STREAMING
    cluster.now += 0.1
    cluster.sample(450, timeline=2)
    for lsn in (460, 499, 500, 501, 900):
        assert replies.look() is not STREAMING
        assert not may_serve(cluster.replica(), Position(2, 460), 10.0)
        cluster.now += 1.0
        cluster.sample(lsn, timeline=2)
    replies.examination = HEALTHY._replace(timeline=2)
    replies.answer = replies.answer._replace(replayed=900)
    assert replies.look() is STREAMING


@pytest.mark.parametrize(
    ("takes", "state"), [(0.0, STREAMING), (1.0, STREAMING), (1.01, ReplicaState.SLOW)]
)
def test_replica_that_takes_too_long_is_out(
    cluster: Cluster, replies: Replies, takes: float, state: ReplicaState
) -> None:
    """An answer that took more than a second is right, but nobody should wait so long for the next."""
    cluster.sample(100)
    replies.takes = takes
    assert replies.look() is state


def test_position_is_of_the_moment_before_it_was_asked_for(
    cluster: Cluster, replies: Replies
) -> None:
    """A reading counts from before the question, since the answer may be as old as that."""
    cluster.sample(100)
    began = cluster.now
    replies.takes = 0.75
    replies.look()
    assert cluster.monitor.known.readings["r1"].read_at == began


def test_replica_is_examined_at_most_twice_an_interval(cluster: Cluster, replies: Replies) -> None:
    """Close looks for a waiting request do not ask all questions each time; another server is asked all."""
    cluster.sample(100)
    for _ in range(10):
        replies.look()
        cluster.now += 0.01
    assert replies.examined == 1
    cluster.now += 0.5
    replies.look()
    assert replies.examined == 2
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    replies.look()
    assert replies.examined == 3


def test_new_life_forgets_the_old_one(cluster: Cluster, replies: Replies) -> None:
    """A server that was started anew, or another one, keeps nothing of what was known."""
    cluster.sample(100)
    replies.look()
    assert cluster.replica().watermark == 100
    replies.answer = ReplicaAnswer(True, 60, OTHER_LIFE)
    assert replies.look() is STREAMING
    assert cluster.replica() == Replica("r1", STREAMING, 60, math.inf)
    assert replies.poller.life == OTHER_LIFE


def test_servers_that_answer_in_turn_are_noticed(cluster: Cluster, replies: Replies) -> None:
    """A life that is over and comes back belongs to another server behind the same alias."""
    cluster.sample(100)
    found = []
    for life in (LIFE, OTHER_LIFE, LIFE):
        replies.answer = replies.answer._replace(life=life)
        assert replies.look() is STREAMING
        found.append("r1" in cluster.monitor.servers.endpoints)
    assert found == [False, False, True]
    assert "r2" not in cluster.monitor.servers.endpoints


def test_request_that_met_another_server_is_believed(cluster: Cluster, replies: Replies) -> None:
    """Where a request and the next look meet different servers, the alias is several."""
    cluster.sample(100)
    replies.look()
    cluster.woken()
    assert cluster.monitor.is_same_server("r1", LIFE)
    assert cluster.woken() == []
    assert not cluster.monitor.is_same_server("r1", OTHER_LIFE)
    assert cluster.woken() == ["r1"]
    assert replies.look() is STREAMING
    assert "r1" in cluster.monitor.servers.endpoints


def test_request_that_met_a_server_before_its_restart_proves_nothing(
    cluster: Cluster, replies: Replies
) -> None:
    """Its report may come late: the alias is one server nevertheless."""
    cluster.sample(100)
    assert replies.look() is STREAMING
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    replies.look()
    assert not cluster.monitor.is_same_server("r1", LIFE)
    replies.look()
    assert "r1" not in cluster.monitor.servers.endpoints


def test_restart_that_a_request_noticed_first_is_a_restart(
    cluster: Cluster, replies: Replies
) -> None:
    """Where the next look meets the server that the request has met, it was started anew."""
    cluster.sample(100)
    replies.look()
    assert not cluster.monitor.is_same_server("r1", OTHER_LIFE)
    replies.answer = replies.answer._replace(life=OTHER_LIFE)
    assert replies.look() is STREAMING
    assert cluster.monitor.is_same_server("r1", OTHER_LIFE)


@pytest.mark.parametrize(
    ("examination", "remark"),
    [
        (HEALTHY, ""),
        (HEALTHY._replace(is_paused=True), "its replay is paused"),
        (HEALTHY._replace(has_receiver=False), "it receives no WAL"),
        (HEALTHY._replace(delay=2.5), "it delays replay by 2.5 s"),
        (
            Examination(True, 60.0, False, 1),
            "its replay is paused, it receives no WAL, it delays replay by 60 s",
        ),
    ],
    ids=["healthy", "paused", "cut", "delayed", "all"],
)
def test_what_is_unusual_is_logged_and_takes_no_replica_out(
    cluster: Cluster,
    replies: Replies,
    caplog: pytest.LogCaptureFixture,
    examination: Examination,
    remark: str,
) -> None:
    """A paused, cut or delayed replica is told in the log once, and serves while it is young enough."""
    cluster.sample(100)
    replies.look()
    caplog.clear()
    replies.examination = examination
    for _ in range(3):
        cluster.now += 1.0
        assert replies.look() is STREAMING
    assert caplog.messages == ([f"Replica 'r1': {remark}."] if remark else [])
    caplog.clear()
    replies.examination = HEALTHY
    cluster.now += 1.0
    replies.look()
    assert caplog.messages == (["Replica 'r1': nothing unusual any more."] if remark else [])


def test_what_is_unusual_is_told_once_where_the_replica_answers_before_the_primary(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """As at the start of a process: what the first sample makes unknown is no news of that."""
    cluster.read(100, state=ReplicaState.UNKNOWN, remark="its replay is paused")
    cluster.sample(100)
    cluster.read(100, remark="its replay is paused")
    assert caplog.messages == ["Replica 'r1': its replay is paused."]


@pytest.mark.parametrize("before", [ReplicaState.UNKNOWN, ReplicaState.SILENT])
def test_what_is_unusual_about_a_replica_that_comes_into_service_is_logged(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, before: ReplicaState
) -> None:
    """At the start, or after it was lost for a moment: its state is news, and so is what is unusual."""
    cluster.sample(100)
    cluster.monitor.known.lose("r1", before, "")
    caplog.clear()
    for _ in range(2):
        cluster.read(100, remark="its replay is paused")
    assert caplog.messages == ["Replica 'r1': its replay is paused."]
    caplog.clear()
    cluster.read(100, state=ReplicaState.TIMELINE, remark="it receives no WAL")
    text = f"Replica 'r1' does not serve: {ReplicaState.TIMELINE.value}. it receives no WAL"
    assert caplog.messages == [text]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (OSError("refused"), ReplicaState.UNREACHABLE),
        (psycopg.OperationalError("refused"), ReplicaState.UNREACHABLE),
        (psycopg.errors.ConnectionTimeout("timed out"), ReplicaState.SILENT),
    ],
    ids=["system", "driver", "timeout"],
)
def test_failed_look_takes_the_replica_out(
    cluster: Cluster, replies: Replies, error: Exception, state: ReplicaState
) -> None:
    """A look that fails says whether the replica refuses or is silent."""
    cluster.sample(100)
    replies.look()
    replies.poller.failed(error)
    assert cluster.replica().state is state
