"""Celery: ``"django_replica_router.contrib.celery"`` in ``INSTALLED_APPS`` is all that a site needs."""
