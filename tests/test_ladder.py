"""What happens where all replicas lag, and where the primary is down."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.test import Client

from django_replica_router import use_primary
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import deciding, search
from django_replica_router.routing.budget import Budget
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import (
    PATIENT,
    wait_until,
    wait_until_known,
    wait_until_reachable,
    wait_until_routed,
)
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


def count(request: HttpRequest) -> int:
    """Read something."""
    return Note.objects.count()


def let_all_lag(cluster: Cluster) -> None:
    """Return once all replicas are known to lag more than MAX_LAG, which is 0.4 s."""
    wait_until_routed()
    for replica in cluster.replicas:
        replica.pause()
    Tag.objects.create(name="late")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "lag to be noticed")


def test_the_least_lagged_serves_within_a_declared_bound(
    cluster: Cluster, settings: Any, served: Served
) -> None:
    """Where all lag too far, the freshest is better than a flooded primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4, "FALLBACK_LAG": 3600.0}
    let_all_lag(cluster)
    visit(Client(), count)
    assert served.only_replicas("notes_note")


def test_the_least_lagged_must_have_what_the_user_has_written(
    ann: User, cluster: Cluster, settings: Any
) -> None:
    """The bound is for lag, not for the guarantee."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4, "FALLBACK_LAG": 3600.0}
    client = sign_in(ann)
    let_all_lag(cluster)
    visit(client, lambda request: Note.objects.create(owner=ann, title="new") and None, "post")
    assert visit(client, count) == 1


def test_beyond_its_share_the_primary_is_not_asked(
    cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then 503, with a header that says when to come again."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0, "MAX_LAG": 0.4, "PRIMARY_SHARE": 0.1}
    # What this process has decided before, and how fast it decides, does not count.
    budget = Budget(clock=lambda: 0.0)
    monkeypatch.setattr(deciding, "primary_budget", budget)
    monkeypatch.setattr(search, "primary_budget", budget)
    let_all_lag(cluster)
    client = Client()
    answers = [visit(client, count) for _ in range(60)]
    refused = [answer for answer in answers if answer != 0]
    assert len(answers) - len(refused) == 20
    assert {answer.status_code for answer in refused} == {503}
    assert {answer["Retry-After"] for answer in refused} == {"1"}
    for replica in cluster.replicas:
        replica.resume()
    wait_until(lambda: visit(client, count) == 0, "a replica to serve")


def test_the_share_is_counted_over_a_window() -> None:
    """What was long ago neither grants nor refuses."""
    now = 0.0
    budget = Budget(clock=lambda: now)
    for _ in range(100):
        budget.note_decision()
    assert [budget.grant(0.5) for _ in range(51)] == [True] * 50 + [False]
    for _ in range(8):
        now += 11.0
        budget.note_decision()
    assert budget.grant(0.0) is True


def test_with_the_primary_down_the_site_can_be_read(
    ann: User, cluster: Cluster, settings: Any
) -> None:
    """By one setting; what asks for the primary fails, and all is as before when it is back."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_DOWN": "replicas", "MAX_LAG": 0.4}
    Note.objects.create(owner=ann, title="first")
    client = sign_in(ann)
    client.raise_request_exception = False
    wait_until_known(cluster)
    assert visit(client, count) == 1
    cluster.primary.stop()
    try:
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
        wait_until(
            lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "readings to grow old"
        )
        for _ in range(3):
            assert visit(client, count) == 1
            assert visit(Client(), count) == 1
        assert visit(client, use_primary(count)).status_code == 500
    finally:
        cluster.primary.start()
        wait_until_reachable("default")
    wait_until(lambda: not monitor.known.primary_is_down, "the primary to be back")
    wait_until_routed()
    # As Django does at the end of a request; its test client leaves it out.
    connections["default"].close_if_unusable_or_obsolete()
    assert visit(client, use_primary(count)) == 1


def test_with_the_primary_down_reads_that_need_it_fail_by_default(
    ann: User, cluster: Cluster, settings: Any
) -> None:
    """Nobody is shown old data who has not agreed to it."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4}
    wait_until_routed()
    monitor = find_monitor("default")
    assert monitor is not None
    cluster.primary.stop()
    try:
        wait_until(
            lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "readings to grow old"
        )
        client = Client(raise_request_exception=False)
        assert visit(client, count).status_code == 500
    finally:
        cluster.primary.start()
        wait_until_reachable("default")
    wait_until_routed()
