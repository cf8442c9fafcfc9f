"""Comments of statements that tell the server's log, and its views of activity, why each came there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from django_replica_router.observing import commenting, tell_reasons


class SqlCommenterMiddleware:
    """Sends the statements of requests with comments in the format of sqlcommenter.

    ``SELECT ... /*replica_reason='CAUGHT_UP',replica_server='replica1'*/``. Belongs first in ``MIDDLEWARE``.
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
        tell_reasons()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request."""
        if self.is_async:
            return self.__acall__(request)
        with commenting():
            response: HttpResponseBase = self.get_response(request)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do so without blocking the event loop."""
        with commenting():
            response: HttpResponseBase = await self.get_response(request)
        return response
