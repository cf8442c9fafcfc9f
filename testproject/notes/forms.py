"""The forms of the site."""

from __future__ import annotations

from django import forms

from testproject.notes.models import Note

NoteForm = forms.modelform_factory(Note, fields=["title", "body", "tags"])


class CommentForm(forms.Form):
    """A remark on a note."""

    text = forms.CharField(max_length=500, label="Comment")


class RememberForm(forms.Form):
    """A number to keep in the session."""

    value = forms.IntegerField(min_value=0, label="Number to remember")


class LagForm(forms.Form):
    """How late the replicas apply what they receive."""

    ms = forms.IntegerField(min_value=0, max_value=60_000, label="Lag of every replica (ms)")
