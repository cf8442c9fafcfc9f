"""Which way the metrics are told: as they are asked for, or, by several processes, through files."""

from __future__ import annotations

import os

from django_replica_router.contrib.extras import needs
from django_replica_router.contrib.prometheus.collecting import ReplicaRouterCollector
from django_replica_router.contrib.prometheus.publishing import start_publishing

with needs("prometheus_client", "prometheus"):
    from prometheus_client import REGISTRY, CollectorRegistry


def register(registry: CollectorRegistry = REGISTRY) -> None:
    """Have a registry tell the package's metrics.

    Where ``PROMETHEUS_MULTIPROC_DIR`` is set, each process publishes its own in that folder, by a thread;
    else they are read when they are asked for, and nothing is done before.

    Args:
        registry: of prometheus_client.

    Raises:
        ValueError: they are registered there already.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        start_publishing(registry)
    else:
        registry.register(ReplicaRouterCollector())
