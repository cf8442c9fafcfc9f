"""What surrounds reads in the block of a request, and what the package itself needs to know there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches
from django.db import DatabaseError, connection, connections, transaction
from django.db.models.signals import post_delete
from django.http import HttpRequest, JsonResponse, StreamingHttpResponse
from django.test import Client
from django.utils.decorators import method_decorator
from django.views import View

from django_replica_router import current_scope, get_stats, scope, use_primary
from django_replica_router.recording import learning
from django_replica_router.recording.floors import forget_everybody
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.scopes.keys import EVERYBODY, store_key
from django_replica_router.stores.store import get_store
from django_replica_router.transactions import atomic_requests
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests import site
from tests.atomic_requests import (  # noqa: F401 - fixtures
    Patch,
    atomic,
    closed,
    edit,
    edited,
    own_block,
    show,
    title,
)
from tests.conftest import PATIENT, learn_nothing, stand_still, wait_until, wait_until_known
from tests.site import sign_in
from tests.written import record_of

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("atomic")


# What surrounds reads


def test_queries_past_the_router_are_led(note: Note, ann: User, cluster: Cluster) -> None:
    """A generic foreign key of an object of a replica is followed there, and after a write not."""
    Comment.objects.create(author=ann, target=note, text="old")
    ContentType.objects.get_for_model(Note)
    wait_until_known(cluster)
    stand_still(cluster)
    edit(cluster)

    def follow() -> str:
        return str(Comment.objects.get().target.title)

    def follow_after_a_write() -> str:
        found = Comment.objects.get()
        Tag.objects.create(name="new")
        return str(found.target.title)

    def follow_in_a_block() -> str:
        found = Comment.objects.get()
        with transaction.atomic():
            return str(found.target.title)

    actions = (follow, follow_in_a_block, follow_after_a_write)
    assert [show(action) for action in actions] == ["first", "NEW", "NEW"]


def test_a_write_that_a_replica_refuses_is_made_in_the_block(edited: Note) -> None:
    """It is rolled back with it, and what is read after it is read there."""
    statement = f"SELECT notes_touch({edited.pk})"

    def touch() -> list[Any]:
        alias = Note.objects.all().db
        assert alias.startswith("replica")
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
        return [title(), Note.objects.get().version]

    def touch_and_fail() -> None:
        assert touch() == ["NEW", 2]
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        show(touch_and_fail)
    assert Note.objects.using("default").get().version == 1
    assert show(touch) == ["NEW", 2]
    assert Note.objects.using("default").get().version == 2


def test_a_deletion_sent_to_a_replica_is_a_part_of_the_block(
    note: Note, ann: User, cluster: Cluster
) -> None:
    """A generic relation deletes by the alias that it reads by. Where that fails, so does the block, as ever."""
    for text in ("one", "two"):
        note.comments.create(author=ann, text=text)
    wait_until_known(cluster)

    def explode(**kwargs: Any) -> None:
        raise RuntimeError("no")

    def delete() -> list[Any]:
        mine = Note.objects.get()
        assert str(mine._state.db).startswith("replica")
        mine.comments.all().delete()
        return [len(connection.atomic_blocks), Comment.objects.count()]

    def fail() -> bool:
        with pytest.raises(RuntimeError, match="no"):
            delete()
        return connection.get_rollback()

    post_delete.connect(explode, sender=Comment)
    try:
        assert show(fail) is True
    finally:
        post_delete.disconnect(explode, sender=Comment)
    assert Comment.objects.using("default").count() == 2
    wait_until_known(cluster)
    assert show(delete) == [1, 0]
    assert Comment.objects.using("default").count() == 0


def test_a_view_that_saves_what_it_read_is_learned(edited: Note, cluster: Cluster) -> None:
    """The next time it reads from the primary, and its memory is renewed."""

    def save() -> str:
        found = Note.objects.get()
        found.version += 1
        found.save()
        return str(found._state.db)

    try:
        show(save)
        edit(cluster, "again")
        show(save)
        assert Note.objects.using("default").get().title == "again"
        assert get_stats()["reads_learned"] >= 1
        ends = {name: end - 9_000_000_000 for name, end in learning._known.names.items()}
        learning._known.names = ends
        show(save)
        assert learning._known.names["tests.site.run"] > ends["tests.site.run"]
    finally:
        learn_nothing()


def test_hooks_run_after_the_commit(ann: User, note: Note, cluster: Cluster) -> None:
    """In a request that reads only, too; what they write is seen the next time."""
    browser = sign_in(ann)
    wait_until_known(cluster)
    stand_still(cluster)
    ran: list[Any] = []

    def hook() -> None:
        ran.append([connection.in_atomic_block, title()])
        Note.objects.update(title="by the hook")

    def action() -> str:
        transaction.on_commit(hook)
        return title()

    assert show(action, browser) == "first"
    assert ran == [[False, "first"]]
    assert show(title, browser) == "by the hook"


def test_a_block_that_is_rolled_back_leaves_what_it_leaves_elsewhere(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Nothing of it is there, and the reader goes on."""
    browser = sign_in(ann)
    wait_until_known(cluster)

    def fail() -> None:
        assert title() == "first"
        Note.objects.update(title="mine")
        assert title() == "mine"
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        show(fail, browser)
    wait_until_known(cluster)
    assert show(lambda: [title(), str(Note.objects.get()._state.db)[:7]], browser) == [
        "first",
        "replica",
    ]


