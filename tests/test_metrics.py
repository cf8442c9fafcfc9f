"""What exporters tell of counts and servers, in one process."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY, CollectorRegistry

import django_replica_router
from django_replica_router import get_stats, pop_stats, scope, use_primary
from django_replica_router.contrib.opentelemetry import instrument
from django_replica_router.contrib.prometheus.registering import register
from django_replica_router.policy import Reason
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.stats import count
from django_replica_router.status import metrics
from django_replica_router.status.metrics import AT_ONCE, CAUSES, EVENTS, METRICS, Kind
from django_replica_router.status.servers import look
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until
from tests.monitoring import Exported, names, scrape, value, values
from tests.test_package import run_python

PACKAGE = Path(django_replica_router.__file__).parent
PATIENCE = 20.0


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry that tells the package's metrics."""
    registry = CollectorRegistry()
    register(registry)
    return registry


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """A reader of OpenTelemetry that asks for them."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    instrument(provider)
    yield reader
    provider.shutdown()


def read_all(reader: InMemoryMetricReader) -> Exported:
    """Return what OpenTelemetry was told, by the names that Prometheus has for it."""
    by_name = {metric.name: metric.prometheus_name for metric in METRICS}
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (by_name[metric.name], frozenset(point.attributes.items())): point.value
        for resource in data.resource_metrics
        for scope_of in resource.scope_metrics
        for metric in scope_of.metrics
        for point in metric.data.data_points
    }


# The table.


def test_each_count_is_told_as_a_metric() -> None:
    """Whatever the code counts has its place in the table, and nothing else is there."""
    code = "".join(file.read_text() for file in PACKAGE.rglob("*.py") if file.name != "metrics.py")
    events = set(re.findall(r'\bcount\(\s*"(\w+)"\s*[,)]', code))
    events |= set(re.findall(r'count\("(\w+)" if \w+ else "\w+"\)', code))
    events |= set(re.findall(r'count\("\w+" if \w+ else "(\w+)"\)', code))
    events |= set(re.findall(r'"(retried_\w+)"', code))
    retried = {event for event in events if event.startswith("retried_")}
    assert retried == {f"retried_{cause}" for cause in CAUSES}
    reasons = {reason.event for reason in Reason}
    assert events - retried - reasons == set(EVENTS)


def test_each_metric_is_named_by_the_rules() -> None:
    """Of Prometheus and OpenTelemetry: base units, counters that say so, and one sentence."""
    assert len({metric.prometheus_name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"replica_router(\.[a-z]+(_[a-z]+)*)+", metric.name)
        assert metric.prometheus_name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert re.fullmatch(r"s|By|\{[a-z]+\}|", metric.unit)
        assert re.fullmatch(r"[A-Z0-9].*[^.]\.", metric.text)


def test_opentelemetry_has_the_names_of_prometheus(cluster: Cluster) -> None:
    """Its own exporter for Prometheus makes the same of them: one dashboard fits both."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    try:
        instrument(provider)
        look("default", PATIENCE)
        count("shadow_reads_lagging", "shadow_reads_from_replica1")
        assert names(scrape(REGISTRY)) == {metric.prometheus_name for metric in METRICS}
    finally:
        provider.shutdown()


# Counts.

SHADOWS = {"replica_router_shadow_reads_total", "replica_router_shadow_decisions_total"}
"""Told where somebody is not routed yet."""


def test_what_has_not_happened_yet_is_zero(
    cluster: Cluster, registry: CollectorRegistry, reader: InMemoryMetricReader
) -> None:
    """The first time that something happens is a rise: without that no alert would see it."""
    stop_monitors()
    for exported in (scrape(registry), read_all(reader)):
        counters = {metric.prometheus_name for metric in METRICS if metric.kind is Kind.COUNTER}
        assert names(exported) == counters - SHADOWS
        assert set(exported.values()) == {0}
        decisions = values(exported, "replica_router_decisions_total")
        assert len(decisions) == len(Reason) - len(AT_ONCE)
        assert len(values(exported, "replica_router_reads_total")) == 3


def test_reads_are_told_by_server_and_by_reason(
    cluster: Cluster, registry: CollectorRegistry, reader: InMemoryMetricReader
) -> None:
    """As the scopes have decided; what rules alone send to the primary is not counted."""
    for _ in range(3):
        with scope():
            list(Note.objects.all())
    with scope(), use_primary():
        list(Note.objects.all())
    count("retried_refused_write", "tokens_unstored")
    for exported in (scrape(registry), read_all(reader)):
        by_server = values(exported, "replica_router_reads_total")
        by_reason = values(exported, "replica_router_decisions_total")
        assert sum(by_server) == sum(by_reason) == 3
        assert value(exported, "replica_router_reads_total", alias="default") == 0
        assert value(exported, "replica_router_decisions_total", reason="CAUGHT_UP") == 3
        assert value(exported, "replica_router_retries_total", cause="refused_write") == 1
        assert value(exported, "replica_router_tokens_unstored_total") == 1
        assert value(exported, "replica_router_writes_unlocated_total") == 0


