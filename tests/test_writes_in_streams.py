"""Tokens and the end of a response, streams included."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import FileResponse, HttpRequest, StreamingHttpResponse
from django.test import Client

from django_replica_router import scope
from django_replica_router.routing.balancers import least_in_flight
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import PATIENT, wait_until_known
from tests.site import sign_in, visit
from tests.written import note, record_of, signed_in, wrote  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def test_the_token_stands_before_the_response_leaves_though_the_view_raised(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A view that writes and then raises has written all the same."""

    def action(request: HttpRequest) -> None:
        note.save()
        raise RuntimeError

    signed_in.raise_request_exception = False
    assert visit(signed_in, action, "post").status_code == 500
    wrote(ann)


def test_a_stream_stores_its_token_at_its_end(signed_in: Client, ann: User, note: Note) -> None:
    """What the body of a streaming response writes is behind a token once the stream ends."""

    def body() -> Any:
        yield b"begin"
        note.save()
        yield b"end"

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert record_of(ann) is None
    assert b"".join(response.streaming_content) == b"beginend"
    wrote(ann)


def test_a_stream_that_is_cut_short_stores_its_token(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A client that hangs up in the middle has written what was written until then."""

    def body() -> Any:
        note.save()
        yield b"begin"
        yield b"never"

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert next(iter(response.streaming_content)) == b"begin"
    response.close()
    wrote(ann)


def test_what_a_stream_writes_when_it_is_cut_short_is_behind_its_token(
    signed_in: Client, ann: User, note: Note
) -> None:
    """As a chat saves in ``finally`` what it has said until the client hung up."""

    def body() -> Any:
        try:
            yield b"begin"
            yield b"never"
        finally:
            Note.objects.filter(pk=note.pk).update(title="second")

    response = visit(signed_in, lambda request: StreamingHttpResponse(body()))
    assert next(iter(response.streaming_content)) == b"begin"
    response.close()
    assert Note.objects.get(pk=note.pk).title == "second"
    wrote(ann)


def test_a_stream_that_lives_long_sees_what_came_later_in_a_scope_for_each_part(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Its request stays with what was known when it began; a scope asks anew."""
    feed, laptop = sign_in(ann), sign_in(ann)
    visit(feed, lambda request: str(request.user))
    wait_until_known(cluster)

    def body() -> Any:
        for _ in range(2):
            yield Note.objects.get(pk=note.pk).title
            with scope(user=ann):
                title = Note.objects.get(pk=note.pk).title
            yield title

    parts = visit(feed, lambda request: StreamingHttpResponse(body())).streaming_content
    assert [next(parts), next(parts)] == [b"first", b"first"]
    for replica in cluster.replicas:
        replica.pause()
    visit(laptop, lambda request: Note.objects.update(title="second") and None, "post")
    assert list(parts) == [b"first", b"second"]


def test_a_stream_that_nobody_begins_gives_back_what_its_request_held(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the client has hung up before: its request counts as in flight no more."""
    settings.REPLICA_ROUTER = {**PATIENT, "BALANCER": "least_in_flight"}
    monkeypatch.setattr(least_in_flight, "counts", {})
    wait_until_known(cluster)
    response = visit(
        Client(), lambda request: StreamingHttpResponse([str(Note.objects.get(pk=note.pk))])
    )
    assert sum(least_in_flight.counts.values()) == 1
    response.close()
    assert sum(least_in_flight.counts.values()) == 0


def test_a_download_that_is_no_file_is_made_inside_the_scope(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """A FileResponse of a generator streams what it reads and writes, as any other stream does."""
    wait_until_known(cluster)

    def body() -> Any:
        yield str(Note.objects.get(pk=note.pk)._state.db).encode()
        Note.objects.filter(pk=note.pk).update(title="second")

    visit(signed_in, lambda request: bool(request.user.pk))  # its session is known again
    wait_until_known(cluster)
    response = visit(signed_in, lambda request: FileResponse(body(), filename="notes.csv"))
    assert b"".join(response.streaming_content).startswith(b"replica")
    wrote(ann)


def test_the_token_is_taken_after_the_commit(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """The token lies at or behind the record of the commit, also when that is asynchronous."""

    def action(request: HttpRequest) -> None:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET LOCAL synchronous_commit = off")
            note.save()

    for _ in range(20):
        visit(signed_in, action, "post")
        record = record_of(ann)
        assert record is not None
        # The flush position of this moment says nothing of an asynchronous commit: have the
        # replica replay exactly up to the token, and look whether the row is there.
        cluster.replicas[0].wait_replayed(record.position.lsn)
        ((updated,),) = cluster.replicas[0].execute(
            "SELECT updated FROM notes_note WHERE id = %s", [note.pk], dbname="app"
        )
        assert updated == Note.objects.using("default").get(pk=note.pk).updated
