"""The app that tells Prometheus of the package."""

from __future__ import annotations

from django.apps import AppConfig

from django_replica_router.contrib.extras import needs


class PrometheusConfig(AppConfig):
    """Tells Prometheus of the package."""

    name = "django_replica_router.contrib.prometheus"
    label = "replica_router_prometheus"
    verbose_name = "Replica router for Prometheus"

    def ready(self) -> None:
        """Register the metrics with the registry that all of the process share."""
        with needs("prometheus_client", "prometheus"):
            from django_replica_router.contrib.prometheus.registering import register

        register()
