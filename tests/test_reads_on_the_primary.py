"""The primary serves what must not lag, and other databases what is theirs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.http import HttpRequest
from django.test import Client
from django.views import View

from django_replica_router import scope, use_primary, use_replica
from django_replica_router.replicas.registry import stop_monitors
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.conftest import PATIENT, wait_until_known, wait_until_routed
from tests.helpers import Served
from tests.reading import browser, note, pause, reasons  # noqa: F401 - fixtures
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# The primary serves what must not lag


def test_inside_atomic_the_primary_serves(
    browser: Client, cluster: Cluster, served: Served
) -> None:
    """Rows that are not committed yet are seen, and so is everything else in the transaction."""
    pause(cluster)

    def action(request: HttpRequest) -> list[int]:
        with transaction.atomic():
            counts = [Tag.objects.count()]
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO notes_tag (name) VALUES ('new')")
            counts.append(Tag.objects.count())
        return counts

    assert visit(browser, action) == [0, 1]
    assert served.aliases("notes_tag") == {"default"}


def test_select_for_update_runs_on_the_primary(browser: Client, note: Note, served: Served) -> None:
    """Locks are taken where the write will be."""

    def action(request: HttpRequest) -> str:
        with transaction.atomic():
            return str(Note.objects.select_for_update().get(pk=note.pk)._state.db)

    assert visit(browser, action) == "default"


def test_get_or_create_reads_from_the_primary(browser: Client, cluster: Cluster) -> None:
    """A row that replicas do not have yet is got, not created twice."""
    pause(cluster)
    Tag.objects.create(name="red")

    def action(request: HttpRequest) -> list[Any]:
        tag, created = Tag.objects.get_or_create(name="red")
        return [tag._state.db, created]

    assert visit(browser, action) == ["default", False]


def test_refresh_from_db_after_a_write_sees_it(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """The rest of a request that has written reads from the primary."""
    pause(cluster)

    def action(request: HttpRequest) -> list[Any]:
        mine = Note.objects.get(pk=note.pk)
        before = mine._state.db
        Note.objects.filter(pk=note.pk).update(title="second")
        mine.refresh_from_db()
        return [before, mine._state.db, mine.title]

    before, after, title = visit(browser, action)
    assert before.startswith("replica")
    assert (after, title) == ("default", "second")


def test_after_its_first_write_a_request_sees_what_others_have_written_since(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """A replica with the request's own write is not enough: what is read now may be saved."""

    def action(request: HttpRequest) -> str:
        Tag.objects.create(name="mine")
        wait_until_known(cluster)
        assert Tag.objects.filter(name="mine").exists()
        pause(cluster)
        cluster.primary.execute("UPDATE notes_note SET title = 'theirs'", dbname="app")
        return Note.objects.get(pk=note.pk).title

    assert visit(browser, action) == "theirs"


def test_refresh_from_db_of_an_instance_from_the_primary_may_read_a_replica(
    browser: Client, note: Note
) -> None:
    """Within the cluster the scope decides, not where the instance came from."""

    def action(request: HttpRequest) -> str:
        mine = Note.objects.using("default").get(pk=note.pk)
        mine.refresh_from_db()
        return str(mine._state.db)

    assert visit(browser, action).startswith("replica")


RELATIONS: dict[str, Callable[[Note], Any]] = {
    "foreign key": lambda note: note.owner.username,
    "reverse": lambda note: [str(n) for n in note.owner.notes.all()],
    "many to many": lambda note: [tag.name for tag in note.tags.all()],
    "generic": lambda note: [c.text for c in note.comments.all()],
    "generic foreign key": lambda note: Comment.objects.first().target.title,  # type: ignore[union-attr]
    "prefetch": lambda note: [
        [tag.name for tag in n.tags.all()] for n in Note.objects.prefetch_related("tags")
    ],
    "select_related": lambda note: [n.owner.username for n in Note.objects.select_related("owner")],
    "iterator": lambda note: [n.title for n in Note.objects.iterator(chunk_size=1)],
    "values": lambda note: list(Note.objects.values_list("title", flat=True)),
    "in_bulk": lambda note: list(Note.objects.in_bulk()),
    "exists": lambda note: Note.objects.exists(),
    "raw": lambda note: [n.title for n in Note.objects.raw("SELECT * FROM notes_note")],
    "union": lambda note: len(Note.objects.all().union(Note.objects.filter(pk=0))),
}


