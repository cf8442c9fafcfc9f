"""What Django reads by the alias that an object came from is led to where its reader reads now."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import django
import pytest
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import InternalError, connections, models, transaction
from django.db.models.sql.constants import MULTI
from django.http import HttpRequest
from django.test import Client

from django_replica_router import current_scope, scope, use_primary
from django_replica_router.connections import leading, on_primary
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.conftest import stand_still, wait_until_known
from tests.controls import fail_without, lead_and_mend_nothing
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.fixture
def comment(note: Note, ann: User, cluster: Cluster) -> Comment:
    """A comment on a note, both on every server."""
    comment = Comment.objects.create(author=ann, target=note, text="old")
    Comment.objects.create(author=ann, target=note, text="later")
    ContentType.objects.get_for_model(Note)
    wait_until_known(cluster)
    return comment


def by_generic_key(comment: Comment) -> str:
    return str(comment.target.title)


def by_using(comment: Comment) -> str:
    return Note.objects.using(comment._state.db).get(pk=comment.object_id).title


def by_next(comment: Comment) -> str:
    return f"{comment.get_next_by_created().text} of {by_using(comment)}"


def by_manager(comment: Comment) -> str:
    return Note._base_manager.db_manager(comment._state.db).values_list("title", flat=True)[0]


def by_compiler(comment: Comment) -> str:
    notes = Note.objects.values_list("title")
    rows = notes.query.get_compiler(comment._state.db).execute_sql(MULTI)
    return str([row for chunk in rows for row in chunk])


WAYS: dict[str, Callable[[Comment], str]] = {
    "generic foreign key": by_generic_key,
    "next": by_next,
    "using": by_using,
    "manager": by_manager,
    "compiler": by_compiler,
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def rename(title: str = "NEW") -> None:
    """Write what no replica gets."""
    Note.objects.update(title=title)


@EVERY_WAY
def test_own_write_is_seen_by_an_object_of_before(
    comment: Comment, cluster: Cluster, way: Callable[[Comment], str]
) -> None:
    """What a request has written shows also through an object that it read from a replica before."""
    stand_still(cluster)

    def action(request: HttpRequest) -> str:
        found = Comment.objects.all()[0]
        assert found._state.db.startswith("replica")
        rename()
        return way(found)

    assert "NEW" in visit(Client(), action)


@EVERY_WAY
@pytest.mark.parametrize("block", [use_primary, transaction.atomic], ids=["primary", "atomic"])
def test_a_block_on_the_primary_holds_for_an_object_of_a_replica(
    comment: Comment, cluster: Cluster, way: Callable[[Comment], str], block: Callable[[], Any]
) -> None:
    """Inside ``use_primary`` and ``atomic()`` an object of a replica is followed on the primary."""
    stand_still(cluster)
    rename()

    def action(request: HttpRequest) -> str:
        found = Comment.objects.all()[0]
        with block():
            return way(found)

    assert "NEW" in visit(Client(), action)


@EVERY_WAY
@pytest.mark.parametrize("method", ["get", "post"])
def test_an_object_that_outlives_its_request_is_followed_by_the_rule(
    comment: Comment, cluster: Cluster, way: Callable[[Comment], str], method: str, settings: Any
) -> None:
    """Kept in a module, it is read where the next request reads: here the replicas are too old."""
    kept: list[Comment] = []
    visit(Client(), lambda request: kept.append(Comment.objects.all()[0]))
    assert kept[0]._state.db.startswith("replica")
    stand_still(cluster)
    rename()
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "MAX_LAG": 0.0001}
    assert "NEW" in visit(Client(), lambda request: way(kept[0]), method)


def test_an_object_is_followed_on_the_replica_that_serves_its_request(
    comment: Comment, served: Served
) -> None:
    """Nothing of this costs the primary a query where the replica may serve."""

    def action(request: HttpRequest) -> None:
        found = Comment.objects.all()[0]
        for way in (by_using, by_generic_key):
            way(found)

    visit(Client(), action)
    assert served.only_replicas("notes_note")


def test_an_alias_that_the_code_names_is_obeyed(note: Note, cluster: Cluster) -> None:
    """``using("replica1")`` reads that replica, also after a write."""
    stand_still(cluster)

    def action(request: HttpRequest) -> str:
        rename()
        return Note.objects.using("replica1").get().title

    assert visit(Client(), action) == "first"


@pytest.mark.parametrize(
    "duplicate",
    [lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy],  # noqa: S301
    ids=["pickle", "deep copy"],
)
def test_a_copy_of_an_object_is_the_primarys(note: Note, duplicate: Callable[[Note], Note]) -> None:
    """What lies in a cache names an alias that every process has, and no server that may lag."""
    with scope():
        found = Note.objects.get()
        assert found._state.db.startswith("replica")
        assert duplicate(found)._state.db == "default"
        assert type(duplicate(found)._state.db) is str


def test_an_object_of_a_replica_can_be_added(comment: Comment, ann: User) -> None:
    """Related managers take it for one of the primary, which Django else refuses."""

    def action(request: HttpRequest) -> None:
        found = Comment.objects.all()[0]
        other = Note.objects.create(owner=ann, title="other")
        other.comments.add(found)
        other.tags.add(Tag.objects.create(name="blue"))

    visit(Client(), action)
    assert list(Note.objects.get(title="other").comments.all()) == [comment]


def test_a_queryset_of_before_a_write_is_a_subquery_after_it(
    comment: Comment, cluster: Cluster
) -> None:
    """It was bound to the replica, and what it is a part of runs on the primary."""
    stand_still(cluster)

    def action(request: HttpRequest) -> int:
        found = Comment.objects.all()[0]
        bound = Note.objects.using(found._state.db).filter(title="NEW")
        rename()
        return Comment.objects.filter(object_id__in=bound.values("pk")).count()

    assert visit(Client(), action) == 2


def test_a_subquery_that_names_the_primary_takes_the_query_there(
    comment: Comment, served: Served
) -> None:
    """Django would refuse it, and only where a replica was chosen."""

    def action(request: HttpRequest) -> int:
        assert Comment.objects.count() == 2
        served.clear()
        notes = Note.objects.using("default").values("pk")
        return Comment.objects.filter(object_id__in=notes).count()

    assert visit(Client(), action) == 2
    assert served.only_primary("notes_comment")


def test_a_subquery_that_names_a_foreign_database_is_refused(note: Note) -> None:
    """That cannot be one query anywhere, and Django says so."""
    others = models.QuerySet(Tag, using="elsewhere").values("pk")
    with scope(), pytest.raises(ValueError, match="different databases"):
        list(Note.objects.filter(pk__in=others))


def test_content_types_are_one_object_for_all_servers(comment: Comment) -> None:
    """Django keeps them by alias: read from replicas, there would be one for each."""
    ContentType.objects.clear_cache()

    def action(request: HttpRequest) -> None:
        assert Comment.objects.all()[0]._state.db.startswith("replica")
        ContentType.objects.get_for_model(Note)

    visit(Client(), action)
    assert set(ContentType.objects._cache) == {"default"}


@pytest.mark.skipif(django.VERSION < (6, 1), reason="FETCH_PEERS is of Django 6.1")
def test_deferred_fields_of_peers_are_read_by_the_rule(comment: Comment, cluster: Cluster) -> None:
    """After a write they are read from the primary, as a single one is."""
    stand_still(cluster)

    def action(request: HttpRequest) -> str:
        notes = list(Note.objects.fetch_mode(models.FETCH_PEERS).only("owner"))  # type: ignore[attr-defined]
        rename()
        return str(notes[0].title)

    assert visit(Client(), action) == "NEW"


WRITES: dict[str, Callable[[Any], Any]] = {
    "create": lambda alias: Tag.objects.using(alias).create(name="new"),
    "save": lambda alias: Tag(name="new").save(using=alias),
    "update": lambda alias: Tag.objects.using(alias).filter(name="old").update(name="new"),
    "delete": lambda alias: Tag.objects.using(alias).filter(name="old").delete(),
    "raw delete": lambda alias: Tag.objects.filter(name="old")._raw_delete(using=alias),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_by_the_alias_of_an_object_reach_the_primary(
    comment: Comment, cluster: Cluster, write: Callable[[Any], Any]
) -> None:
    """``using(obj._state.db)`` writes where everything is written."""
    Tag.objects.create(name="old")
    wait_until_known(cluster)  # ``delete()`` reads by the alias which rows there are

    def action(request: HttpRequest) -> None:
        write(Comment.objects.all()[0]._state.db)

    visit(Client(), action)
    assert [tag.name for tag in Tag.objects.all()] != ["old"]


@EVERY_WAY
def test_without_the_lead_an_own_write_is_missed(
    comment: Comment,
    cluster: Cluster,
    way: Callable[[Comment], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: with the alias taken as it is, the test above fails."""
    monkeypatch.setattr(leading, "_find_server", lambda alias, *args, **kwargs: alias)
    with pytest.raises(AssertionError, match="NEW"):
        test_own_write_is_seen_by_an_object_of_before(comment, cluster, way)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_without_any_rule_such_a_write_is_refused(
    comment: Comment, write: Callable[[Any], Any], request: pytest.FixtureRequest
) -> None:
    """Control: with neither the lead nor a mended statement a standby is asked."""
    fail_without(
        lead_and_mend_nothing,
        test_writes_by_the_alias_of_an_object_reach_the_primary,
        {"write": write},
        request,
    )


