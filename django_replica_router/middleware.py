"""The middleware: opens a scope for each request, and stores its token before the response leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from django_replica_router.conf import get_config
from django_replica_router.context import Frame, Scope, current_frame
from django_replica_router.cookies import set_cookie
from django_replica_router.errors import ReplicasLagError
from django_replica_router.identity import RequestIdentity
from django_replica_router.writes import finish_scope, needs_finish, release_scope, unsent_records

logger = logging.getLogger("django_replica_router")


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

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request inside a scope of its own."""
        if self.is_async:
            return self.__acall__(request)
        scope, identity = _open(request)
        streams = False
        # What _inside() does, without the generator that it costs every request.
        token = current_frame.set(Frame(scope))
        try:
            response: HttpResponseBase = self.get_response(request)
            finish_scope(scope, identity.sent_session(response))
            _send_cookie(request, response, scope)
            streams = _wrap_stream(response, scope)
        except BaseException:
            finish_scope(scope)
            raise
        finally:
            if not streams:
                release_scope(scope)
            current_frame.reset(token)
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """Answer 503 where the replicas lag and the primary's share of reads is used up."""
        if not isinstance(exception, ReplicasLagError):
            return None
        logger.warning("%s", exception)
        return HttpResponse(
            "The service is overloaded. Please try again in a moment.",
            status=503,
            content_type="text/plain",
            headers={"Retry-After": "1"},
        )

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Serve the request inside a scope of its own, without blocking the event loop."""
        scope, identity = _open(request)
        streams = False
        with _inside(scope):
            try:
                response: HttpResponseBase = await self.get_response(request)
                sent = identity.sent_session(response)
                if needs_finish(scope, sent):
                    await sync_to_async(finish_scope)(scope, sent)
                _send_cookie(request, response, scope)
                streams = _wrap_stream(response, scope)
            except BaseException:
                if needs_finish(scope):
                    await sync_to_async(finish_scope)(scope)
                raise
            finally:
                if not streams:
                    release_scope(scope)
        return response


def _open(request: HttpRequest) -> tuple[Scope, RequestIdentity]:
    config = get_config()
    identity = RequestIdentity(request)
    unsafe = request.method not in config.SAFE_METHODS
    return Scope(identity, unsafe=unsafe, debug=config.DEBUG), identity


def _send_cookie(request: HttpRequest, response: HttpResponseBase, scope: Scope) -> None:
    config = get_config()
    records = unsent_records(scope, config)
    if records:
        set_cookie(request, response, records, config.TOKEN_TTL)


@contextmanager
def _inside(scope: Scope) -> Iterator[None]:
    token = current_frame.set(Frame(scope))
    try:
        yield
    finally:
        current_frame.reset(token)


def _wrap_stream(response: HttpResponseBase, scope: Scope) -> bool:
    """Let the body of a streaming response be made inside the scope. Tell whether it streams."""
    if not getattr(response, "streaming", False) or hasattr(response, "file_to_stream"):
        return False  # a file reads no database, and may be sent by the server's own means
    body: Any = response
    if body.is_async:
        body.streaming_content = _stream_async(body.streaming_content, scope)
    else:
        body.streaming_content = _stream(body.streaming_content, scope)
    return True


def _stream(content: Iterator[Any], scope: Scope) -> Iterator[Any]:
    steps = iter(content)
    try:
        while True:
            # Entered anew for each part: the server may take each in another context.
            with _inside(scope):
                try:
                    part = next(steps)
                except StopIteration:
                    return
            yield part
    finally:
        with _inside(scope):
            finish_scope(scope)
            release_scope(scope)


async def _stream_async(content: AsyncIterator[Any], scope: Scope) -> AsyncIterator[Any]:
    steps = aiter(content)
    try:
        while True:
            with _inside(scope):
                try:
                    part = await anext(steps)
                except StopAsyncIteration:
                    return
            yield part
    finally:
        with _inside(scope):
            if needs_finish(scope):
                await sync_to_async(finish_scope)(scope)
            release_scope(scope)
