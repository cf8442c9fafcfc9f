"""The models in the admin."""

from __future__ import annotations

from django.contrib import admin

from testproject.notes.models import Comment, Event, Note, Tag

admin.site.register([Comment, Event, Note, Tag])