def by_lock(found: Comment) -> list[str]:
    """Read, lock, read again and write by the alias of an object, as trees of django CMS do."""
    events = []
    notes = Note.objects.using(found._state.db)
    with transaction.atomic(using=found._state.db):
        transaction.on_commit(lambda: events.append("committed"), using=found._state.db)
        assert notes.filter(title="NEW").exists()
        note = notes.select_for_update().get(pk=found.object_id)
        note.refresh_from_db(using=found._state.db)
        note.title += "ER"
        note.save(using=found._state.db)
        events.append("saved")
    return [Note.objects.get().title, *events]


def by_update_or_create(found: Comment) -> list[str]:
    """Have Django open the transaction, and lock first."""
    notes = Note.objects.using(found._state.db)
    notes.update_or_create(pk=found.object_id, defaults={"title": "NEWER"})
    return [Note.objects.get().title, "saved", "committed"]


@pytest.mark.parametrize("is_kept", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("way", [by_lock, by_update_or_create])
def test_a_transaction_by_the_alias_of_an_object_is_one_on_the_primary(
    comment: Comment, cluster: Cluster, way: Callable[[Comment], list[str]], is_kept: bool
) -> None:
    """A standby would refuse the lock; and what it shows is no ground for what is written."""
    kept: list[Comment] = []
    visit(Client(), lambda request: kept.append(Comment.objects.all()[0]))
    assert kept[0]._state.db.startswith("replica")
    stand_still(cluster)
    rename()

    def action(request: HttpRequest) -> list[str]:
        return way(kept[0] if is_kept else Comment.objects.all()[0])

    assert visit(Client(), action) == ["NEWER", "saved", "committed"]


def test_what_is_written_by_such_an_alias_is_rolled_back_with_it(comment: Comment) -> None:
    """Also where the code tells the transaction to, by the same alias."""

    def action(request: HttpRequest) -> None:
        alias = Comment.objects.all()[0]._state.db
        with transaction.atomic(using=alias):
            Note.objects.using(alias).update(title="lost")
            transaction.set_rollback(True, using=alias)

    visit(Client(), action)
    assert Note.objects.get().title == "first"


def test_a_transaction_on_a_replica_that_the_code_names_is_obeyed(
    note: Note, served: Served
) -> None:
    """It shows one state of that replica."""

    def action(request: HttpRequest) -> str:
        with transaction.atomic(using="replica1"):
            return Note.objects.using("replica1").get().title

    assert visit(Client(), action) == "first"
    assert served.aliases("notes_note") == {"replica1"}


@pytest.mark.parametrize(
    ("way", "error"), [(by_lock, AssertionError), (by_update_or_create, InternalError)]
)
def test_without_the_lead_of_transactions_it_reads_what_was_and_is_refused(
    comment: Comment,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Comment], list[str]],
    error: type[Exception],
) -> None:
    """Control: with the alias taken as it is, the test above fails."""
    monkeypatch.setattr(
        transaction, "get_connection", lambda using=None: connections[using or "default"]
    )
    with pytest.raises(error):
        test_a_transaction_by_the_alias_of_an_object_is_one_on_the_primary(
            comment, cluster, way, False
        )


