"""What the workers of the tests' queues are told to run."""

from __future__ import annotations

import sys

import django

django.setup()

from tests.queue_tasks import broker, huey, rq_queue  # noqa: E402, F401 - Dramatiq and huey find theirs here

if __name__ == "__main__":
    from rq import SimpleWorker

    from django_replica_router.contrib.rq import Job

    # Not the one that forks for each job: a process that has just begun knows no replica yet.
    SimpleWorker([rq_queue], connection=rq_queue.connection, job_class=Job).work()
    sys.exit()