def test_rest_framework_rolls_back_by_hand(edited: Note, monkeypatch: Patch) -> None:
    """It marks its views, and has the block rolled back where it turns an error into a response."""
    from rest_framework.exceptions import APIException
    from rest_framework.response import Response
    from rest_framework.views import APIView

    class Notes(APIView):
        authentication_classes = ()
        permission_classes = ()

        def get(self, request: Any) -> Response:
            return Response([len(connection.atomic_blocks), title(), title()])

        def delete(self, request: Any) -> Response:
            Note.objects.all().delete()
            raise APIException("no")

    monkeypatch.setattr(site.urlpatterns[0], "callback", login_not_required(Notes.as_view()))
    assert Client().get("/run/").json() == [1, "first", "first"]
    assert Client(raise_request_exception=False).delete("/run/").json() == {"detail": "no"}
    assert Note.objects.using("default").count() == 1


@pytest.mark.parametrize("is_marked", [False, True], ids=["usual", "marked"])
def test_views_that_are_classes_are_views(
    edited: Note, monkeypatch: Patch, is_marked: bool
) -> None:
    """Also where their method bears the mark."""

    class Notes(View):
        def get(self, request: HttpRequest) -> JsonResponse:
            return JsonResponse({"result": [len(connection.atomic_blocks), own_block(title)]})

    if is_marked:
        Notes = method_decorator(transaction.non_atomic_requests, name="dispatch")(Notes)  # noqa: N806
    monkeypatch.setattr(site.urlpatterns[0], "callback", login_not_required(Notes.as_view()))
    assert Client().get("/run/").json() == {"result": [0 if is_marked else 1, "NEW"]}


def test_a_stream_is_made_after_the_block(edited: Note) -> None:
    """Each part is read where the view's reads were."""

    def body() -> Iterator[str]:
        yield f"{connection.in_atomic_block} {title()}"

    response = show(lambda: StreamingHttpResponse(body()))
    assert response.getvalue() == b"False first"


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_with_the_primary_down_the_site_is_read_on(
    healed: Cluster, note: Note, settings: Any, is_open: bool
) -> None:
    """Whether the connection to it was open or not; what needs it fails, and nothing else."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_DOWN": "replicas", "MAX_LAG": 0.4}
    wait_until_known(healed)
    assert show(title) == "first"
    healed.primary.stop()
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "readings to grow old")
    if not is_open:
        connections["default"].close()
    assert [show(title), show(title)] == ["first", "first"]
    for action in (use_primary(title), lambda: own_block(title)):
        with pytest.raises(DatabaseError):
            show(action)
    assert [show(title), show(title)] == ["first", "first"]


@pytest.mark.not_pooled("the pooler takes the connection")
def test_without_a_connection_that_can_wait_it_is_not(
    healed: Cluster, note: Note, settings: Any, monkeypatch: Patch
) -> None:
    """Control: the test above fails."""
    monkeypatch.setattr(atomic_requests, "can_be_postponed", lambda connection: False)
    with pytest.raises(DatabaseError):
        test_with_the_primary_down_the_site_is_read_on(healed, note, settings, is_open=False)


# What the package itself needs to know


@pytest.mark.parametrize("reads_before", [False, True], ids=["at rest", "in a transaction"])
def test_an_empty_store_is_told_from_inside_the_block(
    edited: Note, settings: Any, reads_before: bool
) -> None:
    """Where all that a site reads is read in its views."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "PRIMARY_ONLY": ["notes.Tag"]}
    caches["default"].clear()
    forget_everybody()

    def action() -> str:
        if reads_before:
            list(Tag.objects.all())
        return title()

    assert show(action) == "NEW"
    assert get_store("default").load(
        [store_key("default", EVERYBODY, get_store("default").life())]
    )[0]


def test_a_scope_inside_a_view_remembers_what_it_has_seen(
    ann: User, edited: Note, monkeypatch: Patch
) -> None:
    """What is seen in the handler's block is committed."""

    def look() -> str:
        with scope(user=ann):
            current_scope().cluster("default").seen_elsewhere_on = "default"  # type: ignore[union-attr]
            return title()

    assert record_of(ann) is None
    show(look)
    record = record_of(ann)
    assert record is not None
    assert record.token.lsn > 0
    assert not record.pinned_until_ms
