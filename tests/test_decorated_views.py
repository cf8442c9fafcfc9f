"""`use_primary` and `use_replica` around views, and responses that are evaluated later."""

from __future__ import annotations

import asyncio
import io
import pickle
import re
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.test import RequestFactory
from django.views import View

from django_replica_router import use_primary, use_replica
from django_replica_router.errors import ConfigurationError
from django_replica_router.scopes.scope import Override
from tests.decorating import PRIMARY, REPLICA, _leaves_nothing_behind, request_, seen  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name


def template(text: str = "{{ seen.primary }}") -> Any:
    """Return a template that shows how it is routed."""
    return engines["django"].from_string(text)


# Views


def test_class_based_view_is_routed(request_: Any) -> None:
    """Every handler of a decorated view class is routed, and the class it inherits from is not."""

    class Base(View):
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    @use_primary
    class Decorated(Base):
        pass

    class Further(Decorated):
        def get(self, request: Any) -> Any:
            return HttpResponse(f"further {seen()!r}")

    assert Decorated.as_view()(request_).content.decode() == repr(PRIMARY)
    assert Further.as_view()(request_).content.decode() == f"further {PRIMARY!r}"
    assert Base.as_view()(request_).content.decode() == "None"
    assert "dispatch" not in vars(Base)


def test_async_class_based_view_is_routed(request_: Any) -> None:
    """Async handlers of a decorated view class are routed when they are awaited."""

    @use_primary()
    class Decorated(View):
        async def get(self, request: Any) -> Any:
            await asyncio.sleep(0)
            return HttpResponse(repr(seen()))

    view = Decorated.as_view()
    assert iscoroutinefunction(view)

    async def main() -> Any:
        waiting = view(request_)
        assert seen() is None
        return await waiting

    assert asyncio.run(main()).content.decode() == repr(PRIMARY)


@pytest.mark.parametrize("is_async", [False, True])
def test_result_of_as_view_is_routed(is_async: bool, request_: Any) -> None:
    """What as_view() returns may be decorated in the URL configuration, sync and async."""

    class Sync(View):
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    class Async(View):
        async def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

    view = use_primary((Async if is_async else Sync).as_view())
    assert iscoroutinefunction(view) is is_async
    response: Any = view(request_)
    if is_async:

        async def main(waiting: Any) -> Any:
            return await waiting

        response = asyncio.run(main(response))
    assert response.content.decode() == repr(PRIMARY)


def test_handler_of_a_view_class_is_routed(request_: Any) -> None:
    """A single handler may be decorated, inside a class that is not."""

    class Plain(View):
        @use_primary
        def get(self, request: Any) -> Any:
            return HttpResponse(repr(seen()))

        def head(self, request: Any) -> Any:
            return HttpResponse(headers={"Seen": repr(seen())})

    assert Plain.as_view()(request_).content.decode() == repr(PRIMARY)
    assert Plain.as_view()(RequestFactory().head("/"))["Seen"] == "None"


