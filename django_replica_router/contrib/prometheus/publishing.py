"""The metrics of one of several processes, published in the folder that prometheus_client reads them from."""

from __future__ import annotations

import atexit
import math
import os
import threading
from typing import Any

from django_replica_router.contrib.extras import needs
from django_replica_router.logs import fields, logger
from django_replica_router.replicas.ending import EndingThread
from django_replica_router.status.metrics import (
    METRICS,
    Kind,
    Metric,
    Series,
    read_counters,
    read_gauges,
)

with needs("prometheus_client", "prometheus"):
    from prometheus_client import CollectorRegistry, Counter, Gauge


EVERY = 5.0
"""Seconds from one time to the next: what is told is at most that old."""


class Publisher:
    """Puts what this process has counted into counters and gauges of prometheus_client.

    Those are what it shares among processes: a collector of one's own it asks only in the process that is
    asked, and not at all where the page is made by ``MultiProcessCollector``.

    Args:
        registry: that the counters and gauges belong to.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._made = {metric: _make(metric, registry) for metric in METRICS}
        self._lock = threading.Lock()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Begin as a process of its own, whose counts begin at 0."""
        self._counted: dict[Series, int] = {}
        self._gauges: set[Series] = set()

    def publish(self) -> None:
        """Tell what there is now."""
        with self._lock:
            self._publish_counters()
            self._publish_gauges()

    def _publish_counters(self) -> None:
        present = read_counters()
        for series, number in present.items():
            self._of(series).inc(number - self._counted.get(series, 0))
        self._counted = present

    def _publish_gauges(self) -> None:
        present = read_gauges()
        for series, value in present.items():
            self._of(series).set(value)
        for series in self._gauges - present.keys():
            # It cannot be taken back from the file. No comparison holds for what is no number.
            self._of(series).set(math.nan)
        self._gauges = set(present)

    def _of(self, series: Series) -> Any:
        made = self._made[series.metric]
        return made.labels(*series.values) if series.values else made

    # A fork in the midst of it would leave locks of prometheus_client held in the child, for ever.

    def before_fork(self) -> None:
        """Have nothing published while the process forks."""
        self._lock.acquire()

    def after_fork(self) -> None:
        """Go on."""
        self._lock.release()


def _make(metric: Metric, registry: CollectorRegistry) -> Counter | Gauge:
    name = metric.prometheus_name
    if metric.kind is Kind.COUNTER:
        return Counter(name, metric.text, metric.labels, registry=registry)
    # Each process looks at the same servers: the newest look counts, of a process that lives.
    return Gauge(
        name, metric.text, metric.labels, registry=registry, multiprocess_mode="livemostrecent"
    )


class _Thread(EndingThread):
    patience = 0.0

    def __init__(self, publisher: Publisher) -> None:
        super().__init__("replica-router-metrics")
        self._publisher = publisher

    def run(self) -> None:
        while not self._ended.wait(EVERY):
            self._publish()

    def end(self) -> None:
        """Publish once more, and no more after that."""
        super().end()
        self._publish()

    def _publish(self) -> None:
        try:
            self._publisher.publish()
        except Exception as error:  # as of a disk that is full: the next time it may not be
            logger.warning(
                "Metrics cannot be published: %s", error, extra=fields("metrics_unpublished", error)
            )


def start_publishing(registry: CollectorRegistry) -> None:
    """Publish again and again, in this process and in those that it forks, and once more as each ends.

    Args:
        registry: that the counters and gauges belong to.

    Raises:
        ValueError: they are registered there already.
    """
    publisher = Publisher(registry)
    thread = _Thread(publisher)
    present = [thread]

    def begin_anew() -> None:
        publisher.begin_anew()
        publisher.after_fork()
        present[0] = _Thread(publisher)
        present[0].start()

    thread.start()
    atexit.register(lambda: present[0].end())
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=publisher.before_fork,
            after_in_parent=publisher.after_fork,
            after_in_child=begin_anew,
        )
