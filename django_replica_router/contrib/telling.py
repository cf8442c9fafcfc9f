"""What the middlewares share that have the reasons of a request's statements known while they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

from django_replica_router.observing import tell_reasons


class TellingMiddleware:
    """Serves each request in a block of ``observing``."""

    sync_capable = True
    async_capable = True

    block: Callable[[], AbstractContextManager[None]]
    """Makes the block."""

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
        with self.block():
            response: HttpResponseBase = self.get_response(request)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do so without blocking the event loop."""
        with self.block():
            response: HttpResponseBase = await self.get_response(request)
        return response
