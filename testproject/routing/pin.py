"""For 15 seconds after a write, the browser that wrote reads from the primary."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from django.db.models import Model
from django.http import HttpRequest, HttpResponse

from testproject.routing.random import PRIMARY, RandomReplicaRouter

PIN_COOKIE = "pin"
PIN_SECONDS = 15
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_pinned: ContextVar[bool] = ContextVar("testproject_pinned", default=False)


class PinRouter(RandomReplicaRouter):
    """Reads from the primary while the request is pinned, else from a random replica."""

    def db_for_read(self, model: type[Model], **hints: object) -> str:
        """Return the primary in a pinned request."""
        return PRIMARY if _pinned.get() else super().db_for_read(model, **hints)


class PinMiddleware:
    """Pins requests with an unsafe method, and by a cookie those that follow from that browser.

    This is what django-multidb-router's pinning middleware does with its default of 15 seconds.
    Rails' `DatabaseSelector` keeps the time of the last write in the session and defaults to
    2 seconds; Laravel's `sticky` lasts for the request alone. The longest of them is the safest,
    so it is the one compared with.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        may_write = request.method not in SAFE_METHODS
        token = _pinned.set(may_write or PIN_COOKIE in request.COOKIES)
        try:
            response = self.get_response(request)
        finally:
            _pinned.reset(token)
        if may_write:
            response.set_cookie(PIN_COOKIE, "1", max_age=PIN_SECONDS, httponly=True)
        return response
