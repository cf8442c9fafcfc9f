"""OpenTelemetry: spans of statements that tell which server was chosen, and why."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from django_replica_router.contrib.extras import needs
from django_replica_router.observations import INSTEAD, running
from django_replica_router.observing import tell_reasons, telling

with needs("opentelemetry.sdk", "opentelemetry"):
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span, SpanProcessor

ALIAS = "replica_router.alias"
REASON = "replica_router.reason"


class ReplicaSpanProcessor(SpanProcessor):
    """Puts on each span that begins while a statement runs which server that was meant for, and why.

    Those are the spans of the driver's instrumentation: ``replica_router.alias`` has the alias,
    ``replica_router.reason`` the reason's name. Add it to the tracer provider, in front of what exports.
    Statements of requests have reasons by ``ReplicaSpanMiddleware``, others in a ``telling`` block.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Put on the span what is known of the statement that runs."""
        statement = running.get()
        if statement is not None:
            is_answered_instead = statement.alias != statement.asked
            reason = INSTEAD if is_answered_instead else statement.decided.reason
            span.set_attributes({ALIAS: statement.alias, REASON: reason})


class ReplicaSpanMiddleware:
    """Has the reasons of a request's statements known to ``ReplicaSpanProcessor``. Belongs first in ``MIDDLEWARE``."""

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
        tell_reasons()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request."""
        if self.is_async:
            return self.__acall__(request)
        with telling():
            response: HttpResponseBase = self.get_response(request)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do so without blocking the event loop."""
        with telling():
            response: HttpResponseBase = await self.get_response(request)
        return response
