"""The site: light pages that each read or raise registers, and say which server served them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

import django_replica_router
from testproject.metering import routing_of_this_request, table_of_statement, verb_of_statement
from tests.torture.models import Register, Scratch, Visit
from tests.torture.stalls import Span, heartbeat

GLOBAL_REGISTER = 0

# 1. Which server served ------------------------------------------------------------------------


@dataclass(slots=True)
class Meter:
    """What has served a request.

    Args:
        aliases: those that have served reads, in the order of their first.
        reads: when each read began, and ended, that took long.
    """

    aliases: dict[str, None] = field(default_factory=dict)
    reads: list[Span] = field(default_factory=list)


_meter: ContextVar[Meter | None] = ContextVar("torture_meter", default=None)

SLOW = 0.25
"""Seconds from which a read is told of."""

MOST_TOLD = 20


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Note how long a single read takes, whatever the package does for it: all of that is waited for."""
    start = time.monotonic()
    try:
        yield
    finally:
        end = time.monotonic()
        meter = _meter.get()
        if meter is not None and end - start > SLOW:
            meter.reads.append((start, end))


def _record(
    execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    """Note a read that was served. One that failed was not, and is run again elsewhere."""
    result = execute(sql, params, many, context)
    meter = _meter.get()
    if meter is not None and isinstance(sql, str):
        verb = verb_of_statement.match(sql)
        if verb and verb[1].upper() == "SELECT" and table_of_statement.search(sql):
            meter.aliases[context["connection"].alias] = None
    return result


def watch_connection(*, connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    """Meter every statement of a connection; a receiver of `connection_created`."""
    if _record not in connection.execute_wrappers:
        connection.execute_wrappers.append(_record)


def meter_middleware(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Tell in headers what has served the request, whether it succeeded or not."""

    def answer(request: HttpRequest) -> HttpResponseBase:
        meter = Meter()
        token = _meter.set(meter)
        try:
            response = get_response(request)
        finally:
            _meter.reset(token)
        reasons = {f"{alias}:{reason}": None for alias, reason in routing_of_this_request()}
        response["X-Aliases"] = ",".join(meter.aliases)
        response["X-Reasons"] = ",".join(reasons)
        response["X-Worker"] = str(os.getpid())
        slowest = sorted(meter.reads, key=lambda read: read[0] - read[1])[:MOST_TOLD]
        slow = [(start, end, heartbeat.stalls(start, end)) for start, end in slowest]
        response["X-Slow-Reads"] = json.dumps(slow)
        return response

    return answer


# 2. The pages ----------------------------------------------------------------------------------


def _read(register: int) -> int:
    with timed():
        value: int = Register.objects.values_list("value", flat=True).get(pk=register)
    return value


# Objects that outlive the request that has read them, as in a site that keeps them in a module.
_kept: dict[tuple[str, int], Register] = {}


def _read_by_kept(kind: str, register: int) -> int:
    """Read a register as a generic foreign key of an object does that was kept: by its alias.

    Args:
        kind: "replica" for an object that has come from a replica, if there was one; else any.
        register: its number.
    """
    kept = _kept.get((kind, register))
    if kept is None or (kind == "replica" and kept._state.db == "default"):
        with timed():
            kept = _kept[kind, register] = Register.objects.get(pk=register)
    model = ContentType.objects.get_for_model(Register)
    with timed():
        found: Register = model.get_object_for_this_type(using=kept._state.db, pk=register)
    return found.value


Pairs = list[tuple[int, int]]


def _answer(
    request: HttpRequest, look: Callable[[], Pairs] | None = None, **values: object
) -> JsonResponse:
    with timed():
        value = request.session.get("value")
    with timed():
        user = request.user.get_username() or None
    answer: dict[str, object] = {"user": user, "session": value, **values}
    if look is not None:
        answer["values"] = look()
    return JsonResponse(answer)


def _count(request: HttpRequest, register: int) -> None:
    """Count a visit where it is asked for: that must neither bind the reader nor hide what does."""
    if request.GET.get("count") == "1":
        Visit.objects.filter(pk=register).update(hits=F("hits") + 1)


def _own(request: HttpRequest) -> int:
    return int(request.GET["own"])


def read(request: HttpRequest) -> JsonResponse:
    """Read the session, the user, and several times both registers, each by a query of its own."""
    own, times = _own(request), int(request.GET.get("times", "1"))
    kept = request.GET.get("kept")
    look = partial(_read_by_kept, kept) if kept else _read
    with contextlib.suppress(DatabaseError):  # with the primary down, replicas go on to serve
        _count(request, own)
    # As in most sites, who asks is found out before anything else is read.
    return _answer(request, lambda: [(look(own), look(GLOBAL_REGISTER)) for _ in range(times)])


def dawdle(request: HttpRequest) -> JsonResponse:
    """Read one row for a while, as a report does, then the registers."""
    seconds = float(request.GET.get("seconds", "0.2"))
    # Not through a shortcut: the statement must hold its snapshot and its lock while it sleeps.
    list(
        Scratch.objects.raw(
            "SELECT id, filler, pg_sleep(%s) FROM torture_scratch WHERE id = 1", [seconds]
        )
    )
    own = _own(request)
    return _answer(request, lambda: [(_read(own), _read(GLOBAL_REGISTER))])


def raise_register(request: HttpRequest) -> JsonResponse:
    """Raise a register and read it back; by which way of writing, the request says."""
    register = int(request.GET["register"])
    before = _read(register) if request.method == "GET" else None
    if request.GET.get("way") == "statement":
        # It is the last that the request does on the primary.
        _answer(request)
        written = _raise_by(
            "UPDATE torture_register SET value = value + 1 WHERE id = %s RETURNING value", register
        )
        return _answer(request, before=before, written=written, after=written)
    if request.GET.get("way") == "function":
        written = _raise_by("SELECT torture_raise(%s)", register)
    else:
        written = _raise_by_orm(request, register)
    return _answer(request, before=before, written=written, after=_read(register))


def _raise_by(statement: str, register: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(statement, [register])
        ((written,),) = cursor.fetchall()
    return int(written)


def _raise_by_orm(request: HttpRequest, register: int) -> int:
    with transaction.atomic():
        if request.GET.get("async") == "1":
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit = off")
        Register.objects.filter(pk=register).update(value=F("value") + 1)
        _count(request, register)
        return _read(register)


def remember(request: HttpRequest) -> JsonResponse:
    """Keep a number in the session."""
    request.session["value"] = int(request.GET["value"])
    return _answer(request)


def sign_in(request: HttpRequest) -> JsonResponse:
    """Sign in; no password, since a slow hash is not what is measured."""
    login(request, User.objects.get(username=request.GET["user"]))
    return _answer(request)


def sign_out(request: HttpRequest) -> JsonResponse:
    """Sign out."""
    logout(request)
    return _answer(request)


def stats(request: HttpRequest) -> JsonResponse:
    """Tell what the package has counted in this process, where it counts."""
    counted: Any = {}
    with contextlib.suppress(AttributeError):
        counted = getattr(django_replica_router, "get_stats")()  # noqa: B009 - not there in every version
    return JsonResponse({"pid": os.getpid(), "stats": counted})


def explain_failure(request: HttpRequest) -> HttpResponse:
    """Answer an error with where it came from, so that it stands in the history."""
    error = sys.exc_info()[1]
    frames = traceback.extract_tb(error.__traceback__ if error is not None else None)
    places = [f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in frames]
    told = f"{error!r} at {' < '.join(reversed(places[-12:]))}"
    return HttpResponse(told, content_type="text/plain", status=500)


handler500 = explain_failure

urlpatterns = [
    path("read", read),
    path("dawdle", dawdle),
    path("raise", raise_register),
    path("remember", remember),
    path("login", sign_in),
    path("logout", sign_out),
    path("stats", stats),
]
