"""Settings of worker processes that publish metrics for Prometheus."""

from __future__ import annotations

from tests.worker_settings import *  # noqa: F403 - that is what it is for
from tests.worker_settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "django_replica_router.contrib.prometheus"]
ROOT_URLCONF = "tests.metrics_site"
