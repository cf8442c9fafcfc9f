"""The courier's one page."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from testproject.orders.commands import Deliver
from testproject.orders.queries import describe


@csrf_exempt
@login_not_required
@require_POST
def deliver(request: HttpRequest, pk: int) -> JsonResponse:
    """Deliver an order that was shipped, and tell what the courier has found it to be."""
    found = describe(pk)
    if found is not None:
        Deliver().handle(pk)
    return JsonResponse({"order": found})
