"""The shop's pages that have others act: a worker, and the courier."""

from __future__ import annotations

from typing import Any

import httpx
from celery.result import AsyncResult
from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_GET, require_POST

from django_replica_router.contrib.httpx import TokenTransport
from testproject.orders.queries import describe
from testproject.services.celery import app
from testproject.services.tasks import ship as ship_task

TIMEOUT_SECONDS = 30.0


@require_POST
def ship(request: HttpRequest, pk: int) -> JsonResponse:
    """Have the worker ship an order."""
    return JsonResponse({"task": ship_task.delay(pk).id}, status=202)


@require_GET
def shipped(request: HttpRequest, pk: int, task: str) -> JsonResponse:
    """Tell of an order, and of what the worker has found, once its task has ended."""
    result = AsyncResult(task, app=app)
    if not result.ready():
        return JsonResponse({}, status=202)
    return JsonResponse({"order": describe(pk), "worker": result.get()})


@require_POST
def deliver(request: HttpRequest, pk: int, task: str) -> JsonResponse:
    """Have the courier deliver what the task has shipped, and tell of the order after that."""
    AsyncResult(task, app=app).get(timeout=TIMEOUT_SECONDS)
    with _courier() as courier:
        answer = courier.post(f"/parcels/{pk}/")
    told: dict[str, Any] = answer.json() | {"reads": answer.headers.get("X-Reads", "")}
    return JsonResponse({"order": describe(pk), "courier": told})


def _courier() -> httpx.Client:
    # Where reads are routed at random there is no header: the control.
    transport = TokenTransport() if settings.ROUTING == "package" else httpx.HTTPTransport()
    url: str = settings.COURIER_URL  # type: ignore[misc]  # of this site alone
    return httpx.Client(base_url=url, transport=transport, timeout=TIMEOUT_SECONDS)
