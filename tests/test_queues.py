"""RQ, Dramatiq and huey: whoever runs a task sees what whoever published it has written, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction

from django_replica_router import scope
from django_replica_router.contrib import background
from django_replica_router.scopes.signing import Token
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import TIMEOUT, stand_still, wait_until
from tests.tasks_settings import LAGGING
from tests.workers import Worker, queue_url, working


class RQ:
    """RQ, with a worker that does not fork."""

    arguments = ("tests.queue_worker",)

    def publish(self, name: str, *args: Any) -> Any:
        """Have the worker run a task."""
        return site().rq_queue.enqueue(getattr(site(), name), *args, retry=self.retry(name))

    def retry(self, name: str) -> Any:
        """Return how often it may be tried again."""
        from rq import Retry

        return Retry(max=1) if name == "add_and_look" else None

    def get(self, task: Any) -> Any:
        """Return its result, or raise what it has raised."""
        # That of the first try is there before that of the second.
        wait_until(lambda: task.get_status() in ("finished", "failed"), "the job to end")
        result = task.latest_result()
        if result.exc_string:
            raise ValueError(result.exc_string)
        return result.return_value


class Dramatiq:
    """Dramatiq, with threads."""

    arguments = ("dramatiq", "tests.queue_worker", "-p", "1", "-t", "2")

    def publish(self, name: str, *args: Any) -> Any:
        """Have the worker run a task."""
        return site().actors[name].send(*args)

    def get(self, task: Any) -> Any:
        """Return its result, or raise what it has raised."""
        return task.get_result(block=True, timeout=int(TIMEOUT * 1000))


class Huey:
    """huey, with threads."""

    arguments = (
        "huey.bin.huey_consumer",
        "tests.queue_worker.huey",
        "-w",
        "2",
        "-k",
        "thread",
        "-d",
        "0.02",
    )

    def publish(self, name: str, *args: Any) -> Any:
        """Have the worker run a task."""
        return site().huey_tasks[name](*args)

    def get(self, task: Any) -> Any:
        """Return its result, or raise what it has raised."""
        return task.get(blocking=True, timeout=TIMEOUT, max_delay=0.05)


KINDS = {"rq": RQ, "dramatiq": Dramatiq, "huey": Huey}


def site() -> Any:
    """Return the tasks of the site: they can be imported only where it is known where their queues are."""
    from tests import queue_tasks

    return queue_tasks


@pytest.fixture(scope="module", params=KINDS)
def working_queue(
    request: pytest.FixtureRequest,
    real_cluster: Cluster,
    _django_on_cluster: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Any, Worker]]:
    """A queue of each kind, with a worker."""
    queue = KINDS[request.param]()
    log = tmp_path_factory.mktemp("queues") / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASKS_URL", queue_url(real_cluster))
        with working(real_cluster, queue.arguments, [], log) as worker:
            yield queue, worker


@pytest.fixture
def queue(
    cluster: Cluster, settings: Any, note: Note, working_queue: tuple[Any, Worker]
) -> Iterator[Any]:
    """One whose worker's replicas show what was, as do those of this process, and still do in the end."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **LAGGING}
    background._told.clear()
    queue, worker = working_queue

    def is_served() -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        return bool(queue.get(queue.publish("look"))[1] != "default")

    wait_until(is_served, "the worker to read from a replica")
    stand_still(cluster)
    yield queue
    with pytest.MonkeyPatch.context() as patch:
        for module in ("dramatiq", "huey", "rq"):
            patch.setattr(
                f"django_replica_router.contrib.{module}.token_to_publish", lambda *args: Token()
            )
        task = queue.publish("look")
    assert queue.get(task)[0] == "first"
    with scope():
        assert title() == "first"
    for replica in cluster.replicas:
        replica.resume()


def title() -> str:
    """Return the title that this scope shows."""
    return Note.objects.values_list("title", flat=True).get()


def test_a_task_sees_what_was_written_before_it(queue: Any) -> None:
    """Although replicas do not show it; and the next one no more than it must."""
    with scope():
        site().add("+here")
        assert queue.get(queue.publish("look")) == ["first+here", "default"]
    with scope():
        assert queue.get(queue.publish("look"))[0] == "first"


def test_a_task_is_known_again_by_its_code(queue: Any) -> None:
    """One that saves what it has read from a replica reads from the primary the next time."""
    with scope():
        assert queue.get(queue.publish("known_as")) == [f"{site().__file__}:known_as"]


def test_who_gets_a_result_sees_what_was_written(queue: Any) -> None:
    """As soon as it is there."""
    with scope():
        assert title() == "first"
        queue.get(queue.publish("add", "+task"))
        assert title() == "first+task"


def test_who_gets_an_error_sees_what_was_written(queue: Any) -> None:
    """It says nothing about what was committed."""
    with scope():
        with pytest.raises(Exception, match="task"):
            queue.get(queue.publish("add_and_fail", "+task"))
        assert title() == "first+task"


def test_the_second_try_sees_what_the_first_has_written(queue: Any) -> None:
    """And what was there before."""
    with scope():
        site().add("+here")
        task = queue.publish("add_and_look", "+task")
    assert queue.get(task) == ["first+here+task", "default"]


def test_the_worker_waits_for_the_commit(queue: Any, caplog: pytest.LogCaptureFixture) -> None:
    """And whoever has published before is told the line."""
    with transaction.atomic():
        task = queue.publish("look")
        site().add("+here")
    assert queue.get(task) == ["first+here", "default"]
    (told,) = [message for message in caplog.messages if " publishes " in message]
    assert "test_queues.py" in told
