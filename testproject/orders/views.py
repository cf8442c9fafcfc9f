"""Orders over HTTP, as JSON. What is asked tells which handler answers; what the handler is tells where it reads."""

from __future__ import annotations

import json
from typing import Any

from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_GET, require_POST

from django_replica_router import current_token, see
from django_replica_router.errors import WriteInQuery
from testproject.orders import commands, queries


@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """Place an order; the answer has the token, for whoever goes on."""
    pk = commands.place(request.user, json.loads(request.body))
    return JsonResponse({"id": pk, "token": str(current_token())}, status=201)


@require_POST
def pack(request: HttpRequest, pk: int) -> JsonResponse:
    """Pack an order."""
    done = commands.Pack().handle(pk)
    return JsonResponse(
        {"packed": done, "token": str(current_token())}, status=200 if done else 409
    )


@require_GET
def order(request: HttpRequest, pk: int) -> JsonResponse:
    """Tell of an order; with what the token in ``?token=`` binds to."""
    if "token" in request.GET:
        see(request.GET["token"])
    return _answer(queries.describe(pk))


@require_GET
def order_by_key(request: HttpRequest, pk: int) -> JsonResponse:
    """Tell of an order as whoever has worked on it last has left it."""
    return _answer(queries.describe_to_anybody(pk))


@require_GET
def counted_order(request: HttpRequest, pk: int) -> JsonResponse:
    """Tell of an order, and count that somebody has looked: refused, since a query may not write."""
    try:
        return _answer(queries.describe_and_count(pk))
    except WriteInQuery as error:
        return JsonResponse({"refused": error.table, "why": str(error)}, status=409)


@require_GET
def demand(request: HttpRequest) -> JsonResponse:
    """Tell how many of each product are ordered."""
    return JsonResponse(queries.Demand().handle())


def _answer(found: dict[str, Any] | None) -> JsonResponse:
    return JsonResponse({"order": found}, status=404 if found is None else 200)
