"""Django's tasks: whoever runs one sees what whoever enqueued it has written, and the other way round."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.db import connection, transaction
from django.test import override_settings

from django_replica_router import current_scope, scope
from django_replica_router.contrib import background
from django_replica_router.contrib.django_tasks import receivers
from django_replica_router.scopes.signing import Token
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests import tasks_settings
from tests.conftest import stand_still, wait_until
from tests.examples import write_examples
from tests.tasks_settings import LAGGING
from tests.workers import Worker, queue_url, working

OWN = "django_replica_router.contrib.django_tasks"
APPS = ["django_tasks_db", "django_rq", OWN]
WORKERS = {
    "db": ["django", "db_worker", "--backend", "db", "--interval", "0.02", "--no-startup-delay"],
    # Not the one that forks for each job: a process that has just begun knows no replica yet.
    "rq": [
        *["django", "rqworker", "default", "--job-class", "django_tasks_rq.Job"],
        *["--worker-class", "rq.SimpleWorker"],
    ],
}


@pytest.fixture(scope="module")
def _installed(real_cluster: Cluster, _django_on_cluster: None) -> Iterator[None]:
    """The apps of a site with all of these backends, and their tables."""
    names = {
        "INSTALLED_APPS": [*tasks_settings.INSTALLED_APPS, *APPS],
        "TASKS": tasks_settings.TASKS,
        "RQ_QUEUES": {"default": {"URL": queue_url(real_cluster)}},
    }
    registered = dict(admin.site._registry)
    with override_settings(**names):
        from django_tasks_db.models import DBTaskResult

        with connection.schema_editor() as editor:
            editor.create_model(DBTaskResult)
        yield
        with connection.schema_editor() as editor:
            editor.delete_model(DBTaskResult)
    admin.site._registry = registered  # the apps have added to it


@pytest.fixture(scope="module", params=WORKERS)
def worker(
    request: pytest.FixtureRequest,
    real_cluster: Cluster,
    _installed: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Worker]:
    """A worker of each kind."""
    kind = request.param
    log = tmp_path_factory.mktemp("tasks") / kind
    with working(real_cluster, WORKERS[kind], APPS, log) as worker:
        yield worker


@pytest.fixture(autouse=True)
def _lags_are_long(cluster: Cluster, settings: Any, _installed: None) -> Iterator[None]:
    """A replica whose replay is paused serves as long as a test takes."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **LAGGING}
    background._told.clear()
    yield
    for replica in cluster.replicas:
        replica.resume()


def tasks() -> Any:
    """Return the tasks of the site: they can be imported only where their apps are installed."""
    from tests import django_tasks_tasks

    return django_tasks_tasks


class Queue:
    """What a worker of some kind is given."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.kind = worker.log.name

    def enqueue(self, name: str, *args: Any) -> Any:
        """Have the worker run a task."""
        return getattr(tasks(), name).using(backend=self.kind).enqueue(*args)

    def wait(self, result: Any) -> Any:
        """Return once a task has ended, as whoever has no scope."""

        def has_ended() -> bool:
            assert self.worker.process.poll() is None, self.worker.log.read_text()
            result.refresh()
            return bool(result.is_finished)

        wait_until(has_ended, "the task to end")
        return result

    def look(self) -> Any:
        """Return what a task sees that is enqueued here."""
        return self.wait(self.enqueue("look")).return_value


@pytest.fixture
def queue(cluster: Cluster, note: Note, worker: Worker) -> Iterator[Queue]:
    """A worker whose replicas show what was, as do those of this process, and still do in the end."""
    queue = Queue(worker)
    wait_until(lambda: queue.look()[1] != "default", "the worker to read from a replica")
    stand_still(cluster)
    yield queue
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(receivers, "token_to_publish", lambda *args, **kwargs: Token())
        result = queue.enqueue("look")
    assert queue.wait(result).return_value[0] == "first"


def title() -> str:
    """Return the title that this scope shows."""
    return Note.objects.values_list("title", flat=True).get()


def test_a_task_sees_what_was_written_before_it(queue: Queue) -> None:
    """Although replicas do not show it; and the next one no more than it must."""
    with scope():
        tasks().add.call("+here")
        result = queue.enqueue("look")
    assert queue.wait(result).return_value == ["first+here", "default"]
    with scope():
        result = queue.enqueue("look")
    # A row is written when a task is enqueued: a replica that has it has all that was before.
    expected = "first+here" if queue.kind == "db" else "first"
    assert queue.wait(result).return_value[0] == expected


def test_a_task_is_known_again_by_its_code(queue: Queue) -> None:
    """One that saves what it has read from a replica reads from the primary the next time."""
    known = queue.wait(queue.enqueue("known_as")).return_value
    assert known == [f"{tasks().__file__}:known_as"]


@pytest.mark.parametrize("name", ["add", "add_and_fail"])
def test_who_asks_for_a_result_sees_what_was_written(queue: Queue, name: str) -> None:
    """Also where the task has failed, and whoever asks knows no more than its id."""
    result = queue.enqueue(name, "+task")
    queue.wait(result)
    with scope():
        assert title() == "first"
    if queue.kind == "db":
        return  # its row is where the note is: who does not find it on a replica sees neither
    with scope():
        result.refresh()
        assert title() == "first+task"


def test_what_is_enqueued_in_a_transaction(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """A row is committed with it; any other message comes before, and its worker waits."""
    with transaction.atomic():
        result = queue.enqueue("look")
        tasks().add.call("+here")
    assert queue.wait(result).return_value == ["first+here", "default"]
    told = [message for message in caplog.messages if "test_django_tasks.py" in message]
    assert len(told) == (queue.kind == "rq")


def test_what_nobody_has_kept_a_token_for(queue: Queue) -> None:
    """As where the cache has dropped it: there may have been something."""
    with scope(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(receivers, "hand_on", lambda name, token: None)
        tasks().add.call("+here")
        result = queue.enqueue("look")
    assert queue.wait(result).return_value == ["first+here", "default"]


def test_an_immediate_task_is_part_of_its_caller(cluster: Cluster, note: Note) -> None:
    """Each sees what the other has written; where there is no scope, the task has one of its own."""
    stand_still(cluster)
    with scope() as opened:
        tasks().add.call("+here")
        assert tasks().look.enqueue().return_value[0] == "first+here"
        tasks().add.enqueue("+task")
        assert title() == "first+here+task"
        assert current_scope() is opened
    assert tasks().look.enqueue().return_value[0] == "first"
    assert current_scope() is None


def test_a_dummy_leaves_nothing(cluster: Cluster, note: Note) -> None:
    """It runs nothing, and its results can be asked for."""
    with scope():
        result = tasks().look.using(backend="dummy").enqueue()
        result.refresh()
    assert current_scope() is None


def test_the_example(cluster: Cluster, note: Note, tmp_path: Path) -> None:
    """Of the page about tasks, as it stands there."""
    write_examples("tasks.md", tmp_path)
    code = (tmp_path / "notes_site" / "django_tasks.py").read_text()
    if find_spec("django.tasks"):
        code = code.replace("from django_tasks import task", "from django.tasks import task")
    module = ModuleType("tests.example_of_tasks")
    exec(compile(code, "tasks.md", "exec"), module.__dict__)  # noqa: S102 - it is our own
    stand_still(cluster)
    with scope():
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, module.__name__, module)
            module.__dict__["shout"].enqueue(note.pk)
        assert title() == "FIRST"
