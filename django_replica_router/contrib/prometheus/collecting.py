"""The metrics of one process, read when Prometheus asks for them."""

from __future__ import annotations

from collections.abc import Iterator

from django_replica_router.contrib.extras import needs
from django_replica_router.status.metrics import METRICS, Kind, Metric, read_counters, read_gauges

with needs("prometheus_client", "prometheus"):
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector


_Family = CounterMetricFamily | GaugeMetricFamily


class ReplicaRouterCollector(Collector):
    """Reads the package's metrics at each scrape."""

    def describe(self) -> Iterator[_Family]:
        """Return the names, without a value."""
        return map(_family, METRICS)

    def collect(self) -> Iterator[_Family]:
        """Return the values."""
        families = {metric: _family(metric) for metric in METRICS}
        for series, value in {**read_counters(), **read_gauges()}.items():
            families[series.metric].add_metric(series.values, value)
        return iter(families.values())


def _family(metric: Metric) -> _Family:
    make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    return make(metric.prometheus_name, metric.text, labels=metric.labels)