@pytest.mark.parametrize(
    "decorate", [use_primary, use_replica, use_primary(), use_replica(max_lag=3)]
)
def test_other_class_is_refused(decorate: Any) -> None:
    """A class that is no view raises a sentence that names it and says what to do."""

    class Thing:
        pass

    message = (
        f"{Thing!r} cannot be decorated: expected a function, or a class-based view with a method "
        f"dispatch(). Decorate its methods."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        decorate(Thing)


# Responses that are evaluated later


@pytest.mark.parametrize("kind", [SimpleTemplateResponse, TemplateResponse])
def test_template_response_is_rendered_in_the_route(kind: Any, request_: Any) -> None:
    """A template is rendered after the view has returned, in the view's route."""

    @use_primary
    def view(request: Any) -> Any:
        args = (template(), {"seen": seen_by_template})
        return kind(*args) if kind is SimpleTemplateResponse else kind(request, *args)

    response = view(request_)
    response.add_post_render_callback(lambda response: after.append(seen()))
    after: list[Any] = []
    with use_replica():
        assert response.render() is response
        assert seen() == REPLICA
    assert response.content == b"True"
    assert after == [PRIMARY]


def seen_by_template() -> Override | None:
    """Return what the template is routed by, when it is rendered."""
    return seen()


def test_rendered_response_can_be_pickled() -> None:
    """A response is cached after it was rendered: nothing of the route is left in it."""
    response = use_primary(lambda: SimpleTemplateResponse(template("text")))()
    response.render()
    assert pickle.loads(pickle.dumps(response)).content == b"text"  # noqa: S301 - made here
    assert "render" not in vars(response)


def test_response_that_is_rendered_already_is_left_alone() -> None:
    """A response which the view has rendered itself is returned as it is."""

    @use_primary
    def view() -> Any:
        return SimpleTemplateResponse(template(), {"seen": seen_by_template}).render()

    response = view()
    assert response.content == b"True"
    assert "render" not in vars(response)


def test_innermost_decorator_wins_for_a_template_response(request_: Any) -> None:
    """Two decorators around one template response render it once, in the route of the inner one."""

    @use_replica
    class Decorated(View):
        @use_primary
        def get(self, request: Any) -> Any:
            return TemplateResponse(request, template(), {"seen": seen_by_template})

    assert Decorated.as_view()(request_).render().content == b"True"


def test_async_view_returns_a_template_response() -> None:
    """What an async view returns is rendered in its route, too, in the thread that Django uses."""

    @use_primary
    async def view() -> Any:
        return SimpleTemplateResponse(template(), {"seen": seen_by_template})

    async def main() -> Any:
        response = await view()
        return await sync_to_async(response.render)()

    assert asyncio.run(main()).content == b"True"


def test_stream_is_made_in_the_route() -> None:
    """The parts of a streaming response are made after the view has returned, in its route."""

    def parts() -> Iterator[str]:
        yield f"{seen() == PRIMARY} "
        yield f"{seen() == PRIMARY}"

    def view() -> Any:
        return StreamingHttpResponse(parts())

    found = []
    for part in use_primary(view)():
        found += [part, seen()]
    assert found == [b"True ", None, b"True", None]
    assert b"".join(view()) == b"False False"


def test_stream_of_any_iterable_is_made_in_the_route() -> None:
    """A list, a map or a class that iterates may be streamed, and its bytes are the same."""

    class Parts:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> str:
            if not (left := getattr(self, "left", 2)):
                raise StopIteration
            self.left = left - 1
            return f"{seen() == PRIMARY} "

    content: Any
    for content, expected in (
        (["a", b"b"], b"ab"),
        (map(str, [1, 2]), b"12"),
        (Parts(), b"True True "),
    ):
        response = use_primary(lambda content=content: StreamingHttpResponse(content))()
        assert b"".join(response) == expected


def test_closing_a_response_closes_its_stream() -> None:
    """A client that goes away ends the generator behind a routed stream, once."""
    closed = []

    def parts() -> Iterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            closed.append(seen())

    response = use_primary(lambda: StreamingHttpResponse(parts()))()
    assert next(iter(response)) == b"a"
    response.close()
    assert len(closed) == 1


def test_async_stream_is_made_in_the_route() -> None:
    """The parts of an async streaming response are made in the view's route."""

    async def parts() -> AsyncIterator[str]:
        for _ in range(2):
            await asyncio.sleep(0)
            yield f"{seen() == PRIMARY} "

    class Parts:
        def __aiter__(self) -> Any:
            return parts()

    @use_primary
    async def view(content: Any) -> Any:
        return StreamingHttpResponse(content)

    async def main() -> None:
        for content in (parts(), Parts()):
            response = await view(content)
            assert response.is_async
            found = []
            async for part in response:
                found += [part, seen()]
            assert found == [b"True ", None] * 2

    asyncio.run(main())


def test_innermost_decorator_wins_for_a_stream() -> None:
    """Two decorators around one stream leave it in the route of the inner one."""

    def parts() -> Iterator[str]:
        yield f"{seen() == PRIMARY} "
        yield f"{seen() == PRIMARY}"

    view = use_replica(use_primary(lambda: StreamingHttpResponse(parts())))
    assert b"".join(view()) == b"True True"


def test_file_is_left_to_the_server() -> None:
    """A file response keeps its file, which a server may send by its own means."""
    file = io.BytesIO(b"content")
    response = use_primary(lambda: FileResponse(file))()
    assert response.file_to_stream is file
    assert b"".join(response) == b"content"


@pytest.mark.parametrize(
    "result", [None, 0, "text", HttpResponse("x"), SimpleNamespace(a=1)], ids=repr
)
def test_other_results_are_returned_as_they_are(result: Any) -> None:
    """A result that is complete is handed on, the very object."""
    assert use_primary(lambda: result)() is result
