"""The models: plain rows, many-to-many, a generic relation, and a table that a trigger fills."""

from __future__ import annotations

from django.conf import settings
from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models
from django.db.models.functions import Now
from django.urls import reverse


class Tag(models.Model):
    """A word that notes are found by."""

    name = models.CharField(max_length=50, unique=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


class Comment(models.Model):
    """A remark on anything."""

    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="comments"
    )
    content_type = models.ForeignKey(ContentType, on_delete=models.CASCADE)
    object_id = models.PositiveBigIntegerField()
    target = GenericForeignKey("content_type", "object_id")
    text = models.CharField(max_length=500)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("pk",)
        indexes = (models.Index(fields=["content_type", "object_id"], name="comment_target"),)

    def __str__(self) -> str:
        return self.text


class Note(models.Model):
    """A text of one user; every change raises its version by one."""

    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notes"
    )
    title = models.CharField(max_length=120)
    body = models.TextField(blank=True)
    version = models.PositiveIntegerField(default=1, editable=False)
    tags = models.ManyToManyField(Tag, blank=True, related_name="notes")
    comments = GenericRelation(Comment)
    created = models.DateTimeField(auto_now_add=True)
    updated = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return self.title

    def get_absolute_url(self) -> str:
        """Return the page of the note."""
        return reverse("note", args=[self.pk])


class Event(models.Model):
    """What happened to a note; written by a trigger, so Django never sees the write."""

    # Not a foreign key: the event outlives the note.
    note_id = models.BigIntegerField(db_index=True)
    action = models.CharField(max_length=10)
    version = models.PositiveIntegerField()
    at = models.DateTimeField(db_default=Now())

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"{self.action} of note {self.note_id}, version {self.version}"
