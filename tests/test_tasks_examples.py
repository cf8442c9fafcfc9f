"""The examples of the page about tasks, run as they stand there."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chord
from django.db import connections
from django.test import Client

from django_replica_router import scope
from django_replica_router.contrib.celery import results, runs
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests import celery_tasks
from tests.conftest import TIMEOUT, stand_still, wait_until
from tests.examples import write_examples
from tests.site import visit
from tests.tasks_settings import LAGGING
from tests.test_processes import ROOT
from tests.workers import queue_url, working


@pytest.fixture(scope="module")
def notes_site(real_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a site of these examples, which can be imported."""
    folder = tmp_path_factory.mktemp("examples")
    write_examples("tasks.md", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("TASKS_URL", queue_url(real_cluster))
        yield folder


@pytest.fixture
def still(cluster: Cluster, settings: Any, note: Note) -> Iterator[None]:
    """Replicas show what was before, now and in the end."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **LAGGING}
    stand_still(cluster)
    yield
    with scope():
        note = Note.objects.get()
        assert [note.title, note.body] == ["first", ""]
    for replica in cluster.replicas:
        replica.resume()


def test_celery(
    cluster: Cluster,
    notes_site: Path,
    settings: Any,
    note: Note,
    test_site: None,
    tmp_path: Path,
) -> None:
    """Views and tasks, over HTTP, with a real worker."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **LAGGING}
    stand_still(cluster)
    runs.connect()
    results.connect()
    url = queue_url(cluster)
    celery_tasks.app.conf.update(
        broker_url=url,
        result_backend=url,
        broker_read_url=url,
        broker_write_url=url,
        task_default_queue="examples",
    )
    celery_tasks.app.amqp.__dict__.pop("queues", None)
    celery_tasks.app.set_default()
    from notes_site import reports, views

    variables = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{notes_site}",
        "TASKS_QUEUE": "examples",
        "TASKS_INCLUDE": "notes_site.tasks notes_site.reports",
    }
    arguments = ["celery", "-A", "tests.celery_site", "worker", "-P", "threads", "-c", "2"]
    app = ["django_replica_router.contrib.celery"]
    with working(cluster, arguments, app, tmp_path / "log", **variables):

        def save(request: Any) -> Any:
            return json.loads(views.save(request, note.pk).content)

        def show(request: Any) -> Any:
            return json.loads(views.show(request, note.pk, saved["task"]).content)

        saved = visit(Client(), save, "post", data={"body": "teh end"})
        wait_until(lambda: visit(Client(), show), "the task to end")
        assert visit(Client(), show) == {"body": "the end"}
        with scope():
            assert Note.objects.get().body == ""  # who asks for no result sees what was before
        for replica in cluster.replicas:
            replica.resume()
        with scope():
            Note.objects.update(title="second")
            body = chord([reports.count.s()])(reports.digest.si())
            assert body.get(timeout=TIMEOUT) == ["second"]


def run_rq(example: Any) -> Callable[[], Any]:
    """Have a worker of RQ run what is in the queue, and return how to have the result."""
    from rq import SimpleWorker

    job = example.queue.enqueue(celery_tasks.seen)
    worker = SimpleWorker([example.queue], connection=example.queue.connection, job_class=type(job))
    worker.work(burst=True)
    return job.return_value


def run_dramatiq(example: Any) -> Callable[[], Any]:
    """Have a worker of Dramatiq run what is in the queue, and return how to have the result."""
    import dramatiq

    class Close(dramatiq.Middleware):
        """Leaves no connection behind in the worker's thread."""

        def after_process_message(self, broker: Any, message: Any, **kwargs: Any) -> None:
            connections.close_all()

    actor = dramatiq.actor(celery_tasks.seen, broker=example.broker, store_results=True)
    worker = dramatiq.Worker(example.broker, worker_threads=1)
    worker.start()
    example.broker.middleware.insert(0, Close())
    try:
        backend = example.broker.get_results_backend()
        message = actor.send()
        message.get_result(backend=backend, block=True, timeout=int(TIMEOUT * 1000))
    finally:
        worker.stop()
    return lambda: message.get_result(backend=backend)


def run_huey(example: Any) -> Callable[[], Any]:
    """Have huey run what is in the queue, and return how to have the result."""
    result = example.huey.task()(celery_tasks.seen)()

    def work() -> None:
        example.huey.execute(example.huey.dequeue())
        connections.close_all()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return result.get


@pytest.mark.parametrize("run", [run_rq, run_dramatiq, run_huey])
def test_queue(notes_site: Path, still: None, run: Callable[[Any], Callable[[], Any]]) -> None:
    """The queue of each example brings its worker what was written."""
    example = importlib.import_module(f"notes_site.{run.__name__.removeprefix('run_')}")
    with scope():
        celery_tasks.add("+here")
        result = run(example)
    assert result() == ["first+here", "default"]
