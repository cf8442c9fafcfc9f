"""The pages, as plain as can be: what is measured is the routing around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.db.models import F
from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.urls import path

from benchmarks.load.models import CostlyRow, Row
from django_replica_router.routing import search

SESSION_COOKIE = "sessionid"
PRESENT_POSITION = "SELECT pg_current_wal_insert_lsn() - '0/0', pg_current_xact_id()::text"

_alias: ContextVar[str] = ContextVar("benchmarks_load_alias", default="")
_ran: ContextVar[float] = ContextVar("benchmarks_load_ran", default=0.0)
_asked: ContextVar[float] = ContextVar("benchmarks_load_asked", default=0.0)


def _note_alias(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    if "load_" in str(sql):
        _alias.set(context["connection"].alias)
        _ran.set(time.monotonic())
    return execute(sql, params, many, context)


def watch(connection: Any, **kwargs: Any) -> None:
    """Note which server really runs a read, whatever a router says of it."""
    if _note_alias not in connection.execute_wrappers:
        connection.execute_wrappers.append(_note_alias)


connection_created.connect(watch)

if getattr(settings, "LOAD_POLLS", False):
    search.__dict__["waits_itself"] = lambda alias, monitor: False


def meter_middleware(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Note when the request came, before the contender's middleware sees it."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        _asked.set(time.monotonic())
        return get_response(request)

    return answer


def sign_in_middleware(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Know the user by the session cookie, without asking any database."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        request.user = User(pk=int(request.COOKIES[SESSION_COOKIE]))
        return get_response(request)

    return answer


def read(request: HttpRequest) -> JsonResponse:
    """Show the versions of some rows, and which server has told them."""
    pks = request.GET["rows"].split(",")
    versions = dict(Row._default_manager.filter(pk__in=pks).values_list("pk", "version"))
    return _answer(versions=versions)


def read_at_cost(request: HttpRequest) -> JsonResponse:
    """Show the version of a row whose reading keeps its server busy."""
    row = CostlyRow._default_manager.get(pk=request.GET["row"])
    return _answer(versions={row.pk: row.version})


def write_at_cost(request: HttpRequest) -> JsonResponse:
    """Raise the version of a row whose writing keeps the primary busy."""
    CostlyRow._default_manager.filter(pk=request.GET["row"]).update(version=F("version") + 1)
    return _answer()


def write(request: HttpRequest) -> JsonResponse:
    """Raise a row's version; tell the transaction, and the position before its commit."""
    with transaction.atomic():
        Row._default_manager.filter(pk=request.GET["row"]).update(version=F("version") + 1)
        with connection.cursor() as cursor:
            cursor.execute(PRESENT_POSITION)
            position, number = cursor.fetchone()
    answer = _answer(committed=time.monotonic(), position=int(position), transaction=int(number))
    # As after every form, the browser is sent on to a page that shows the change.
    answer.status_code = 302
    answer["Location"] = f"/read/?rows={request.GET['row']}"
    return answer


def _answer(**values: Any) -> JsonResponse:
    return JsonResponse(
        {
            "asked": _asked.get(),
            "ran": _ran.get(),
            "answered": time.monotonic(),
            "alias": _alias.get(),
            "reason": _reason(),
            **values,
        }
    )


def _reason() -> str:
    """Return why the package has decided as it did, where it is the contender."""
    from django_replica_router import current_scope

    scope = current_scope()
    return scope.decisions[-1][1] if scope is not None and scope.decisions else ""


urlpatterns = [
    path("read/", read),
    path("write/", write),
    path("costly/read/", read_at_cost),
    path("costly/write/", write_at_cost),
]
