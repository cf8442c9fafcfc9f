"""Which writes make a token, and what it covers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.apps import apps
from django.contrib.auth.models import User
from django.db import (
    DatabaseError,
    IntegrityError,
    connection,
    connections,
    reset_queries,
    transaction,
)
from django.db.models.signals import post_migrate, post_save
from django.http import HttpRequest
from django.test import Client

from django_replica_router import note_write, scope
from django_replica_router.backends.mixin import TokenMixin
from django_replica_router.connections import on_primary
from django_replica_router.connections.connection import ClusterConnection, equip_open_connections
from django_replica_router.replicas.attributes import Around
from django_replica_router.scopes.identity import user_key
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import NOWHERE, Record
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Event, Note, Tag
from tests.conftest import PATIENT, stand_still, wait_until_known
from tests.site import sign_in, visit
from tests.written import (  # noqa: F401 - fixtures
    FAILURES,
    add_tag_or_find_it,
    fail,
    get_or_create_by_the_alias,
    note,
    procedure,
    record_of,
    session_record_of,
    signed_in,
)

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def raw_cursor(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE notes_note SET body = 'new' WHERE id = %s", [note.pk])


def writing_function(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT notes_touch(%s)", [note.pk])
        cursor.fetchall()


def writing_cte(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH gone AS (DELETE FROM notes_comment RETURNING id) SELECT count(*) FROM gone"
        )


def copy(note: Note) -> None:
    with connection.cursor() as cursor, cursor.copy("COPY notes_tag (name) FROM STDIN") as rows:
        rows.write_row(("blue",))


def stream(note: Note) -> None:
    with connection.cursor() as cursor:
        list(cursor.stream("UPDATE notes_note SET body = 'new' RETURNING id"))


def driver(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.connection.execute("INSERT INTO notes_tag (name) VALUES ('blue')")
    note_write()


def many(note: Note) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO notes_tag (name) VALUES (%s)", [("a",), ("b",)])


def in_transaction(note: Note) -> None:
    with transaction.atomic():
        Tag.objects.create(name="blue")


WAYS: dict[str, Callable[[Note], Any]] = {
    "save": lambda note: note.save(),
    "create": lambda note: Tag.objects.create(name="blue"),
    "delete": lambda note: note.delete(),
    "m2m add": lambda note: note.tags.add(Tag.objects.using("default").create(name="blue")),
    "m2m clear": lambda note: note.tags.clear(),
    "m2m set": lambda note: note.tags.set([]),
    "update": lambda note: Note.objects.filter(pk=note.pk).update(body="new"),
    "queryset delete": lambda note: Comment.objects.all().delete(),
    "bulk_create": lambda note: Tag.objects.bulk_create([Tag(name="a"), Tag(name="b")]),
    "bulk_update": lambda note: Note.objects.bulk_update([note], ["body"]),
    "raw": lambda note: list(
        Note.objects.raw("UPDATE notes_note SET body = 'new' RETURNING notes_note.*")
    ),
    "raw cursor": raw_cursor,
    "executemany": many,
    "using default": lambda note: Tag.objects.using("default").create(name="blue"),
    "writing function": writing_function,
    "writing CTE": writing_cte,
    "copy": copy,
    "procedure": procedure,
    "stream": stream,
    "told by note_write": driver,
    "atomic": in_transaction,
    "get_or_create": lambda note: Tag.objects.get_or_create(name="blue"),
    "update_or_create": lambda note: Tag.objects.update_or_create(name="green"),
    "generic relation update": lambda note: note.comments.update(text="ill said"),
    "generic relation delete": lambda note: note.comments.all().delete(),
    "generic relation create": lambda note: note.comments.create(author=note.owner, text="oh"),
}


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_of_writing_makes_a_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    way: Callable[[Note], Any],
    method: str,
) -> None:
    """A write, by whatever way and in whatever request, is remembered for user and session."""
    before = cluster.primary.insert_lsn()
    wait_until_known(cluster)

    def action(request: HttpRequest) -> None:
        # As a view would: the object comes from wherever reads are routed to.
        way(Note.objects.get(pk=note.pk))

    visit(signed_in, action, method)
    of_user, of_session = record_of(ann), session_record_of(signed_in)
    assert of_user is not None
    assert of_session is not None
    assert of_user.position == of_session.position
    assert before < of_user.position.lsn <= cluster.primary.insert_lsn()
    assert of_user.position.timeline == 1
    assert of_session.owner == user_key(ann)


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_trigger_is_seen_with_the_statement_that_fires_it(
    signed_in: Client, note: Note, cluster: Cluster, method: str
) -> None:
    """What a trigger writes is behind the token of the statement that fired it."""
    wait_until_known(cluster)
    visit(signed_in, lambda request: Note.objects.filter(pk=note.pk).update(version=7), method)
    seen = visit(signed_in, lambda request: list(Event.objects.values_list("version", flat=True)))
    assert 7 in seen


READS: dict[str, Callable[[Note], Any]] = {
    "get": lambda note: Note.objects.get(pk=note.pk).title,
    "aggregate": lambda note: Note.objects.count(),
    "related": lambda note: [tag.name for tag in note.tags.all()],
    "nothing": lambda note: None,
    "select_for_update": lambda note: lock(note),
    "failed write": lambda note: fail(note),
}


def lock(note: Note) -> None:
    with transaction.atomic():
        Note.objects.select_for_update().get(pk=note.pk)


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("way", READS.values(), ids=READS)
def test_a_request_that_wrote_nothing_gets_no_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    way: Callable[[Note], Any],
    method: str,
) -> None:
    """Reading, locking or failing to write makes no token for a write."""
    if way is READS["select_for_update"] and isinstance(connections["default"], TokenMixin):
        pytest.skip("a row lock takes a transaction id, which is all that the backend looks at")
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_READS": False}
    wait_until_known(cluster)
    visit(signed_in, lambda request: way(note), method)
    assert record_of(ann) is None
    of_session = session_record_of(signed_in)
    assert of_session is None or of_session.position == NOWHERE


@pytest.mark.parametrize("way", ["get", "aggregate", "related", "nothing"])
def test_a_request_served_by_a_replica_stores_nothing(
    ann: User, note: Note, cluster: Cluster, way: str
) -> None:
    """Who meets the usual replica needs no memory of what was seen there."""
    client = sign_in(ann)
    wait_until_known(cluster)
    visit(client, lambda request: READS[way](note))
    before = record_of(ann)
    visit(client, lambda request: READS[way](note))
    assert record_of(ann) == before


@pytest.mark.parametrize("way", FAILURES.values(), ids=FAILURES)
def test_what_was_committed_before_a_statement_failed_makes_a_token(
    signed_in: Client,
    ann: User,
    note: Note,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Any], Any],
) -> None:
    """As by a procedure that works in portions and is stopped by ``statement_timeout``."""
    # Else the driver sends many at once, which are one transaction.
    monkeypatch.setattr(psycopg.Pipeline, "is_supported", lambda: False)
    before = cluster.primary.insert_lsn()

    def action(request: HttpRequest) -> None:
        with connection.cursor() as cursor, pytest.raises(DatabaseError):
            way(cursor)

    visit(signed_in, action)
    assert Tag.objects.filter(name="blue").exists()
    record = record_of(ann)
    assert record is not None
    assert record.position.lsn > before


def test_a_scope_inside_a_transaction_pins_its_user(ann: User, note: Note) -> None:
    """Where the scope ends before the commit, no position can be known yet."""
    from django_replica_router import scope

    with transaction.atomic(), scope(user=ann):
        note.save()
    record = record_of(ann)
    assert record is not None
    assert record.position == NOWHERE
    assert record.pinned_until_ms > 0


def test_a_scope_inside_a_request_sees_what_the_request_has_written(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """As a task that is run at once, in the place where it is sent: no token is stored yet."""
    stand_still(cluster)

    def action(request: HttpRequest) -> str:
        Note.objects.filter(pk=note.pk).update(title="second")
        with scope(user=ann):
            return Note.objects.get(pk=note.pk).title

    assert visit(signed_in, action, "post") == "second"


def test_a_token_never_falls(signed_in: Client, ann: User, note: Note, cluster: Cluster) -> None:
    """A request that ends late with a low token does not undo a higher one."""
    high = Record(position=NOWHERE._replace(timeline=1, lsn=1 << 60), expires_ms=1 << 42)
    get_store("default").merge(
        {f"rr:default:{user_key(ann)}": high}, {f"rr:default:{user_key(ann)}": 60.0}
    )
    visit(signed_in, lambda request: note.save(), "post")
    record = record_of(ann)
    assert record is not None
    assert record.position == high.position


def test_the_users_key_is_found_though_the_view_never_asked_who_it_is(
    signed_in: Client, ann: User, note: Note
) -> None:
    """A write is remembered for the user behind the session cookie, even if nobody looked."""

    def action(request: HttpRequest) -> None:
        Note.objects.filter(pk=note.pk).update(body="new")

    visit(signed_in, action, "post")
    assert record_of(ann) is not None


@pytest.mark.parametrize("action", [add_tag_or_find_it, get_or_create_by_the_alias])
def test_what_a_write_has_met_is_found(
    note: Note, cluster: Cluster, action: Callable[[HttpRequest], str]
) -> None:
    """Where it fails since a row exists, whoever looks again finds it, though no replica has it."""
    stand_still(cluster)
    cluster.primary.execute("INSERT INTO notes_tag (name) VALUES ('blue')", dbname="app")
    assert visit(Client(), action) == "blue"


def test_without_minding_what_failed_it_is_not_found(
    note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the replica does not know it yet."""
    monkeypatch.setattr(on_primary, "might_write", lambda sql: False)
    with pytest.raises(Tag.DoesNotExist):
        test_what_a_write_has_met_is_found(note, cluster, add_tag_or_find_it)


