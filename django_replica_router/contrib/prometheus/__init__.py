"""Prometheus: ``"django_replica_router.contrib.prometheus"`` in ``INSTALLED_APPS`` is all that a site needs."""
