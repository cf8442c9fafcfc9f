"""An ordinary site: sessions and users in the database, a form, and a page that shows rows."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.contrib.auth import authenticate, login
from django.contrib.sessions.models import Session
from django.db.backends.signals import connection_created
from django.db.models import F
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import path

from benchmarks.load.models import Row
from benchmarks.load.site import _reason

SESSIONS = f'"{Session._meta.db_table}"'
is_select = re.compile(r'\s*SELECT\b.*\bFROM "', re.DOTALL)

_asked: ContextVar[float] = ContextVar("benchmarks_ordinary_asked", default=0.0)
_reads: ContextVar[list[tuple[str, bool]] | None] = ContextVar(
    "benchmarks_ordinary_reads", default=None
)


def _note_read(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    reads = _reads.get()
    known = None if reads is None else len(reads)
    result = execute(sql, params, many, context)
    # One that the primary has answered instead was noted on its way there.
    if reads is not None and len(reads) == known and is_select.match(sql):
        reads.append((context["connection"].alias, SESSIONS in sql))
    return result


def watch(connection: Any, **kwargs: Any) -> None:
    """Note which server answers a SELECT, around all that a router does to it."""
    if _note_read not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, _note_read)


connection_created.connect(watch)


def meter_middleware(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Note when the request came, before the contender's middleware sees it, and what it reads."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        _asked.set(time.monotonic())
        _reads.set([])
        return get_response(request)

    return answer


def sign_in(request: HttpRequest) -> JsonResponse:
    """Log the user in, and send the browser on."""
    user = authenticate(request, username=request.GET["name"], password="")
    if user is None:
        message = f"There is no user {request.GET['name']!r}."
        raise LookupError(message)
    login(request, user)
    return JsonResponse({}, status=302, headers={"Location": "/page/"})


def write(request: HttpRequest) -> JsonResponse:
    """Raise a row's version, and send the browser on to the page that shows it."""
    Row._default_manager.filter(pk=request.GET["row"]).update(version=F("version") + 1)
    return JsonResponse({}, status=302, headers={"Location": "/page/"})


def page(request: HttpRequest) -> JsonResponse:
    """Show who is signed in, the versions of some rows, and which servers have told."""
    name = request.user.get_username() or None
    pks = request.GET["rows"].split(",")
    versions = {row.pk: row.version for pk in pks for row in Row._default_manager.filter(pk=pk)}
    for number in range(settings.FURTHER_QUERIES):  # type: ignore[misc]
        Row._default_manager.filter(pk=number).first()
    return JsonResponse(
        {
            "user": name,
            "versions": versions,
            "asked": _asked.get(),
            "answered": time.monotonic(),
            "reads": _reads.get(),
            "reason": _reason(),
        }
    )


urlpatterns = [
    path("sign-in/", sign_in),
    path("write/", write),
    path("page/", page),
]
