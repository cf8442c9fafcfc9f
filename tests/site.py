"""A site for tests: one view that does what the test says, and the demonstration's own pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.test import AsyncClient, Client
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
    return _answer(Action.present(request))


@login_not_required
async def arun(request: HttpRequest) -> HttpResponseBase:
    """Do what the test says, in the event loop."""
    assert Action.present is not None
    return _answer(await Action.present(request))


def _answer(result: Any) -> HttpResponseBase:
    if isinstance(result, HttpResponseBase):
        return result
    return JsonResponse({"result": result}) if result is not None else HttpResponse()


urlpatterns = [path("run/", run), path("arun/", arun), *project_urls]


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


async def avisit(
    client: AsyncClient,
    action: Callable[[HttpRequest], Any],
    method: str = "get",
    url: str = "/arun/",
    **extra: Any,
) -> Any:
    """Send a request through the asynchronous stack; the action may be a coroutine function."""
    Action.present = staticmethod(action)
    try:
        response = await getattr(client, method)(url, **extra)
    finally:
        Action.present = None
    if response.headers.get("Content-Type") == "application/json":
        return response.json()["result"]
    return response


def sign_in(user: User, client: Client | None = None) -> Client:
    """Return a client that has signed in as the user through the login page."""
    client = client or Client()
    # Told whereto: else the view would look for the name of a page among all that the site has, in each test anew.
    data = {"username": user.username, "password": PASSWORD, "next": "/"}
    response = client.post("/login/", data)
    assert response.status_code == 302, "the login was refused"
    return client
