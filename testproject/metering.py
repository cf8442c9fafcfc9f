"""Counts which database each query of a request really ran on, whatever the router says it did."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

verb_of_statement = re.compile(r"\s*(\w+)")
table_of_statement = re.compile(r'(?:FROM|INTO|UPDATE)\s+"?(\w+)')


@dataclass(frozen=True, slots=True)
class Query:
    """One statement that was executed."""

    alias: str
    verb: str
    table: str
    reason: str

    @property
    def is_read(self) -> bool:
        """Return whether rows of a table were read; a router's own bookkeeping reads none."""
        return self.verb == "SELECT" and self.table != ""


@dataclass(slots=True)
class Meter:
    """The statements of one request."""

    queries: list[Query] = field(default_factory=list)

    def reads(self) -> Counter[str]:
        """Return how many reads each alias served."""
        return Counter(query.alias for query in self.queries if query.is_read)

    def described_queries(self) -> str:
        """Return all of them as JSON: a list of alias, verb, table and reason for each."""
        return json.dumps([[q.alias, q.verb, q.table, q.reason] for q in self.queries])

    def described_reads(self) -> str:
        """Return the same as text, such as ``default=1, replica2=3``."""
        return ", ".join(f"{alias}={n}" for alias, n in sorted(self.reads().items()))


_meter: ContextVar[Meter | None] = ContextVar("testproject_meter", default=None)


def current_meter() -> Meter | None:
    """Return the meter of the request being answered."""
    return _meter.get()


@contextmanager
def metering() -> Iterator[Meter]:
    """Count the statements that run in the block."""
    meter = Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)


def routing_of_this_request() -> list[tuple[str, str]]:
    """Return the (alias, reason) pairs that the package has decided in this request, oldest first."""
    try:
        from django_replica_router import current_scope
    except ImportError:
        return []
    scope = current_scope()
    return list((scope and scope.decisions) or [])


def _reason(alias: str) -> str:
    """Return why the statement about to run went where it goes: the last decision for its alias."""
    decisions = routing_of_this_request()
    return next((reason for decided, reason in reversed(decisions) if decided == alias), "")


def _describe(alias: str, sql: object) -> Query:
    # Anything but a string is SQL composed by psycopg, which no page of this project sends.
    text = sql if isinstance(sql, str) else ""
    verb = verb_of_statement.match(text)
    table = table_of_statement.search(text)
    return Query(
        alias,
        verb=verb[1].upper() if verb else "",
        table=table[1] if table else "",
        reason=_reason(alias),
    )


def _record(
    execute: Callable[..., Any], sql: object, params: Any, many: bool, context: dict[str, Any]
) -> Any:
    meter = _meter.get()
    if meter is not None:
        meter.queries.append(_describe(context["connection"].alias, sql))
    return execute(sql, params, many, context)


def watch_connection(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    """Record every statement of a connection; a receiver of `connection_created`.

    The wrapper stays on the connection and writes into the meter of whichever request runs, since
    under ASGI the connection belongs to another thread than the middleware's.
    """
    if _record not in connection.execute_wrappers:
        connection.execute_wrappers.append(_record)


def _label(response: HttpResponseBase, meter: Meter) -> HttpResponseBase:
    response["X-Reads"] = meter.described_reads()
    response["X-Worker"] = str(os.getpid())
    if settings.INSPECT:
        response["X-Queries"] = meter.described_queries()
    return response


@sync_and_async_middleware
def meter_middleware(
    get_response: Callable[[HttpRequest], Any],
) -> Callable[[HttpRequest], Any]:
    """Answer with the headers `X-Reads` (reads by alias) and `X-Worker` (process id).

    Where the site is inspected, `X-Queries` tells each statement, where it ran, and why.
    """
    if iscoroutinefunction(get_response):
        get_response_async = cast(
            "Callable[[HttpRequest], Awaitable[HttpResponseBase]]", get_response
        )

        async def answer_async(request: HttpRequest) -> HttpResponseBase:
            with metering() as meter:
                return _label(await get_response_async(request), meter)

        return answer_async

    def answer(request: HttpRequest) -> HttpResponseBase:
        with metering() as meter:
            return _label(get_response(request), meter)

    return answer
