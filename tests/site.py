"""A site for tests: one view that does what the test says, and the demonstration's own pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.test import Client
from django.urls import path

from testproject.urls import urlpatterns as project_urls

PASSWORD = "correct horse"


class Action:
    """What the view is to do; set by `visit`."""

    present: Callable[[HttpRequest], Any] | None = None


@login_not_required
def run(request: HttpRequest) -> HttpResponseBase:
    """Do what the test says, and answer with what that returns."""
    assert Action.present is not None
    result = Action.present(request)
    if isinstance(result, HttpResponseBase):
        return result
    return JsonResponse({"result": result}) if result is not None else HttpResponse()


urlpatterns = [path("run/", run), *project_urls]


def visit(
    client: Client,
    action: Callable[[HttpRequest], Any],
    method: str = "get",
    **extra: Any,
) -> Any:
    """Send a request whose view does the action; return the action's result, or the response."""
    Action.present = staticmethod(action)
    try:
        response = getattr(client, method)("/run/", **extra)
    finally:
        Action.present = None
    if response.headers.get("Content-Type") == "application/json":
        return response.json()["result"]
    return response


def sign_in(user: User, client: Client | None = None) -> Client:
    """Return a client that has signed in as the user through the login page."""
    client = client or Client()
    response = client.post("/login/", {"username": user.username, "password": PASSWORD})
    assert response.status_code == 302, "the login was refused"
    return client