def test_connections_are_led_before_they_are_opened(note: Note) -> None:
    """Also the first query by a connection of this thread is led: it is compiled before it is sent."""
    connections["replica1"].close()
    del connections["replica1"]
    compiler = connections["replica1"].ops.compiler("SQLCompiler")
    assert issubclass(compiler, leading.LedReader)


def test_what_is_read_on_the_primary_by_name_is_not_taken_back(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Nor what an object that was kept from the primary has shown: a replica that lags lacks it."""
    browser = sign_in(ann)
    wait_until_known(cluster)
    stand_still(cluster)
    rename()

    def look(request: HttpRequest) -> list[str]:
        assert request.user.is_authenticated
        return [Note.objects.get().title, Note.objects.using("default").get().title]

    assert visit(browser, look) == ["first", "NEW"]
    assert visit(browser, lambda request: Note.objects.get().title) == "NEW"


def test_what_another_replica_has_shown_hides_nothing_of_that(
    ann: User, note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another replica than usual serves, that is remembered of the request as well."""
    original = leading.note_shown

    def note_another(alias: str) -> None:
        original(alias)
        assert current_scope().cluster("default").seen_elsewhere_on == "default"  # type: ignore[union-attr]

    monkeypatch.setattr(leading, "note_shown", note_another)
    browser = sign_in(ann)
    wait_until_known(cluster)
    stand_still(cluster)
    rename()

    def look(request: HttpRequest) -> str:
        assert Note.objects.get().title == "first"
        current_scope().cluster("default").seen_elsewhere_on = "replica1"  # type: ignore[union-attr]
        return Note.objects.using("default").get().title

    assert visit(browser, look) == "NEW"
    assert visit(browser, lambda request: Note.objects.get().title) == "NEW"


def test_without_the_memory_it_is_taken_back(
    ann: User, note: Note, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the test above fails."""
    monkeypatch.setattr(on_primary, "note_read", lambda *args: None)
    with pytest.raises(AssertionError, match="first"):
        test_what_is_read_on_the_primary_by_name_is_not_taken_back(ann, note, cluster)