@pytest.mark.parametrize("relation", RELATIONS.values(), ids=RELATIONS)
def test_related_reads_follow_the_scope(
    browser: Client, note: Note, served: Served, relation: Callable[[Note], Any]
) -> None:
    """Related objects come from the replica in a reading request, from the primary in a writing one."""

    def read(request: HttpRequest) -> None:
        relation(Note.objects.get(pk=note.pk))

    visit(browser, read)  # Django keeps content types, which are the primary's
    served.clear()
    visit(browser, read)
    assert served.only_replicas()
    served.clear()
    visit(browser, read, "post")
    assert served.only_primary()


def test_unsafe_methods_read_from_the_primary(browser: Client, note: Note, settings: Any) -> None:
    """A row read from a lagging replica and saved would undo somebody else's update."""
    for method in ("post", "put", "patch", "delete"):
        assert reasons(settings, browser, lambda request: note.tags.count(), method=method) == {
            "UNSAFE_METHOD"
        }


def test_no_update_of_somebody_else_is_lost(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Read, change one field, save all: the other's change is still there."""
    pause(cluster)
    Note.objects.filter(pk=note.pk).update(body="somebody else's")

    def action(request: HttpRequest) -> None:
        mine = Note.objects.get(pk=note.pk)
        mine.title = "mine"
        mine.save()

    visit(browser, action, "post")
    assert Note.objects.using("default").get(pk=note.pk).body == "somebody else's"


def test_use_replica_lets_an_unsafe_method_read_from_a_replica(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """A search by POST says that it does not write."""

    @use_replica
    def search(request: HttpRequest) -> str:
        return str(Note.objects.get(pk=note.pk)._state.db)

    assert visit(browser, search, "post").startswith("replica")


def test_use_replica_still_sees_the_users_writes(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """It lifts a rule of thumb, not the guarantee."""
    pause(cluster)

    @use_replica
    def action(request: HttpRequest) -> list[Any]:
        before = Note.objects.get(pk=note.pk)
        Note.objects.filter(pk=note.pk).update(title="second")
        after = Note.objects.get(pk=note.pk)
        return [before._state.db, after._state.db, after.title]

    before, after, title = visit(browser, action, "post")
    assert before.startswith("replica")
    assert (after, title) == ("default", "second")


def test_use_replica_after_a_write_reads_from_a_replica_that_has_it(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Where the replica has caught up with the request's own write, it may serve."""
    # The position is taken when it reads: behind the write there may be more by then.
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 10.0}

    @use_replica
    def action(request: HttpRequest) -> list[Any]:
        Note.objects.filter(pk=note.pk).update(title="second")
        wait_until_known(cluster)
        after = Note.objects.get(pk=note.pk)
        return [after._state.db, after.title]

    database, title = visit(browser, action, "post")
    assert database.startswith("replica")
    assert title == "second"


def test_use_replica_works_outside_a_request(note: Note) -> None:
    """A report in a command says so, and is served by a replica."""
    assert Note.objects.get(pk=note.pk)._state.db == "default"
    with use_replica():
        assert str(Note.objects.get(pk=note.pk)._state.db).startswith("replica")
    assert Note.objects.get(pk=note.pk)._state.db == "default"


@pytest.mark.parametrize("block", [nullcontext, use_replica])
@pytest.mark.parametrize("is_same", [True, False], ids=["same user", "somebody else"])
def test_a_scope_inside_another_sees_what_that_has_written(
    ann: User, lagging: Cluster, block: Callable[[], AbstractContextManager[Any]], is_same: bool
) -> None:
    """A task that is run at once, in the midst of the request that begins it, reads its rows."""
    with scope(user=ann):
        Tag.objects.create(name="new")
        with scope(user=ann if is_same else None), block():
            assert Tag.objects.filter(name="new").exists()


def test_use_primary_reads_from_the_primary(browser: Client, note: Note) -> None:
    """Forced is forced, and only inside."""

    def action(request: HttpRequest) -> list[str]:
        with use_primary():
            inside = Note.objects.get(pk=note.pk)._state.db
        return [str(inside), str(Note.objects.get(pk=note.pk)._state.db)]

    inside, outside = visit(browser, action)
    assert inside == "default"
    assert outside.startswith("replica")


def test_use_primary_on_a_class_based_view(browser: Client, note: Note) -> None:
    """The decorator works on the class, also where the template is rendered afterwards."""
    from django.views.generic import ListView

    @use_primary
    class Notes(ListView):  # type: ignore[type-arg]  # not subscriptable when it runs
        model = Note
        template_name = "notes/home.html"
        context_object_name = "notes"

    @use_primary
    class Plain(View):
        def get(self, request: HttpRequest) -> Any:
            from django.http import JsonResponse

            return JsonResponse({"result": Note.objects.get()._state.db})

    with Served() as served:
        response = visit(browser, Notes.as_view())
    assert response.status_code == 200
    assert served.aliases("notes_note") == {"default"}
    assert visit(browser, Plain.as_view()) == "default"


def test_validation_of_uniqueness_in_a_form_post_sees_the_primary(
    browser: Client, cluster: Cluster
) -> None:
    """A name that replicas do not know to be taken is refused all the same."""
    from django.forms import modelform_factory

    pause(cluster)
    Tag.objects.create(name="red")
    form_class = modelform_factory(Tag, fields=["name"])
    assert visit(browser, lambda request: form_class({"name": "red"}).is_valid(), "post") is False


def test_an_instance_from_a_replica_is_saved_to_the_primary(browser: Client, note: Note) -> None:
    """Where an object was read from does not matter for where it is written."""

    def action(request: HttpRequest) -> list[str]:
        mine = Note.objects.get(pk=note.pk)
        origin = mine._state.db
        mine.title = "saved"
        mine.save()
        return [str(origin), str(mine._state.db)]

    origin, after = visit(browser, action)
    assert origin.startswith("replica")
    assert after == "default"
    assert Note.objects.using("default").get(pk=note.pk).title == "saved"


def test_objects_of_different_servers_of_a_cluster_may_be_related(
    browser: Client, ann: User, note: Note
) -> None:
    """A user from a replica owns a note from the primary."""

    def action(request: HttpRequest) -> None:
        owner = User.objects.get(pk=ann.pk)
        assert str(owner._state.db).startswith("replica")
        mine = Note.objects.using("default").get(pk=note.pk)
        mine.owner = owner
        mine.tags.add(Tag.objects.get(name="red"))
        Note.objects.create(owner=owner, title="third")

    visit(browser, action)
    assert Note.objects.using("default").filter(title="third").exists()


def test_saving_a_deferred_instance_from_a_replica_writes_what_was_loaded(
    browser: Client, note: Note, cluster: Cluster
) -> None:
    """As without the package: the fields that were left out keep what somebody else wrote."""
    pause(cluster)
    Note.objects.filter(pk=note.pk).update(body="somebody else's")

    def action(request: HttpRequest) -> list[str]:
        mine = Note.objects.only("title").get(pk=note.pk)
        origin = str(mine._state.db)
        mine.title = "mine"
        mine.save()
        return [origin, str(mine._state.db)]

    origin, after = visit(browser, action)
    assert origin.startswith("replica")
    assert after == "default"
    saved = Note.objects.using("default").get(pk=note.pk)
    assert (saved.title, saved.body) == ("mine", "somebody else's")


def test_an_instance_from_a_replica_can_be_added_to_a_relation(
    browser: Client, ann: User, note: Note
) -> None:
    """A related manager takes it for a saved one."""

    def action(request: HttpRequest) -> str:
        mine = Note.objects.get(pk=note.pk)
        origin = str(mine._state.db)
        User.objects.get(pk=ann.pk).notes.add(mine)
        return origin

    assert visit(browser, action).startswith("replica")


def test_the_time_zone_of_a_session_does_not_matter(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """A server that tells its start in local time is the server that the monitor knows."""
    for replica in cluster.replicas:
        replica.configure(timezone="Asia/Kathmandu")
    connections.close_all()
    stop_monitors()
    try:
        wait_until_routed()
        served.clear()
        visit(Client(), lambda request: Note.objects.count())
        assert served.only_replicas("notes_note")
    finally:
        for replica in cluster.replicas:
            replica.configure(timezone=None)
        connections.close_all()
        stop_monitors()


def test_outside_a_scope_the_primary_serves(note: Note, served: Served) -> None:
    """Shell, command, migration, thread: nobody knows for whom they work."""
    list(Note.objects.all())
    assert served.only_primary()


def test_models_listed_as_primary_only_are_read_from_the_primary(
    browser: Client, note: Note, settings: Any, served: Served
) -> None:
    """By app or by model."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_ONLY": ["auth", "notes.Tag"]}
    browser.get("/")
    assert served.aliases("auth_user") == {"default"}
    assert served.aliases('FROM "notes_tag"') == {"default"}
    served.clear()
    visit(browser, lambda request: Note.objects.count())
    assert served.only_replicas("notes_note")


def test_the_table_of_the_database_cache_is_primary_only(cluster: Cluster, settings: Any) -> None:
    """A cache that forgets what was just put into it is no cache."""
    from django.core.cache import caches
    from django.core.management import call_command

    settings.CACHES = {
        **settings.CACHES,
        "table": {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "cache"},
    }
    call_command("createcachetable", "cache", database="default", verbosity=0)
    with Served() as served:
        visit(Client(), lambda request: caches["table"].get("nothing"))
    assert served.only_primary("cache")


def test_switched_off_everything_is_read_from_the_primary(
    browser: Client, note: Note, settings: Any, served: Served
) -> None:
    """One setting takes the package out of the way."""
    settings.REPLICA_ROUTER = {"ENABLED": False}
    browser.get("/")
    assert served.only_primary()


# Other databases and other routers


class Elsewhere:
    """A router of the site's own: tags live in another database."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "elsewhere" if model is Tag else None

    db_for_write = db_for_read


@pytest.mark.parametrize("first", ["package", "other"])
def test_a_model_that_another_router_keeps_elsewhere_stays_there(
    cluster: Cluster, settings: Any, first: str
) -> None:
    """Whichever of the two comes first in the chain."""
    from django.db import router

    routers = ["django_replica_router.ReplicaRouter", "tests.test_reads_on_the_primary.Elsewhere"]
    settings.DATABASE_ROUTERS = routers if first == "package" else routers[::-1]
    with scope():
        assert router.db_for_read(Tag) == "elsewhere"
        assert router.db_for_write(Tag) == "elsewhere"
        assert router.db_for_read(Note).startswith("replica")
        assert router.db_for_write(Note) == "default"


def test_an_instance_from_outside_the_cluster_stays_outside(cluster: Cluster) -> None:
    """What was loaded from another database is read from and written to that."""
    from django.db import router

    stranger = Note(pk=1)
    stranger._state.db = "elsewhere"
    with scope():
        assert router.db_for_read(Note, instance=stranger) == "elsewhere"
        assert router.db_for_write(Note, instance=stranger) == "elsewhere"
        assert router.allow_relation(stranger, Note(pk=2)) is False


def test_migrations_do_not_run_on_replicas(cluster: Cluster) -> None:
    """They arrive there by themselves."""
    from django.db import router

    assert router.allow_migrate("replica1", "notes") is False
    assert router.allow_migrate("default", "notes") is True
