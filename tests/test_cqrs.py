"""Commands write on the primary; queries read from replicas, see what they must, and cannot write."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import Context
from django.template.engine import Engine
from django.template.response import SimpleTemplateResponse
from django.test import Client
from django.views import View

from django_replica_router import (
    command,
    current_scope,
    current_token,
    query,
    scope,
    see,
    track,
    use_primary,
)
from django_replica_router.errors import ConfigurationError, TooStale, WriteInQuery
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import wait_until_known
from tests.cqrs import by_text, change
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.test_carrying import title

pytestmark = pytest.mark.usefixtures("note")

Do = Callable[[], Any]


# 1. What may be decorated -----------------------------------------------------------------------


def as_function(mark: Any, do: Do) -> Any:
    """Do it in a function."""
    return mark(do)()


def as_coroutine(mark: Any, do: Do) -> Any:
    """Do it in a coroutine function."""

    @mark
    async def work() -> Any:
        return await sync_to_async(do)()

    return async_to_sync(work)()


def as_generator(mark: Any, do: Do) -> Any:
    """Do it in a step of a generator."""

    @mark
    def work() -> Iterator[Any]:
        yield do()

    return next(work())


def as_async_generator(mark: Any, do: Do) -> Any:
    """Do it in a step of an asynchronous generator."""

    @mark
    async def work() -> Any:
        yield await sync_to_async(do)()

    async def first() -> Any:
        return await anext(work())

    return async_to_sync(first)()


def as_method(mark: Any, do: Do) -> Any:
    """Do it in a method."""

    class Handler:
        @mark
        def work(self) -> Any:
            return do()

    return Handler().work()


def as_static_method(mark: Any, do: Do) -> Any:
    """Do it in a static method, decorated from outside."""

    class Handler:
        @mark
        @staticmethod
        def work() -> Any:
            return do()

    return Handler.work()


def as_class_method(mark: Any, do: Do) -> Any:
    """Do it in a class method, decorated from inside."""

    class Handler:
        @classmethod
        @mark
        def work(cls) -> Any:
            return do()

    return Handler().work()


def as_handler(mark: Any, do: Do) -> Any:
    """Do it in a class of handlers."""

    @mark
    class Handler:
        def handle(self) -> Any:
            return do()

    return Handler().handle()


def as_callable_class(mark: Any, do: Do) -> Any:
    """Do it in a class whose objects are called."""

    @mark
    class Handler:
        def __call__(self) -> Any:
            return do()

    return Handler()()


def as_async_handler(mark: Any, do: Do) -> Any:
    """Do it in a class of asynchronous handlers."""

    @mark
    class Handler:
        async def handle(self) -> Any:
            return await sync_to_async(do)()

    return async_to_sync(Handler().handle)()


def as_view(mark: Any, do: Do) -> Any:
    """Do it in a class-based view."""

    @mark
    class Page(View):
        def get(self, request: HttpRequest) -> HttpResponse:
            return HttpResponse(str(do()))

    request = HttpRequest()
    request.method = "GET"
    return Page.as_view()(request).content.decode()


def as_partial(mark: Any, do: Do) -> Any:
    """Do it in whatever else can be called."""
    return mark(functools.partial(do))()


SHAPES = [
    as_function,
    as_coroutine,
    as_generator,
    as_async_generator,
    as_method,
    as_static_method,
    as_class_method,
    as_handler,
    as_callable_class,
    as_async_handler,
    as_view,
    as_partial,
]
shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
def test_a_command_writes_and_reads_on_the_primary(lagging: Cluster, shape: Any) -> None:
    """Whatever it is, and also where the replicas are asked for around it."""
    with scope():
        assert Note.objects.get().title == "first"
        assert shape(command, change) == "second"
    assert shape(command, lambda: Note.objects.get().title) == "second"
    assert title() == "first"


@shapes
def test_a_query_reads_from_a_replica_and_writes_nothing(
    lagging: Cluster, served: Served, shape: Any
) -> None:
    """Whatever it is; its user's writes are what `use_replica` shows."""
    assert shape(query, lambda: Note.objects.get().title) == "first"
    assert served.only_replicas("notes_note")
    served.clear()
    with pytest.raises(WriteInQuery, match=r"notes_note \(notes.Note\)"):
        shape(query, change)
    assert not served.aliases()
    assert change("third") == "third"


