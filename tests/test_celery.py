"""Celery: whoever runs a task sees what whoever published it has written, and the other way round."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeout
from celery.exceptions import WorkerLostError
from celery.utils import uuid
from django.db import transaction

from django_replica_router import current_scope, scope
from django_replica_router.contrib import background
from django_replica_router.contrib.celery import results, runs
from django_replica_router.observing import observe
from django_replica_router.scopes.signing import Token
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests import celery_tasks as site
from tests.conftest import TIMEOUT, stand_still, wait_until
from tests.tasks_settings import LAGGING
from tests.workers import Worker, queue_url, working

APP = "django_replica_router.contrib.celery"

POOLS = {
    "prefork": ["-P", "prefork", "-c", "2"],
    "threads": ["-P", "threads", "-c", "4"],
    "gevent": ["-P", "gevent", "-c", "8"],
}


def got(result: Any) -> Any:
    """Return the result of a task that a worker runs."""
    return result.get(timeout=TIMEOUT)


def current_line() -> int:
    """Return the line that this is called from."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def publishing(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was told about publishing."""
    return [message for message in caplog.messages if " publishes " in message]


def title() -> str:
    """Return the title that this scope shows."""
    return Note.objects.values_list("title", flat=True).get()


@pytest.fixture(scope="module", autouse=True)
def _connected(real_cluster: Cluster) -> None:
    """Connect this process, as the app does that a site installs, and tell it where the queue is.

    Before the first test, also where that needs no worker: Celery keeps the connections of whoever has published.
    """
    runs.connect()
    results.connect()
    url = queue_url(real_cluster)
    site.app.conf.update(
        broker_url=url, result_backend=url, broker_read_url=url, broker_write_url=url
    )


@pytest.fixture(scope="module")
def start(
    real_cluster: Cluster, _django_on_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Any]:
    """Starts a worker with a pool of that kind."""
    directory = tmp_path_factory.mktemp("celery")

    def start(pool: str) -> Any:
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING"]
        arguments = ["celery", "-A", "tests.celery_site", "worker", *quiet]
        return working(
            real_cluster, [*arguments, *POOLS[pool]], [APP], directory / pool, TASKS_QUEUE=pool
        )

    return start


@pytest.fixture(scope="module")
def prefork(start: Callable[[str], Any]) -> Iterator[Worker]:
    """A worker with processes."""
    with start("prefork") as worker:
        yield worker


def warm_up(cluster: Cluster, worker: Worker) -> None:
    """Return once a worker is there in each of whose processes replicas serve; then have them stand still."""
    processes = 2 if worker.log.name == "prefork" else 1
    site.app.conf.task_default_queue = worker.log.name
    site.app.amqp.__dict__.pop("queues", None)

    def is_served() -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        name = uuid()
        meeting = [site.meet.delay(name, processes) for _ in range(processes)]
        return "default" not in [got(one) for one in meeting]

    wait_until(is_served, "a worker to read from a replica")
    stand_still(cluster)


