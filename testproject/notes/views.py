"""The pages: ordinary views that know nothing of replicas."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.models import User
from django.db import connection
from django.db.models import Count, F
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_POST

from testproject.notes.forms import CommentForm, LagForm, NoteForm, RememberForm
from testproject.notes.models import Comment, Event, Note, Tag
from testproject.notes.replicas import set_lag


class SignedInRequest(HttpRequest):
    """A request that has passed `LoginRequiredMiddleware`."""

    user: User


def home(request: SignedInRequest) -> HttpResponse:
    """Show the user's notes."""
    notes = request.user.notes.prefetch_related("tags")
    return render(request, "notes/home.html", {"notes": notes})


def overview(request: SignedInRequest) -> HttpResponse:
    """Show what is going on: a page of many queries."""
    context = {
        "counts": {
            "Notes": Note.objects.count(),
            "My notes": request.user.notes.count(),
            "Comments": Comment.objects.count(),
            "Users": User.objects.count(),
        },
        "latest": Note.objects.select_related("owner")[:8],
        "tags": Tag.objects.annotate(used=Count("notes")),
        "events": Event.objects.all()[:8],
    }
    return render(request, "notes/overview.html", context)


def detail(request: SignedInRequest, pk: int) -> HttpResponse:
    """Show one note, of whichever user."""
    note = get_object_or_404(Note.objects.select_related("owner"), pk=pk)
    comments = note.comments.select_related("author")
    context = {"note": note, "comments": comments, "form": CommentForm()}
    return render(request, "notes/detail.html", context)


def create(request: SignedInRequest) -> HttpResponse:
    """Add a note."""
    form = NoteForm(request.POST or None, instance=Note(owner=request.user))
    if not form.is_valid():
        return render(request, "notes/form.html", {"form": form, "heading": "New note"})
    messages.success(request, "The note was added.")
    return redirect(form.save())


def edit(request: SignedInRequest, pk: int) -> HttpResponse:
    """Change a note of the user."""
    note = get_object_or_404(Note, pk=pk, owner=request.user)
    form = NoteForm(request.POST or None, instance=note)
    if not form.is_valid():
        return render(request, "notes/form.html", {"form": form, "heading": "Edit note"})
    # Counted in the database: a version read from a replica may be an old one.
    form.instance.version = F("version") + 1
    form.save()
    messages.success(request, "The note was changed.")
    return redirect("note", pk=pk)


@require_POST
def touch(request: SignedInRequest, pk: int) -> HttpResponse:
    """Raise a note's version by a SELECT that writes, which no router is asked about."""
    get_object_or_404(Note, pk=pk, owner=request.user)
    with connection.cursor() as cursor:
        cursor.execute("SELECT notes_touch(%s)", [pk])
    return redirect("note", pk=pk)


@require_POST
def comment(request: SignedInRequest, pk: int) -> HttpResponse:
    """Add a comment to a note, of whichever user."""
    note = get_object_or_404(Note, pk=pk)
    form = CommentForm(request.POST)
    if form.is_valid():
        note.comments.create(author=request.user, text=form.cleaned_data["text"])
    return redirect(note)


def remember(request: HttpRequest) -> HttpResponse:
    """Keep a number in the session."""
    form = RememberForm(request.POST or None)
    if not form.is_valid():
        return render(request, "notes/session.html", {"form": form})
    request.session["value"] = form.cleaned_data["value"]
    return redirect("session")


@require_POST
def lag(request: HttpRequest) -> HttpResponse:
    """Make the replicas lag; only where the site is started to be looked at."""
    if not settings.INSPECT:
        raise Http404
    form = LagForm(request.POST)
    if form.is_valid():
        set_lag(form.cleaned_data["ms"])
        messages.success(request, f"Replicas now apply changes {form.cleaned_data['ms']} ms late.")
    return redirect("home")