@shapes
def test_both_take_their_arguments_in_parentheses(cluster: Cluster, shape: Any) -> None:
    """And do the same."""
    assert shape(command(), change) == "second"
    wait_until_known(cluster)
    assert shape(query(max_lag=60.0), lambda: Note.objects.get().title) == "second"
    with pytest.raises(WriteInQuery):
        shape(query(max_lag=60.0), change)


@pytest.mark.parametrize("mark", [command, command(atomic=True), query, query(max_lag=1.0)])
def test_a_class_without_a_handler_is_refused(mark: Any) -> None:
    """Its methods may be decorated one by one."""

    class Nothing:
        def work(self) -> None: ...

    with pytest.raises(ConfigurationError, match=r"dispatch\(\) or handle\(\) or __call__\(\)"):
        mark(Nothing)
    with pytest.raises(ConfigurationError, match="expected a function"):
        mark(2.0)


def test_a_decorated_function_is_still_itself() -> None:
    """Name, signature and docstring stay."""

    def work(first: int, *, second: int = 2) -> int:
        """Work."""
        return first + second

    for mark in (command, command(atomic=True), query):
        assert mark(work)(1) == 3
        assert inspect.signature(mark(work)) == inspect.signature(work)
        assert mark(work).__doc__ == "Work."


# 2. Commands --------------------------------------------------------------------------------------


def test_a_command_in_a_scope_leaves_it_a_token(lagging: Cluster) -> None:
    """Who has it sees the write; who has not is shown what was before."""
    with scope() as opened:
        command(change)()
        token = str(opened.token)
        assert current_token() >= opened.token
    assert title() == "first"
    assert title(token=token) == "second"


@pytest.mark.parametrize("shape", [as_function, as_coroutine, as_handler])
def test_a_command_outside_of_a_scope_has_one_of_its_own(lagging: Cluster, shape: Any) -> None:
    """Its token can be had inside, and what is tracked is known when it has ended."""
    tokens = []

    def work() -> None:
        track("order:1")
        change()
        tokens.append(str(current_token()))

    shape(command, work)
    assert current_scope() is None
    assert title(token=tokens[0]) == "second"
    with scope():
        assert Note.objects.get().title == "first"
        see(key="order:1")
        assert Note.objects.get().title == "second"


@pytest.mark.parametrize("shape", [as_function, as_method, as_handler, as_view])
def test_an_atomic_command_is_one_transaction(cluster: Cluster, shape: Any) -> None:
    """What it has written before it raises is taken back."""

    def fail() -> None:
        assert connection.in_atomic_block
        change()
        message = "no"
        raise LookupError(message)

    with pytest.raises(LookupError):
        shape(command(atomic=True), fail)
    assert Note.objects.get().title == "first"
    with pytest.raises(LookupError):
        shape(command(atomic=True, using="default"), fail)
    with pytest.raises((LookupError, AssertionError)):
        shape(command, fail)
    assert not connection.in_atomic_block


@pytest.mark.parametrize(
    "shape", [as_coroutine, as_generator, as_async_generator, as_async_handler]
)
def test_what_is_awaited_is_not_atomic(cluster: Cluster, shape: Any) -> None:
    """Django's transactions would hold for other tasks of the thread as well: it is refused where it is written."""
    with pytest.raises(ConfigurationError, match="cannot be atomic: Django's transactions hold"):
        shape(command(atomic=True), change)


def test_what_returns_an_awaitable_is_not_atomic(cluster: Cluster) -> None:
    """As the dispatch() of a view with asynchronous handlers: it would run after its transaction."""

    async def work() -> None: ...

    with pytest.raises(ConfigurationError, match="awaited later, when its transaction is over"):
        command(atomic=True)(lambda: work())()


def test_a_transaction_is_one_on_a_primary(cluster: Cluster) -> None:
    """A replica is refused, and nothing is run there."""
    with pytest.raises(ConfigurationError, match="'replica1' is a replica: pass the alias"):
        command(atomic=True, using="replica1")(change)()


# 3. Queries: what they see ------------------------------------------------------------------------


def test_a_query_sees_what_its_user_has_written(lagging: Cluster, ann: User) -> None:
    """In an earlier scope, and in this one; what others have written may be missing."""
    read = query(lambda: Note.objects.get().title)
    with scope(user=ann):
        assert read() == "first"
        command(change)()
        assert read() == "second"
    with scope(user=ann):
        assert read() == "second"
    with scope():
        assert read() == "first"