@pytest.fixture(autouse=True)
def _lags_are_long(cluster: Cluster, settings: Any) -> Iterator[None]:
    """A replica whose replay is paused serves as long as a test takes."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **LAGGING}
    background._told.clear()
    yield
    for replica in cluster.replicas:
        replica.resume()


def publish_nothing(patch: pytest.MonkeyPatch) -> None:
    """Have what is published carry no token, as if there were nothing to see."""
    patch.setattr(runs, "token_to_publish", lambda *args: Token())


@pytest.fixture
def lagging(cluster: Cluster, note: Note, prefork: Worker) -> Iterator[Worker]:
    """A worker whose replicas show what was, as do those of this process.

    In the end they still do: whoever has seen more has seen it by a token.
    """
    warm_up(cluster, prefork)
    yield prefork
    with pytest.MonkeyPatch.context() as patch:
        publish_nothing(patch)
        shown, alias = got(site.look.delay())
    assert (shown, alias != "default") == ("first", True)
    with scope():
        assert title() == "first"


@pytest.mark.usefixtures("lagging")
class TestPublishing:
    """What a task sees."""

    def test_what_its_publisher_has_written(self) -> None:
        """Although replicas do not show it."""
        with scope():
            site.add("+here")
            assert got(site.look.delay()) == ["first+here", "default"]

    def test_it_is_known_again_by_its_code(self) -> None:
        """One that saves what it has read from a replica reads from the primary the next time."""
        assert got(site.known_as.delay()) == [f"{site.__file__}:known_as"]

    def test_no_more_than_its_publisher_must(self) -> None:
        """The worker has just run a task that had to see more: no floor is left behind."""
        with scope():
            site.add("+here")
            got(site.look.delay())
        for _ in range(4):
            with scope():
                shown, alias = got(site.look.delay())
            assert (shown, alias != "default") == ("first", True)

    def test_what_was_written_outside_of_a_scope(self) -> None:
        """As in a command: nobody has noted it, so it is all that there is."""
        site.add("+here")
        assert got(site.look.delay()) == ["first+here", "default"]

    def test_all_there_is_where_nobody_has_said(self) -> None:
        """As from a process that does not know of the package: there may have been something."""
        with scope():
            site.add("+here")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runs.signals.before_task_publish, "receivers", [])
                result = site.look.delay()
            assert got(result) == ["first+here", "default"]

    def test_in_a_row(self) -> None:
        """The token is asked for once, until something is written."""
        with scope(), pytest.MonkeyPatch.context() as patch:
            asked: list[Any] = []
            token_of = background.token_of
            patch.setattr(
                background, "token_of", lambda scope: (asked.append(scope), token_of(scope))[1]
            )
            for text in ("+a", "+b", "+c"):
                site.add(text)
                mine = [site.look.delay() for _ in range(3)]
            assert {got(result)[0] for result in mine} == {"first+a+b+c"}
            assert len(asked) == 3

    def test_after_a_countdown(self) -> None:
        """The token waits with the task."""
        with scope():
            site.add("+here")
            assert got(site.look.apply_async(countdown=0.1)) == ["first+here", "default"]

    def test_after_a_retry(self) -> None:
        """What was written before it, and in the run before."""
        with scope():
            site.add("+here")
            assert got(site.retry.delay()) == ["first+here+retry", "default"]

    def test_from_a_task(self) -> None:
        """What that has written, and its publisher."""
        with scope():
            site.add("+here")
            second = got(site.add_and_publish.delay("+task"))
        assert got(site.app.AsyncResult(second)) == ["first+here+task", "default"]

    def test_in_a_chain(self) -> None:
        """All that were before."""
        steps = chain(site.add.si("+a"), site.add.si("+b"), site.look.si())
        assert got(steps.apply_async()) == ["first+a+b", "default"]

    def test_in_a_chord(self) -> None:
        """The body has all of them to see, not only who was last: that one has written nothing."""
        first = site.add.si("+a").set(task_id=uuid())
        parts = [first, site.look_after.si(first.options["task_id"])]
        assert got(chord(parts)(site.look.si())) == ["first+a", "default"]


@pytest.mark.usefixtures("lagging")
class TestTransactions:
    """What is published before the commit."""

    def test_the_worker_waits(self, caplog: pytest.LogCaptureFixture) -> None:
        """And whoever has published is told the line, once for each task."""
        with scope(), transaction.atomic():
            site.add("+here")
            line = current_line()
            result = site.look.delay()
            site.look.delay()
        assert got(result) == ["first+here", "default"]
        (told,) = publishing(caplog)
        assert (
            f"test_celery.py:{line + 1} publishes the task tests.celery_tasks.look before" in told
        )

    def test_a_long_one_puts_the_task_off(self) -> None:
        """Where a worker has waited in vain: until the transaction has ended, and no longer."""
        with scope(), transaction.atomic():
            site.add("+here")
            result = site.look_and_count.delay()
            wait_until(lambda: result.state == "RETRY", "the task to be put off")
        shown, alias, retries, times = got(result)
        assert (shown, alias, retries) == ("first+here", "default", 0)
        assert 1 <= times < 30

    def test_what_is_written_afterwards(self) -> None:
        """A transaction that has written nothing yet has no number: it is given one."""
        with transaction.atomic():
            result = site.look.delay()
            site.add("+here")
        assert got(result) == ["first+here", "default"]

    def test_on_commit_is_no_news(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nor is what Celery's own task class has for it."""
        found: list[Any] = []
        with scope():
            with transaction.atomic():
                site.add("+here")
                transaction.on_commit(lambda: found.append(site.look.delay()))
                site.add.delay_on_commit("+later")
            assert got(found[0])[0].startswith("first+here")
        assert publishing(caplog) == []