def test_what_would_go_where_is_told_by_itself(
    cluster: Cluster, registry: CollectorRegistry, settings: Any
) -> None:
    """Of who is not routed yet: the primary serves, and the server that would have is told."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "SHADOW": True}
    with scope():
        list(Note.objects.all())
    exported = scrape(registry)
    assert value(exported, "replica_router_reads_total", alias="default") == 1
    assert value(exported, "replica_router_decisions_total", reason="SHADOW") == 1
    assert value(exported, "replica_router_shadow_reads_total", alias="default") == 0
    assert sum(values(exported, "replica_router_shadow_reads_total")) == 1
    assert value(exported, "replica_router_shadow_decisions_total", reason="CAUGHT_UP") == 1


def test_a_count_of_no_metric_is_left_out(cluster: Cluster, registry: CollectorRegistry) -> None:
    """It spoils no scrape."""
    count("of_no_metric")
    assert "of_no_metric" in get_stats()
    assert not any("of_no_metric" in name for name, labels in scrape(registry))
    pop_stats()


# Servers.


def test_the_servers_are_told_of(
    cluster: Cluster, registry: CollectorRegistry, reader: InMemoryMetricReader
) -> None:
    """The primary is up, each replica serves, and how far it is behind is known."""
    assert look("default", PATIENCE).primary_serves
    for exported in (scrape(registry), read_all(reader)):
        assert value(exported, "replica_router_primary_up", primary="default") == 1
        for alias, server in zip(("replica1", "replica2"), cluster.replicas, strict=True):
            labels = {"primary": "default", "alias": alias, "address": f"127.0.0.1:{server.port}"}
            assert value(exported, "replica_router_replica_serves", **labels) == 1
            assert value(exported, "replica_router_replica_behind_bytes", **labels) is not None
            lag = value(exported, "replica_router_replica_lag_seconds", **labels)
            assert lag is not None
            assert value(exported, "replica_router_server_state", **labels, state="STREAMING") == 1


def test_a_replica_that_does_not_replay_lags(
    cluster: Cluster, healed: Cluster, registry: CollectorRegistry, note: Note, settings: Any
) -> None:
    """Its lag and what it lacks rise, and those of the other do not."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "MAX_LAG": 1.0}
    look("default", PATIENCE)
    healed.replicas[0].pause()
    Note.objects.filter(pk=note.pk).update(title="new")
    healed.primary.flush()

    def lags(alias: str) -> bool:
        exported = scrape(registry)
        lag = value(exported, "replica_router_replica_lag_seconds", alias=alias) or 0.0
        behind = value(exported, "replica_router_replica_behind_bytes", alias=alias) or 0.0
        serves = value(exported, "replica_router_replica_serves", alias=alias)
        state = value(exported, "replica_router_server_state", alias=alias, state="LAGGING")
        return lag > 1.0 and behind > 0 and serves == 0 and state == 1

    wait_until(lambda: lags("replica1"), "the lag to be told")
    wait_until(
        lambda: value(scrape(registry), "replica_router_replica_serves", alias="replica2"),
        "the other to serve",
    )
    assert not lags("replica2")
    healed.replicas[0].resume()
    wait_until(lambda: not lags("replica1"), "it to have caught up")


def test_of_a_stopped_replica_no_lag_is_told(
    healed: Cluster, registry: CollectorRegistry, reader: InMemoryMetricReader
) -> None:
    """It does not serve; what is not known of it is absent, and not 0."""
    healed.replicas[0].stop()
    stop_monitors()
    look("default", PATIENCE)
    for exported in (scrape(registry), read_all(reader)):
        assert value(exported, "replica_router_replica_serves", alias="replica1") == 0
        assert value(exported, "replica_router_replica_serves", alias="replica2") == 1
        for name in ("lag_seconds", "behind_bytes"):
            assert value(exported, f"replica_router_replica_{name}", alias="replica1") is None
            assert value(exported, f"replica_router_replica_{name}", alias="replica2") is not None


def test_a_primary_that_is_down_is_told_of(healed: Cluster, registry: CollectorRegistry) -> None:
    """It is not up."""
    healed.primary.stop()
    stop_monitors()
    look("default", 3.0)
    exported = scrape(registry)
    assert value(exported, "replica_router_primary_up") == 0
    assert value(exported, "replica_router_server_state", alias="default", state="DOWN") == 1


def test_of_two_that_look_the_same_the_worse_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two servers behind one alias whose addresses nobody knows."""
    found = look("default", PATIENCE)
    good = found.servers[1]._replace(seconds_behind=0.1)
    bad = good._replace(serves=False, seconds_behind=7.0)
    for pair in ((good, bad), (bad, good)):
        told = found._replace(servers=(found.servers[0], *pair))
        monkeypatch.setattr(metrics, "describe", lambda monitor, told=told: told)
        gauges = metrics.read_gauges()
        of_server = ("default", good.alias, good.address)
        assert gauges[metrics.Series(metrics.SERVES, of_server)] == 0
        assert gauges[metrics.Series(metrics.LAG, of_server)] == 7.0


# Where they are not used, and before they are.

SITE = """
import sys
import django
django.setup()
from django.test import Client
from django_replica_router import ReplicaRouter
import django_replica_router.middleware
print([name for name in ("prometheus_client", "opentelemetry") if name in sys.modules])
"""


def test_a_site_without_exporters_imports_none() -> None:
    """They cost it nothing."""
    assert run_python(SITE, DJANGO_SETTINGS_MODULE="testproject.settings") == "[]"
    app = "from django.conf import settings\n" + "settings.INSTALLED_APPS += [{!r}]\n"
    with_it = app.format("django_replica_router.contrib.prometheus") + SITE
    told = run_python(with_it, DJANGO_SETTINGS_MODULE="testproject.settings")
    assert told == "['prometheus_client']"


LATER = """
import django
django.setup()
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from django_replica_router.contrib.opentelemetry import instrument
instrument()
reader = InMemoryMetricReader()
set_meter_provider(MeterProvider([reader]))
(of_resource,) = reader.get_metrics_data().resource_metrics
(of_scope,) = of_resource.scope_metrics
print(of_scope.scope.name, "replica_router.reads" in {one.name for one in of_scope.metrics})
"""


def test_opentelemetrys_provider_may_be_set_later() -> None:
    """As each worker sets its own after the fork."""
    told = run_python(LATER, DJANGO_SETTINGS_MODULE="testproject.settings")
    assert told == "django_replica_router True"
