"""Settings of workers: those of other processes, and the apps that connect the package to their queues."""

from __future__ import annotations

import os
from importlib.util import find_spec

from tests.patient_settings import *  # noqa: F403 - that is what it is for
from tests.patient_settings import INSTALLED_APPS
from tests.patient_settings import REPLICA_ROUTER as PATIENT

INSTALLED_APPS = [*INSTALLED_APPS, *os.environ.get("TASKS_APPS", "").split()]

# A replica whose replay is paused serves for as long as a test may take, and a token binds for as long.
LAGGING = {**PATIENT, "MAX_LAG": 300.0, "TOKEN_TTL": 400.0}
REPLICA_ROUTER = LAGGING

URL = os.environ.get("TASKS_URL", "redis://")

# Django's own since 6.0, and its backport.
BUILT_IN = "django.tasks.backends" if find_spec("django.tasks") else "django_tasks.backends"
TASKS = {
    "default": {"BACKEND": f"{BUILT_IN}.immediate.ImmediateBackend"},
    "dummy": {"BACKEND": f"{BUILT_IN}.dummy.DummyBackend"},
    "db": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "rq": {"BACKEND": "django_tasks_rq.RQBackend"},
}
RQ_QUEUES = {"default": {"URL": URL}}
