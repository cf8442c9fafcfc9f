"""Runs a function inside a request of this process: in the view, or before anything has been read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.test import Client

PATH = "/bench/probe/"


class _Present:
    """What the next request is to do."""

    action: Callable[[], Any] | None = None
    early = False
    found: Any = None


class ProbeMiddleware:
    """Stands behind the contender's middleware and before the session's."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Run the function, where it is to run before anything has been read."""
        return _run() if _Present.early else self.get_response(request)


def _run() -> HttpResponse:
    if _Present.action is not None:
        _Present.found = _Present.action()
    return HttpResponse()


@login_not_required
def probe(request: HttpRequest) -> HttpResponse:
    """Run the function, after the middleware has found out who the user is."""
    return _run()


def inside_request(client: Client, action: Callable[[], Any], *, early: bool = False) -> Any:
    """Return what the function returns inside a GET request of that browser."""
    _Present.action, _Present.early, _Present.found = staticmethod(action), early, None
    try:
        client.get(PATH)
    finally:
        _Present.action, _Present.early = None, False
    return _Present.found
