"""The page that the requests of the whole stack ask for."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path

from django_replica_router.scopes.scope import current_scope
from testproject.notes.models import Tag


@login_not_required
def look(request: HttpRequest) -> HttpResponseBase:
    """Ask who it is, read a row, and tell which server gave it under which floor."""
    user = request.user.pk
    tag = Tag.objects.first()
    scope = current_scope()
    floor = None if scope is None else scope.cluster("default").reader.floor
    return JsonResponse(
        {
            "user": user,
            "alias": None if tag is None else tag._state.db,
            "pinned": floor is not None and floor.pinned,
            "lsn": 0 if floor is None else floor.position.lsn,
        }
    )


def content(response: HttpResponseBase) -> dict[str, Any]:
    """Return what the page has told."""
    if response.status_code != 200 or not isinstance(response, HttpResponse):
        return {}
    told: dict[str, Any] = json.loads(response.content)
    return told


urlpatterns = [path("look/", look)]