def test_what_a_write_has_met_is_not_taken_back(ann: User, note: Note, cluster: Cluster) -> None:
    """A reader who was told that a name is taken finds it in the next request as well."""
    client = sign_in(ann)
    stand_still(cluster)
    cluster.primary.execute("INSERT INTO notes_tag (name) VALUES ('blue')", dbname="app")

    def meet(request: HttpRequest) -> bool:
        assert request.user.is_authenticated
        with pytest.raises(IntegrityError):
            Tag.objects.create(name="blue")
        return True

    assert visit(client, meet)
    assert visit(client, lambda request: Tag.objects.filter(name="blue").exists())


def test_note_write_refuses_a_replica(cluster: Cluster) -> None:
    """Telling of a write to a replica is a mistake, and said so."""
    with pytest.raises(ValueError, match="'replica1' is a replica: pass the alias of the primary"):
        note_write("replica1")


def test_note_write_is_nothing_where_the_package_is_switched_off(
    signed_in: Client, ann: User, settings: Any
) -> None:
    """Nor is anything else remembered."""
    settings.REPLICA_ROUTER = {**PATIENT, "ENABLED": False}
    visit(signed_in, lambda request: note_write(), "post")
    assert record_of(ann) is None


def test_fast_deletion_stays_fast(note: Note, django_assert_num_queries: Any) -> None:
    """The package listens to no signal that would make Django delete objects one by one."""
    assert Event.objects.exists()
    with django_assert_num_queries(3) as captured:
        Event.objects.all().delete()
    assert [query["sql"].split()[0] for query in captured] == ["BEGIN", "DELETE", "COMMIT"]


