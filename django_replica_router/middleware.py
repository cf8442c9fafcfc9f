"""The middleware: opens a scope for each request, and stores its token before the response leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers

from django_replica_router.conf import Config, get_config
from django_replica_router.errors import ReplicasLagError
from django_replica_router.logs import fields, logger
from django_replica_router.recording.carrying import token_of
from django_replica_router.recording.finishing import afinish_scope, finish_scope, unsent_records
from django_replica_router.routing.deciding import release_scope
from django_replica_router.scopes.cookies import set_cookie
from django_replica_router.scopes.headers import read_header, set_header
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.scopes.scope import Frame, Scope, current_frame, get_frame
from django_replica_router.scopes.views import names_views, override_for

# A method of an imported object is looked up each time.
_enter_frame, _leave_frame = current_frame.set, current_frame.reset


class ReplicaRouterMiddleware:
    """Opens a scope for each request. Belongs first in ``MIDDLEWARE``.

    It must be outside ``SessionMiddleware``, which writes while the response passes it, and
    outside whatever else reads or writes.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self,
        get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
    ) -> None:
        self.get_response: Callable[[HttpRequest], Any] = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)
        if names_views(get_config()):
            # Django calls it for each request where it is there, and in a thread where it is no coroutine.
            self.process_view = self._aprocess_view if self.is_async else self._process_view

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request inside a scope of its own."""
        if self.is_async:
            return self.__acall__(request)
        scope, identity, config = _open(request)
        streams = False
        # What _inside() does, without the generator that it costs every request.
        token = _enter_frame(Frame(scope))
        try:
            response: HttpResponseBase = self.get_response(request)
            sent = identity.sent_session(response)
            if finish_scope(scope, sent):
                records = unsent_records(scope)
                if records:
                    set_cookie(request, response, records, config.TOKEN_TTL)
            if config.HEADER is not None:
                _send_header(response, scope, config.HEADER)
            if getattr(response, "streaming", False):
                streams = _wrap_stream(response, scope, config.HEADER)
        except BaseException:
            finish_scope(scope)
            raise
        finally:
            if not streams:
                release_scope(scope)
            _leave_frame(token)
        return response

    def _process_view(self, request: HttpRequest, *view: Any) -> None:
        """Route the reads of a view as ``PRIMARY_VIEWS`` or ``REPLICA_VIEWS`` ask for."""
        frame = get_frame()
        override = override_for(request.resolver_match, get_config())
        if override is not None and frame.scope is not None:
            current_frame.set(Frame(frame.scope, override))

    async def _aprocess_view(self, request: HttpRequest, *view: Any) -> None:
        self._process_view(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer 503 where the replicas lag and the primary's share of reads is used up."""
        if not isinstance(exception, ReplicasLagError):
            return None
        logger.warning("%s", exception, extra=fields("read_refused"))
        return HttpResponse(
            "The service is overloaded. Please try again in a moment.",
            status=503,
            content_type="text/plain",
            headers={"Retry-After": "1"},
        )

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve the request inside a scope of its own, without blocking the event loop."""
        scope, identity, config = _open(request)
        streams = False
        with _inside(Frame(scope)):
            try:
                response: HttpResponseBase = await self.get_response(request)
                sent = identity.sent_session(response)
                await afinish_scope(scope, sent)
                records = unsent_records(scope)
                if records:
                    set_cookie(request, response, records, config.TOKEN_TTL)
                if config.HEADER is not None and (scope.clusters or scope.carried):
                    await sync_to_async(_send_header)(response, scope, config.HEADER)
                streams = _wrap_stream(response, scope, config.HEADER)
            except BaseException:
                await afinish_scope(scope)
                raise
            finally:
                if not streams:
                    release_scope(scope)
        return response


def _open(request: HttpRequest) -> tuple[Scope, RequestIdentity, Config]:
    config = get_config()
    identity = RequestIdentity(request, asks_site=config.IDENTITY is not None)
    unsafe = request.method not in config.SAFE_METHODS
    scope = Scope(identity, unsafe=unsafe, debug=config.DEBUG, source=request)
    if config.HEADER is not None:
        read_header(request, scope, config.HEADER)
    return scope, identity, config


def _send_header(response: HttpResponseBase, scope: Scope, name: str) -> None:
    if scope.clusters or scope.carried:
        set_header(response, scope, name, token_of(scope))


@contextmanager
def _inside(frame: Frame) -> Iterator[None]:
    token = current_frame.set(frame)
    try:
        yield
    finally:
        current_frame.reset(token)


def _wrap_stream(response: HttpResponseBase, scope: Scope, header: str | None) -> bool:
    """Let the body of a streaming response be made inside the scope. Tell whether it streams."""
    if not getattr(response, "streaming", False) or getattr(response, "file_to_stream", None):
        return False  # a file reads no database, and may be sent by the server's own means
    if header is not None:
        patch_vary_headers(response, (header,))
    scope.has_ended = False
    body: Any = response
    if body.is_async:
        body.streaming_content = _AsyncStream(body._iterator, scope)
    else:
        # What a body does when it is closed half-way belongs to the scope, too.
        closers, body._resource_closers = body._resource_closers, []
        body.streaming_content = _Stream(body.streaming_content, closers, scope)
    return True


class _Stream:
    """The body of a streaming response: each part is made inside the scope, and so is its end.

    No generator: one that was never begun does not notice that it is closed.

    Args:
        content: the parts.
        closers: what the response would have called when it is closed.
        scope: the scope.
    """

    def __init__(
        self, content: Iterator[Any], closers: list[Callable[[], Any]], scope: Scope
    ) -> None:
        self._steps = iter(content)
        self._closers = closers
        self._scope = scope
        self._frame = get_frame()  # with what the settings ask for in its view

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        # Entered anew for each part: the server may take each in another context.
        with _inside(self._frame):
            try:
                return next(self._steps)
            except BaseException:
                self._finish()
                raise

    def close(self) -> None:
        with _inside(self._frame):
            while self._closers:
                with suppress(Exception):  # as the response itself does
                    self._closers.pop(0)()
            self._finish()

    def _finish(self) -> None:
        finish_scope(self._scope)
        release_scope(self._scope)


class _AsyncStream:
    """The same in an event loop.

    Nobody closes an asynchronous body that was left half-way, but the garbage collector, some time
    and anywhere: so the response closes it.

    Args:
        content: the parts.
        scope: the scope.
    """

    def __init__(self, content: AsyncIterator[Any], scope: Scope) -> None:
        self._steps = content
        self._scope = scope
        self._frame = get_frame()  # with what the settings ask for in its view
        self._has_ended = False
        self._ending: asyncio.Task[None] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        with _inside(self._frame):
            try:
                return await anext(self._steps)
            except BaseException:
                await self._finish()
                raise

    async def aclose(self) -> None:
        with _inside(self._frame):
            try:
                if hasattr(self._steps, "aclose"):
                    await self._steps.aclose()
            finally:
                await self._finish()

    def close(self) -> None:
        if self._has_ended:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # where Django closes a response
            async_to_sync(self.aclose)()
        else:
            self._ending = loop.create_task(self.aclose())

    async def _finish(self) -> None:
        self._has_ended = True
        await afinish_scope(self._scope)
        release_scope(self._scope)
