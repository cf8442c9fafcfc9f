"""The Celery app of the shop: ``celery -A testproject.services.celery worker``."""

from __future__ import annotations

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "testproject.services.settings")

_URL = os.environ["TESTPROJECT_TASKS_URL"]

app = Celery("shop", broker=_URL, backend=_URL, include=["testproject.services.tasks"])
app.conf.broker_connection_retry_on_startup = True