@pytest.mark.parametrize("atomic", [True, False])
def test_a_query_in_a_command_reads_where_that_does(
    lagging: Cluster, served: Served, atomic: bool
) -> None:
    """Inside its transaction too: what it decides by is what there is now. It may write on afterwards."""
    read = query(lambda: Note.objects.get().title)

    @command(atomic=atomic)
    def work() -> tuple[str, str, str]:
        before = read()
        Note.objects.update(title="second")
        after = read()
        with pytest.raises(WriteInQuery), transaction.atomic():
            query(change)()
        if not atomic:
            Note.objects.update(title="third")
        return before, after, read()

    assert work() == ("first", "second", "second" if atomic else "third")
    assert served.only_primary("notes_note")


def test_a_query_in_use_primary_reads_there(lagging: Cluster) -> None:
    """The caller has asked for what there is now."""
    change()
    with use_primary():
        assert query(lambda: Note.objects.get().title)() == "second"
    with scope():
        assert query(lambda: Note.objects.get().title)() == "first"


def test_a_query_may_rather_fail_than_ask_the_primary(lagging: Cluster) -> None:
    """As `use_replica` does; and an argument that is none is refused where it is written."""
    with scope():
        change()
        with pytest.raises(TooStale):
            query(on_stale="raise")(lambda: Note.objects.get())()
    with pytest.raises(ConfigurationError, match="max_lag should be a number of seconds"):
        query(max_lag=-1.0)


def test_a_query_that_posts_reads_from_a_replica(
    lagging: Cluster, test_site: None, ann: User, served: Served
) -> None:
    """A request that may write reads from the primary: not where its view says that it does not."""
    client = sign_in(ann)

    def work(request: HttpRequest) -> str:
        request.user.get_username()
        served.clear()
        return Note.objects.get().title

    assert visit(client, query(work), "post") == "first"
    assert served.only_replicas("notes_note") is False  # she has just signed in
    for replica in lagging.replicas:
        replica.resume()
    wait_until_known(lagging)
    assert visit(client, query(work), "post") == "first"
    assert served.only_replicas("notes_note")


# 4. Views -----------------------------------------------------------------------------------------


def test_what_a_view_leaves_to_be_rendered_is_the_querys_as_well(
    cluster: Cluster, test_site: None
) -> None:
    """A template, and a stream."""

    class Writer:
        def __str__(self) -> str:
            return str(change())

    def rendered(request: HttpRequest) -> SimpleTemplateResponse:
        template = Engine().from_string("{{ writer }}")
        response = SimpleTemplateResponse("")
        response.resolve_template = lambda name: _Wrapped(template)
        response.context_data = {"writer": Writer()}
        return response

    def streamed(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(str(change()) for _ in range(1))

    for view in (rendered, streamed):
        with pytest.raises(WriteInQuery):
            list(visit(Client(), query(view)))
    assert Note.objects.get().title == "first"


class _Wrapped:
    def __init__(self, template: Any) -> None:
        self._template = template

    def render(self, context: Any, request: Any) -> str:

        return str(self._template.render(Context(context)))


@pytest.mark.parametrize("atomic_requests", [False, True])
def test_the_session_of_a_request_is_none_of_the_querys(
    lagging: Cluster, test_site: None, ann: User, settings: Any, atomic_requests: bool
) -> None:
    """Django ends it where a password was changed elsewhere; and whoever it is of sees what was saved."""
    client = sign_in(ann)
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = atomic_requests
    try:

        def save(request: HttpRequest) -> None:
            request.session["value"] = "new"
            request.session.save()
            assert Note.objects.get().title == "first"

        assert visit(client, query(save)).status_code == 200
        assert visit(client, lambda request: request.session["value"]) == "new"
        assert visit(client, query(lambda request: request.session.flush())).status_code == 200
        assert visit(client, lambda request: request.user.is_anonymous)
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


def test_a_view_under_atomic_requests(
    cluster: Cluster, test_site: None, served: Served, note: Note
) -> None:
    """A query reads from a replica, and is refused its write; a command writes in the request's transaction."""
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    try:
        assert visit(Client(), query(lambda request: Note.objects.get().title)) == "first"
        assert served.only_replicas("notes_note")
        with pytest.raises(WriteInQuery):
            visit(Client(), query(lambda request: change()))
        with pytest.raises(WriteInQuery):
            visit(Client(), use_primary(lambda request: _touch_in_query(note)))
        assert visit(Client(), command(lambda request: change())) == "second"
    finally:
        connections["default"].settings_dict["ATOMIC_REQUESTS"] = False
    assert Note.objects.get().version == 1


def _touch_in_query(note: Note) -> None:
    with connection.cursor() as cursor:
        query(by_text)(cursor, note.pk)
