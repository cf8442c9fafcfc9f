"""OpenTelemetry: the package's metrics, by one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from django_replica_router import __version__
from django_replica_router.contrib.extras import needs
from django_replica_router.status.metrics import METRICS, Kind, Metric, read_counters, read_gauges

with needs("opentelemetry.metrics", "opentelemetry"):
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Have OpenTelemetry tell the package's metrics. They are read when it asks for them.

    Call it once, as in ``ready()`` of an app. The provider may be set later.

    Args:
        meter_provider: whose readers ask for them; the one that is set for the process where it is None.
    """
    meter = get_meter("django_replica_router", __version__, meter_provider)
    for metric in METRICS:
        create = (
            meter.create_observable_counter
            if metric.kind is Kind.COUNTER
            else meter.create_observable_gauge
        )
        create(metric.name, [_observer(metric)], metric.unit, metric.text)


def _observer(metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
    read = read_counters if metric.kind is Kind.COUNTER else read_gauges

    def observe(options: CallbackOptions) -> Iterator[Observation]:
        for series, value in read().items():
            if series.metric is metric:
                yield Observation(value, dict(zip(metric.labels, series.values, strict=True)))

    return observe
