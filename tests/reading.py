"""What tests of reads have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client

from django_replica_router import current_scope
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import stand_still, wait_until_known
from tests.site import sign_in, visit


@pytest.fixture
def browser(ann: User, cluster: Cluster) -> Client:
    """Ann's browser, signed in, everything replicated."""
    client = sign_in(ann)
    wait_until_known(cluster)
    return client


@pytest.fixture
def note(ann: User, cluster: Cluster) -> Note:
    """A note of Ann's, on every server."""
    note = Note.objects.create(owner=ann, title="first")
    note.tags.add(Tag.objects.create(name="red"))
    note.comments.create(author=ann, text="well said")
    wait_until_known(cluster)
    return note


def pause(cluster: Cluster) -> None:
    """Let every replica show the present for ever."""
    stand_still(cluster)


def reasons(
    settings: Any, client: Client, action: Callable[[HttpRequest], Any], **extra: Any
) -> set[str]:
    """Visit, and return the reasons of all decisions of the request."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "DEBUG": True}
    found: set[str] = set()

    def asking(request: HttpRequest) -> Any:
        result = action(request)
        current = current_scope()
        assert current is not None
        found.update(reason for _, reason in current.decisions or ())
        return result

    visit(client, asking, **extra)
    return found
