"""The same data for machines; `username` is null where nobody is signed in."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404

from testproject.metering import current_meter
from testproject.notes.models import Note


@login_not_required
def me(request: HttpRequest) -> JsonResponse:
    """Answer what the session remembers."""
    return _answer(request, session_value=request.session.get("value"))


def note(request: HttpRequest, pk: int) -> JsonResponse:
    """Answer a note's version."""
    found = get_object_or_404(Note, pk=pk)
    return _answer(request, id=found.pk, version=found.version, title=found.title)


def _answer(request: HttpRequest, **values: object) -> JsonResponse:
    username = request.user.get_username() or None
    meter = current_meter()
    reads = dict(meter.reads()) if meter else {}
    return JsonResponse({"username": username, **values, "reads": reads})
