"""A response header that tells the browser which servers a page has asked, for how long, and why."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

from django_replica_router.contrib.showing import by_server, count_reasons, plural
from django_replica_router.observations import Observation, Query
from django_replica_router.observing import observe

HEADER = "Server-Timing"

_NO_TOKEN = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_NO_TEXT = re.compile(r"[^\t\x20-\x7e]")


class ServerTimingMiddleware(MiddlewareMixin):
    """Adds ``Server-Timing`` to responses: a name of each server, its queries with their reasons, and their time.

    It tells the names of servers to whoever sees the response: see ``is_for``. Belongs first in ``MIDDLEWARE``.
    """

    get_response: Any

    def is_for(self, request: HttpRequest) -> bool:
        """Tell whether the response to a request is to have the header: where ``DEBUG`` is set.

        Asked before the request is served, since nothing is observed where it is not. A subclass may say
        otherwise.
        """
        return settings.DEBUG

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve the request, observed where the response is to tell what was seen."""
        if self.async_mode:
            return self.__acall__(request)
        if not self.is_for(request):
            response: HttpResponseBase = self.get_response(request)
            return response
        with observe() as seen:
            response = self.get_response(request)
        return _add(response, seen)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        """Do so without blocking the event loop."""
        if not await self._ais_for(request):
            response: HttpResponseBase = await self.get_response(request)
            return response
        with observe() as seen:
            response = await self.get_response(request)
        return _add(response, seen)

    async def _ais_for(self, request: HttpRequest) -> bool:
        """Ask a subclass in a thread, where it may read. The rule of this class needs none."""
        if type(self).is_for is ServerTimingMiddleware.is_for:
            return self.is_for(request)
        return await sync_to_async(self.is_for)(request)


def _add(response: HttpResponseBase, seen: Observation) -> HttpResponseBase:
    """Add what was seen to what others have said. Of a stream: what was seen before its first part."""
    before = response.headers.get(HEADER)
    parts = ([before] if before else []) + metrics_of(seen)
    if parts:
        response.headers[HEADER] = ", ".join(parts)
    return response


def metrics_of(seen: Observation) -> list[str]:
    """Return the metrics of the header: one of each server, and one of deciding, waiting included."""
    answered = by_server(seen)
    metrics = [
        _metric(alias, _describe(queries), sum(query.seconds for query in queries))
        for alias, queries in answered.items()
    ]
    if answered:
        deciding = sum(query.deciding for query in seen.queries)
        metrics.append(_metric("routing", "deciding, with waiting", deciding))
    return metrics


def _describe(queries: list[Query]) -> str:
    reasons = [(count, name) for count, name, _ in count_reasons(queries)]
    only = len(reasons) == 1
    told = ", ".join(name if only else f"{count} {name}" for count, name in reasons)
    return f"{plural(len(queries), 'query', 'queries')}: {told}"


def _metric(name: str, text: str, seconds: float) -> str:
    """Return a metric in the header's syntax: a token, a quoted string and milliseconds."""
    quoted = re.sub(r'(["\\])', r"\\\1", _NO_TEXT.sub("?", text))
    return f'{_NO_TOKEN.sub("_", name)};desc="{quoted}";dur={seconds * 1000:.3f}'