def test_the_packages_own_question_is_in_no_log(
    ann: User, note: Note, django_assert_num_queries: Any
) -> None:
    """assertNumQueries of a site's tests counts what it counted without the package."""
    signed_in = sign_in(ann)
    with django_assert_num_queries(1):
        visit(signed_in, lambda request: Note.objects.filter(pk=note.pk).update(body="new"))


def test_a_write_outside_any_scope_is_left_alone(note: Note, ann: User) -> None:
    """A command or a shell writes for nobody in particular."""
    note.save()
    assert record_of(ann) is None


def test_a_saved_model_is_a_write_though_nobody_saw_its_statement(
    note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal holds where a backend runs statements past Django's wrappers."""
    if isinstance(connections["default"], TokenMixin):
        pytest.skip("the backend is told by each COMMIT")
    monkeypatch.setattr(on_primary.OnPrimary, "run", Around.run)
    with scope() as opened:
        Tag.objects.bulk_create([Tag(name="green")])  # sends no signal
        assert not opened.cluster("default").wrote
        note.save()
        assert opened.cluster("default").wrote


def test_signals_sent_by_hand_need_not_name_the_database(note: Note) -> None:
    """A site's tests send them with no more than its own receivers need."""
    app = apps.get_app_config("notes")
    with scope() as opened:
        post_migrate.send(sender=app, app_config=app, verbosity=0)
        assert not opened.cluster("default").wrote
        post_save.send(sender=Note, instance=note, created=False)
        assert opened.cluster("default").wrote


@pytest.mark.parametrize("is_debugged", [False, True])
def test_a_copy_is_noticed_whatever_the_class_of_the_cursor(
    note: Note, settings: Any, is_debugged: bool
) -> None:
    """Also where Django keeps a log of queries, and where the connection is observed anew."""
    reset_queries()  # of another test
    connection.force_debug_cursor = is_debugged
    connection.execute_wrappers.clear()
    try:
        for _ in range(2):
            equip_open_connections()
            with scope() as opened:
                with connection.cursor() as cursor:
                    cursor.execute("TRUNCATE notes_tag CASCADE")
                    opened.clusters.clear()
                    with cursor.copy("COPY notes_tag (name) FROM STDIN") as rows:
                        rows.write_row(("blue",))
                assert opened.cluster("default").has_pending
            connection.execute_wrappers.clear()
    finally:
        connection.force_debug_cursor = False
        equip_open_connections()
    assert bool(connection.queries) is is_debugged


def test_connections_that_were_open_before_the_app_was_ready_are_observed() -> None:
    """Each connection of a cluster has the class once, however often it connects."""
    for _ in range(2):
        equip_open_connections()
    for alias in connections:
        connections[alias].ensure_connection()
        connections[alias].close()
        connections[alias].ensure_connection()
        classes = type(connections[alias]).__mro__
        assert classes.count(ClusterConnection) == 1
