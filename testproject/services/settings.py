"""Settings of the shop and of its worker: those of the project, with tasks and a second service.

The environment tells two things more: ``TESTPROJECT_TASKS_URL``, the broker, and ``TESTPROJECT_COURIER_URL``.
"""

from __future__ import annotations

import os

from testproject.settings import *  # noqa: F403 - that is what it is for
from testproject.settings import INSTALLED_APPS, REPLICA_ROUTER, ROUTING

ROOT_URLCONF = "testproject.services.urls"
COURIER_URL = os.environ.get("TESTPROJECT_COURIER_URL", "")

if ROUTING == "package":
    INSTALLED_APPS = [*INSTALLED_APPS, "django_replica_router.contrib.celery"]
    REPLICA_ROUTER = {
        **REPLICA_ROUTER,
        "HEADER": "X-Replica-Token",
        "TOKEN_KEYS": ["what the shop and the courier have in common"],
    }