@pytest.mark.usefixtures("lagging")
class TestResults:
    """What whoever waits for a task sees."""

    def test_what_it_has_written(self) -> None:
        """As soon as its result is there."""
        with scope():
            assert title() == "first"
            got(site.add.delay("+task"))
            assert title() == "first+task"

    def test_what_one_has_written_that_has_failed(self) -> None:
        """The error says nothing about what was committed."""
        with scope():
            with pytest.raises(ValueError, match="task"):
                got(site.add_and_fail.delay("+task"))
            assert title() == "first+task"

    def test_what_one_may_have_written_that_was_killed(self) -> None:
        """Nobody knows: the primary serves."""
        with scope():
            with pytest.raises(WorkerLostError):
                got(site.add_and_die.delay("+task"))
            assert title() == "first+task"

    def test_by_another_process(self) -> None:
        """A page that asks whether it is done knows no more than its id."""
        task_id = site.add.delay("+task").id
        with scope():
            result = site.app.AsyncResult(task_id)
            wait_until(result.ready, "the task")
            assert title() == "first+task"

    def test_of_a_group(self) -> None:
        """What all of them have written."""
        with scope():
            got(group(site.add.si("+a"), group(site.add.si("+a"), site.add.si("+a")))())
            assert title() == "first+a+a+a"

    def test_nothing_without_its_result(self) -> None:
        """This is what all of these would see."""
        with pytest.MonkeyPatch.context() as patch, scope():
            patch.setattr(results, "see_result", lambda task_id: None)
            got(site.add.delay("+task"))
            assert title() == "first"


class TestOptions:
    """What a task may say about replicas that lag."""

    def test_one_waits(self, cluster: Cluster, lagging: Worker) -> None:
        """Longer than a request would: until a replica has what it must see."""
        with scope():
            site.add("+here")
            result = site.look_patiently.delay()
            with pytest.raises(CeleryTimeout):
                result.get(timeout=0.3)
        for replica in cluster.replicas:
            replica.resume()
        shown, alias = got(result)
        assert (shown, alias != "default") == ("first+here", True)
        Note.objects.update(title="first")
        stand_still(cluster)

    def test_one_is_put_off(self, lagging: Worker) -> None:
        """Once; then the primary serves. It counts as no retry."""
        with scope():
            site.add("+here")
            assert got(site.look_later.delay()) == ["first+here", "default", 0, True]
        with scope():
            shown, _, retries, was_put_off = got(site.look_later.delay())
        assert (shown, retries, was_put_off) == ("first", 0, None)


@pytest.mark.parametrize("pool", ["threads", "gevent"])
def test_other_pools(cluster: Cluster, note: Note, start: Callable[[str], Any], pool: str) -> None:
    """Tasks that run side by side in one process see what each of them must, and no more."""
    with start(pool) as worker:
        warm_up(cluster, worker)
        with scope():
            site.add("+here")
            mine = [site.look.delay() for _ in range(8)]
            mine.append(site.add_and_publish.delay("!"))
        others = []
        for _ in range(8):
            with scope():
                others.append(site.look.delay())
        second = got(mine.pop())
        assert {got(result)[0].rstrip("!") for result in mine} == {"first+here"}
        assert {got(result)[0] for result in others} == {"first"}
        assert got(site.app.AsyncResult(second)) == ["first+here!", "default"]


@pytest.fixture
def eager() -> Iterator[None]:
    """Tasks run where they are published."""
    site.app.conf.task_always_eager = True
    yield
    site.app.conf.task_always_eager = False


@pytest.mark.usefixtures("eager", "note")
def test_an_eager_task_is_part_of_its_caller(cluster: Cluster) -> None:
    """Each sees what the other has written; where there is no scope, the task has one of its own."""
    stand_still(cluster)
    with scope() as opened:
        site.add("+here")
        assert site.look.delay().get()[0] == "first+here"
        site.add.delay("+task").get()
        assert title() == "first+here+task"
        assert current_scope() is opened
    assert site.look.delay().get()[0] == "first"
    assert current_scope() is None


@pytest.mark.usefixtures("eager", "note")
def test_an_eager_task_before_the_commit_is_told_to_who_observes() -> None:
    """On the site it would be published there. After the commit, and by ``apply()`` elsewhere, nothing is told."""
    with observe() as seen, scope():
        with transaction.atomic():
            site.look.delay()
            site.look.delay_on_commit()
        site.app.conf.task_always_eager = False
        with transaction.atomic():
            site.look.apply()
    (event,) = seen.events
    assert (event.name, event.detail) == ("task_too_soon", site.look.name)
    assert "test_celery.py" in event.line


@pytest.mark.usefixtures("note")
def test_in_an_event_loop_the_primary_serves(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A token may have to be asked for, which would block the loop: the task needs none then."""
    stand_still(cluster)

    async def publish() -> Token:
        async with scope():
            await Note.objects.aupdate(title="second")
            return background.token_to_publish("task")

    with scope(token=async_to_sync(publish)()):
        assert title() == "second"
    assert "publishes the task task in an event loop" in caplog.text
