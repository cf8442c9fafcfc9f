"""Pages that worker processes serve for the tests, beside the demonstration's own."""

from __future__ import annotations

import os

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.urls import path

from testproject.notes.models import Note, Tag
from testproject.urls import urlpatterns as project_urls


@login_not_required
def column(request: HttpRequest) -> HttpResponse:
    """Read a column that a migration of the test adds."""
    tags = list(Tag.objects.extra(select={"extra": "extra"}).values_list("extra"))
    return HttpResponse(str(tags))


@login_not_required
def visited(request: HttpRequest) -> HttpResponse:
    """Tell where the note was read, and save it where that is asked for."""
    note = Note.objects.get()
    origin = str(note._state.db)
    if "save" in request.GET:
        note.save()
    return HttpResponse(origin, headers={"X-Worker": str(os.getpid())})


urlpatterns = [path("visited/", visited), path("column/", column), *project_urls]
