"""Functions that are tasks of any queue, and the queues of sites that have one of these packages."""

from __future__ import annotations

import os

import dramatiq
from django.db import transaction
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from huey import RedisHuey
from redis import Redis
from rq import Queue

from django_replica_router import current_scope
from django_replica_router.contrib import huey as huey_contrib
from django_replica_router.contrib.dramatiq import ReplicaRouter
from django_replica_router.contrib.rq import Job
from django_replica_router.scopes.sources import names_of
from testproject.notes.models import Note

URL = os.environ["TASKS_URL"]


def look() -> list[str]:
    """Tell what is seen, and where it was read."""
    note = Note.objects.get()
    return [note.title, str(note._state.db)]


def add(text: str) -> str:
    """Add to the title."""
    with transaction.atomic():
        title = Note.objects.select_for_update().get().title
        Note.objects.update(title=title + text)
    return text


def known_as() -> list[str]:
    """Tell by which names this task is known again."""
    here = current_scope()
    return [] if here is None else list(names_of(here))


def add_and_fail(text: str) -> None:
    """Write, and fail all the same."""
    add(text)
    raise ValueError(text)


def add_and_look(text: str) -> list[str]:
    """Fail after a write, and look in the second try."""
    if not look()[0].endswith(text):
        add_and_fail(text)
    return look()


TASKS = (look, add, known_as, add_and_fail)

rq_queue = Queue("tests", connection=Redis.from_url(URL), job_class=Job)

broker = RedisBroker(url=URL, namespace="dramatiq-tests")
# Since its version 8 redis-py waits for 5 s where nothing is said, and get_result() may be told to wait longer.
patient = Redis.from_url(URL, socket_timeout=None)
results = RedisBackend(client=patient, namespace="dramatiq-results")
broker.add_middleware(Results(backend=results))
broker.add_middleware(ReplicaRouter())
dramatiq.set_broker(broker)
actors = {task.__name__: dramatiq.actor(task, store_results=True, max_retries=0) for task in TASKS}
actors["add_and_look"] = dramatiq.actor(
    add_and_look, store_results=True, max_retries=1, min_backoff=1
)

huey = RedisHuey("tests", url=URL, store_intermediate_errors=False)
huey_contrib.connect(huey)
huey_tasks = {task.__name__: huey.task()(task) for task in TASKS}
huey_tasks["add_and_look"] = huey.task(retries=1)(add_and_look)
