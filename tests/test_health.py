"""Whether a site can serve, as probes are told."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.decorators import login_not_required
from django.core.cache import caches
from django.db import OperationalError, connections
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path

from django_replica_router.contrib.status import views
from django_replica_router.policy import ReplicaState
from django_replica_router.replicas.health import DOWN, PRIMARY, UNKNOWN, Health
from django_replica_router.replicas.pollers import PrimaryPoller
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.status import serving
from django_replica_router.status.serving import Verdict, judge
from django_replica_router.stores.redis import RedisServer
from testproject.cluster import Cluster
from tests.conftest import wait_until
from tests.controls import fail_without
from tests.monitored import Cluster as Monitored

HEALTH = "/replicas/health/"


@login_not_required
def unguarded(request: HttpRequest) -> HttpResponse:
    """Tell the same, as an ordinary view of the site."""
    return views.health(request)


urlpatterns = [path("unguarded/", unguarded)]


def ask(**query: Any) -> tuple[int, dict[str, Any]]:
    """Return the status and the document, as a probe gets them."""
    response = Client().get(HEALTH, query)
    assert "no-store" in response["Cache-Control"]
    return response.status_code, response.json()


def states(told: dict[str, Any]) -> dict[str, str]:
    """Return the state of each server that does not serve."""
    return {reason["alias"]: reason["state"] for reason in told["reasons"]}


def wait_for(status: int, found: dict[str, str]) -> dict[str, Any]:
    """Return the document once probes are told that."""
    last: list[Any] = []

    def is_told() -> bool:
        last[:] = ask()
        return last[0] == status and states(last[1]) == found

    wait_until(is_told, f"{status} with {found}")
    told: dict[str, Any] = last[1]
    return told


def test_a_site_serves_whose_servers_do(cluster: Cluster) -> None:
    """With the age of that, and no reason to the contrary."""
    told = wait_for(200, {})
    assert told["serve"] is True
    assert told["age"] < 10.0


def test_an_age_is_told_where_each_primary_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest; of one that never has, nobody can tell."""
    ages: dict[str, float | None] = {"a": 1.0, "b": 3.0, "c": None}
    monkeypatch.setattr(serving, "get_monitor", lambda primary: primary)
    monkeypatch.setattr(serving, "_judge", lambda monitor, config: Verdict(True, ages[monitor], ()))
    assert judge("ab").age == 3.0
    assert judge("abc").age is None
    assert judge("").serve is False


def test_nothing_is_asked_for_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database and no cache, whatever cookie comes along."""
    wait_for(200, {})

    def refuse(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(RedisServer, "mget", refuse)
    monkeypatch.setattr(type(caches["default"]), "get", refuse)
    monkeypatch.setattr(type(caches["default"]), "get_many", refuse)
    client = Client()
    client.cookies["sessionid"] = "forged"
    logs = [CaptureQueriesContext(connections[alias]) for alias in connections]
    for log in logs:
        log.__enter__()
    try:
        assert client.get(HEALTH).status_code == 200
    finally:
        for log in logs:
            log.__exit__(None, None, None)
    assert [query for log in logs for query in log.captured_queries] == []


def test_what_is_not_known_does_not_serve(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has not looked yet says so, and has begun to look."""
    stop_monitors()
    with monkeypatch.context() as patch:
        patch.setattr(PrimaryPoller, "look", lambda self, connection: None)
        status, told = ask()
        assert (status, told["serve"], told["age"]) == (503, False, None)
        assert states(told)["default"] == "UNKNOWN"
    stop_monitors()
    wait_for(200, {})


def test_what_was_known_a_while_ago_does_not_serve() -> None:
    """A poller that has ended, or hangs, lets nothing be known; a look makes it known again."""
    cluster = Monitored()
    health = cluster.monitor.health
    assert health.primary_condition() == UNKNOWN
    cluster.sample(100)
    cluster.now += health.silence
    assert health.primary_condition() == PRIMARY
    cluster.now += 0.1
    assert health.primary_condition() == UNKNOWN
    cluster.monitor.known.primary_looks.failures = 1
    assert health.primary_condition() == DOWN


