"""What the middlewares share that have the reasons of a request's statements known while they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from django_replica_router.observing import tell_reasons


class TellingMiddleware(MiddlewareMixin):
    """Serves each request in a block of ``observing``."""

    block: Callable[[], AbstractContextManager[None]]
    """Makes the block."""

    get_response: Any

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        tell_reasons()

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request."""
        if self.async_mode:
            return self.__acall__(request)
        with self.block():
            response: HttpResponseBase = self.get_response(request)
        return response

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do so without blocking the event loop."""
        with self.block():
            response: HttpResponseBase = await self.get_response(request)
        return response
