"""How often the token store is asked."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User

from django_replica_router import receivers
from django_replica_router.recording import floors
from testproject.cluster import Cluster
from tests.conftest import wait_until_known
from tests.shortcuts import in_request, is_replica, route
from tests.site import sign_in

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch


def commands(cluster: Cluster) -> int:
    """Return how many commands the cache server has been sent by clients to read tokens."""
    assert cluster.cache is not None
    statistics = cluster.cache.command("INFO", "commandstats")
    # Of a script that it does not have yet it says so, and is sent it.
    return sum(
        int(values["calls"]) - int(values["failed_calls"])
        for name, values in statistics.items()
        if name in READING_COMMANDS
    )


READING_COMMANDS = {"cmdstat_mget", "cmdstat_evalsha", "cmdstat_eval"}


def test_session_and_user_cost_one_question(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """The first time, when the session's record names its user, and each time after."""
    browser = sign_in(ann)
    wait_until_known(cluster)  # else the primary answers, and what it shows is remembered
    asked: list[int] = []
    original = floors.get_store

    def get_store(alias: str) -> Any:
        asked.append(1)
        return original(alias)

    monkeypatch.setattr(floors, "get_store", get_store)
    for _ in range(2):
        asked.clear()
        before = commands(cluster)
        browser.get("/")
        assert len(asked) == 1
        # A script counts the MGET that it runs itself.
        assert commands(cluster) - before <= 2
        assert commands(cluster) - before >= 1


def test_nobody_in_particular_asks_once_in_a_while(cluster: Cluster, monkeypatch: Patch) -> None:
    """Visitors without a session share one question a second."""
    now = [time.monotonic()]
    # Not in the module of that name, by which other threads go as well.
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(floors, "time", clock)
    floors.forget_everybody()
    before = commands(cluster)
    for _ in range(5):
        assert is_replica(in_request(lambda request: route()))
    assert commands(cluster) - before == 1
    now[0] += floors.EVERYBODY_SECONDS + 0.01
    assert is_replica(in_request(lambda request: route()))
    assert commands(cluster) - before == 2


def test_the_last_app_of_a_migration_waits(cluster: Cluster, monkeypatch: Patch) -> None:
    """Afterwards no process goes by an older record for everybody."""
    waited: list[float] = []
    monkeypatch.setattr(receivers, "is_under_test", lambda: False)
    monkeypatch.setattr(receivers, "time", SimpleNamespace(sleep=waited.append))
    configs = [config for config in receivers.apps.get_app_configs() if config.models_module]
    for config in configs:
        receivers.on_post_migrate(sender=config, using="default", plan=[object()])
    assert waited == [floors.EVERYBODY_SECONDS]