def test_that_test_fails_where_the_unknown_is_healthy(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Its control: the rule taken out."""

    def take_out(patch: pytest.MonkeyPatch) -> None:
        def answers(health: Health) -> str:
            return DOWN if health.known.primary_is_down else PRIMARY

        patch.setattr(Health, "primary_condition", answers)

    fail_without(take_out, test_what_was_known_a_while_ago_does_not_serve, {}, request)


def test_a_replica_that_is_out_takes_nobody_out(healed: Cluster) -> None:
    """The site serves by the other, and by the primary. No address is told."""
    stop_monitors()
    wait_for(200, {})
    stopped = healed.replicas[0]
    stopped.stop()
    told = wait_for(200, {"replica1": "UNREACHABLE"})
    assert told["serve"] is True
    (reason,) = told["reasons"]
    assert reason["sentence"] == ReplicaState.UNREACHABLE.value
    assert str(stopped.port) not in str(told)
    healed.replicas[1].stop()
    wait_for(200, {"replica1": "UNREACHABLE", "replica2": "UNREACHABLE"})


def test_without_the_primary_a_site_does_not_serve(healed: Cluster, settings: Any) -> None:
    """Unless its replicas are to serve without it, and one does: one that lags, too. Not where they serve nobody."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "MAX_LAG": 0.4}
    stop_monitors()
    wait_for(200, {})
    healed.primary.stop()
    down = {"default": "DOWN", "replica1": "LAGGING", "replica2": "LAGGING"}
    told = wait_for(503, down)
    assert told["serve"] is False
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_DOWN": "replicas"}
    told = wait_for(200, down)
    assert "replicas serve reads" in told["reasons"][0]["sentence"]
    for nobody in ({"SHADOW": True}, {"ROLLOUT": 0.0}, {"ENABLED": False}):
        with override_settings(REPLICA_ROUTER={**settings.REPLICA_ROUTER, **nobody}):
            told = wait_for(503, down)
            assert "replicas" not in told["reasons"][0]["sentence"]
    stop_monitors()
    wait_for(503, {"default": "DOWN", "replica1": "UNKNOWN", "replica2": "UNKNOWN"})


def test_a_site_that_opens_transactions_around_views_is_told_as_well(
    healed: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ATOMIC_REQUESTS asks each database before a view is called, but not before this one."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CLUSTERS": {"default": ["replica1"]}}
    wait_for(200, {})
    monkeypatch.setitem(connections.settings["replica2"], "ATOMIC_REQUESTS", True)
    healed.replicas[1].stop()
    connections["replica2"].close()
    assert ask()[0] == 200
    settings.ROOT_URLCONF = __name__
    with pytest.raises(OperationalError):  # the control: any other view
        Client().get("/unguarded/")


def test_a_probe_that_is_told_not_to_serve_is_no_error_of_the_site(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes every few seconds: nothing is logged of it, or mailed to the admins."""
    stop_monitors()
    monkeypatch.setattr(PrimaryPoller, "look", lambda self, connection: None)
    assert ask()[0] == 503
    assert [record for record in caplog.records if record.name == "django.request"] == []


def test_one_cluster_may_be_asked_for(cluster: Cluster) -> None:
    """By the alias of its primary; another alias is a mistake of whoever asks."""
    wait_for(200, {})
    assert ask(database="default")[0] == 200
    status, told = ask(database="replica1")
    assert status == 404
    assert told == {"error": "database should be the alias of a primary, not 'replica1'."}
    assert Client().post(HEALTH).status_code == 405
    assert Client().head(HEALTH).status_code == 200


@pytest.mark.parametrize("clusters", [{"default": []}, {}])
def test_a_site_without_replicas_serves_by_its_primary(
    cluster: Cluster, settings: Any, clusters: dict[str, list[str]]
) -> None:
    """Whoever scales replicas down to none loses no site by that."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CLUSTERS": clusters}
    wait_for(200, {})
    assert not judge([]).serve  # of nothing, nothing is known
