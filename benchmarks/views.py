"""Pages of so many queries, and one that writes."""

from __future__ import annotations

import os

from django.contrib.auth.decorators import login_not_required
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.views.decorators.csrf import csrf_exempt

from testproject.notes.models import Note


def _answer(text: str) -> HttpResponse:
    return HttpResponse(text, content_type="text/plain", headers={"X-Worker": str(os.getpid())})


def _read(queries: int) -> str:
    titles = [note.title for pk in range(1, queries + 1) for note in Note.objects.filter(pk=pk)]
    return "\n".join(titles)


@login_not_required
def page(request: HttpRequest, queries: int) -> HttpResponse:
    """Read so many notes, one by one, for anybody."""
    return _answer(_read(queries))


def my_page(request: HttpRequest, queries: int) -> HttpResponse:
    """Run so many queries for the user who is signed in; two find out who that is."""
    return _answer(f"{request.user}\n{_read(queries - 2)}")


@csrf_exempt
@transaction.atomic
def write_atomic(request: HttpRequest) -> HttpResponse:
    """Do the same as ``write`` in a transaction."""
    return write(request)


@csrf_exempt
def write(request: HttpRequest) -> HttpResponse:
    """Change the user's first note, and send the browser on to a page that reads."""
    note = Note.objects.filter(owner=request.user.pk).order_by("pk").first()
    if note is not None:
        note.version += 1
        note.save(update_fields=["version"])
    return HttpResponseRedirect("/bench/mine/5/")
