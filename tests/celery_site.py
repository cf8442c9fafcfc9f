"""A Celery app for the tests, as a site has one: the worker is told to run it."""

from __future__ import annotations

import os

from celery import Celery

from django_replica_router.contrib.celery import runs
from django_replica_router.recording import carrying

URL = os.environ.get("TASKS_URL")

app = Celery(
    "site",
    broker=URL,
    backend=URL,
    include=["tests.celery_tasks", *os.environ.get("TASKS_INCLUDE", "").split()],
)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ.get("TASKS_QUEUE", "celery"),
    worker_hijack_root_logger=False,
)

if "TASKS_QUEUE" in os.environ:  # the worker: nobody wants to wait that long in a test
    carrying.OPEN_WAIT = 0.5
    runs.AGAIN = 0.1
