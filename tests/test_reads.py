"""Reads go to a replica where they may, and to the primary where they must."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.test import Client
from django.views import View

from django_replica_router import current_scope, scope, use_primary, use_replica
from django_replica_router.errors import StoreError
from django_replica_router.registry import find_monitor, stop_monitors
from django_replica_router.stores import get_store
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.conftest import (
    PATIENT,
    everybodys_key,
    stand_still,
    unwatched,
    wait_until,
    wait_until_known,
    wait_until_routed,
)
from tests.helpers import Served
from tests.site import PASSWORD, sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

# A site whose other middleware does not ask who is signed in.
PLAIN_MIDDLEWARE = [
    "django_replica_router.middleware.ReplicaRouterMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


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


def store_answers() -> bool:
    """Tell whether the token store is read again."""
    try:
        store = get_store("default")
        store.life()  # it was started anew, perhaps
        store.load(["anything"])
    except StoreError:
        return False
    return True


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


# Replicas serve


def test_a_reader_who_has_what_he_wrote_is_served_by_a_replica(
    browser: Client, note: Note, served: Served
) -> None:
    """Nothing to wait for: session, user and notes all come from a replica."""
    assert browser.get("/").status_code == 200
    assert served.only_replicas()
    assert served.aliases("django_session")
    assert served.aliases("auth_user")
    assert served.aliases("notes_note")


def test_an_anonymous_reader_is_served_by_a_replica(cluster: Cluster, served: Served) -> None:
    """Without cookie or credential there is nothing to see but what everybody sees."""
    visit(Client(), lambda request: Note.objects.count())
    assert served.only_replicas("notes_note")


def test_one_replica_serves_a_whole_request(browser: Client, note: Note, served: Served) -> None:
    """Two reads of one request never go to two replicas."""
    for _ in range(10):
        served.clear()
        browser.get("/overview/")
        assert len(served.aliases()) == 1


def test_one_replica_serves_a_whole_session(browser: Client, note: Note, served: Served) -> None:
    """The same reader meets the same replica, request after request."""
    for _ in range(10):
        browser.get("/")
    assert len(served.aliases()) == 1


def test_readers_are_spread_over_the_replicas(cluster: Cluster, served: Served) -> None:
    """Each replica has its share."""
    for _ in range(40):
        visit(Client(), lambda request: Note.objects.count())
    assert served.aliases("notes_note") == {"replica1", "replica2"}


# A user sees what the user has written


def test_login_works_under_lag(ann: User, lagging: Cluster, served: Served) -> None:
    """Signed in on a primary whose replicas show the world before the user even existed."""
    client = Client()
    response = client.post("/login/", {"username": "ann", "password": PASSWORD}, follow=True)
    assert response.redirect_chain == [("/", 302)]
    assert response.context["user"] == ann
    assert served.only_primary()


def test_a_session_value_is_read_back_under_lag(browser: Client, cluster: Cluster) -> None:
    """What one request has put into the session, the next one finds there."""
    pause(cluster)
    for value in ("1", "2"):
        browser.post("/session/", {"value": value})
        assert browser.get("/api/me/").json()["session_value"] == int(value)


def test_an_anonymous_session_value_is_read_back_under_lag(cluster: Cluster) -> None:
    """The session counts, also of nobody in particular."""
    client = Client()
    pause(cluster)

    def keep(request: HttpRequest) -> None:
        request.session["basket"] = ["book"]

    visit(client, keep, "post")
    assert visit(client, lambda request: request.session["basket"]) == ["book"]


def test_logout_ends_the_session_under_lag(browser: Client, cluster: Cluster) -> None:
    """The cookie of before the logout opens nothing, although replicas still have the session."""
    stolen = browser.cookies["sessionid"].value
    pause(cluster)
    assert browser.post("/logout/").status_code == 302
    thief = Client()
    thief.cookies["sessionid"] = stolen
    assert thief.get("/api/me/").json()["username"] is None


def test_a_logout_by_get_ends_the_session_under_lag(ann: User, cluster: Cluster) -> None:
    """A session that replicas do not have yet is not silently left alive on the primary."""
    from django.contrib.auth import logout
    from django.contrib.sessions.models import Session

    pause(cluster)
    client = sign_in(ann)
    visit(client, lambda request: logout(request))
    assert not Session.objects.using("default").exists()


def test_a_second_device_sees_the_write(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """The token is the user's, not the browser's."""
    phone = sign_in(ann)
    wait_until_known(cluster)
    phone.get("/")
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
    assert b"second" in phone.get(f"/notes/{note.pk}/").content


def test_a_second_device_sees_the_users_own_row(
    browser: Client, ann: User, cluster: Cluster
) -> None:
    """Even what is read before the user is known: the row of the user."""
    phone = sign_in(ann)
    wait_until_known(cluster)
    pause(cluster)

    def rename(request: HttpRequest) -> None:
        User.objects.filter(pk=request.user.pk).update(first_name="Anna")

    visit(browser, rename, "post")
    assert visit(phone, lambda request: request.user.first_name) == "Anna"


def test_signing_out_a_second_device_works_under_lag(
    browser: Client, ann: User, cluster: Cluster
) -> None:
    """Even what is read before anything is known: the row of the session."""
    from django.contrib.sessions.models import Session

    phone = sign_in(ann)
    wait_until_known(cluster)
    assert phone.get("/api/me/").json()["username"] == "ann"
    pause(cluster)
    here = browser.cookies["sessionid"].value

    def sign_out_elsewhere(request: HttpRequest) -> None:
        assert request.user.is_authenticated
        Session.objects.exclude(session_key=here).delete()

    visit(browser, sign_out_elsewhere, "post")
    assert phone.get("/api/me/").json()["username"] is None


def test_an_api_client_sees_its_write(ann: User, note: Note, cluster: Cluster) -> None:
    """A credential in a header counts as a session does, and the user may be set late."""
    headers = {"authorization": "Token of-ann"}

    def as_rest_framework_does(request: HttpRequest) -> Any:
        # Reads the credential's row first, sets the user on the request afterwards.
        user = User.objects.get(username="ann")
        request.user = user
        return user.first_name

    client = Client()
    visit(client, as_rest_framework_does, headers=headers)
    pause(cluster)

    def rename(request: HttpRequest) -> None:
        as_rest_framework_does(request)
        User.objects.filter(username="ann").update(first_name="Anna")

    visit(client, rename, "post", headers=headers)
    assert visit(client, as_rest_framework_does, headers=headers) == "Anna"


def test_a_credential_that_was_just_handed_out_is_found_under_lag(lagging: Cluster) -> None:
    """A credential that the store has never seen is looked for on the primary."""
    visit(Client(), lambda request: Tag.objects.create(name="credential").pk, "post")
    found = visit(
        Client(),
        lambda request: Tag.objects.filter(name="credential").exists(),
        headers={"authorization": "Token credential"},
    )
    assert found is True


def test_an_unknown_session_is_remembered_once_it_turned_out_to_be_real(
    browser: Client, cluster: Cluster, settings: Any, forget_tokens: Callable[[], None]
) -> None:
    """Whose session an unknown cookie names is looked up on the primary, once."""
    forget_tokens()

    def whoami(request: HttpRequest) -> str:
        return str(request.user.username)

    assert "UNKNOWN_SESSION" in reasons(settings, browser, whoami)
    assert "UNKNOWN_SESSION" not in reasons(settings, browser, whoami)


def test_an_emptied_store_begins_to_remember_anew(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Whoever wrote before it was emptied is protected, although nobody knows who it was."""
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
    assert cluster.cache is not None
    cluster.cache.flush()

    def title(request: HttpRequest) -> str:
        return Note.objects.get(pk=note.pk).title

    assert visit(browser, title) == "second"
    assert visit(browser, title) == "second"
    assert visit(Client(), title) == "second"
    for replica in cluster.replicas:
        replica.resume()
    wait_until_known(cluster)
    assert not {"EMPTY_STORE", "LAGGING"} & reasons(settings, browser, title)


def test_a_new_secret_key_begins_to_remember_anew(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """Sessions outlast the change; but none of them has the name that the store knows it by."""

    def fill_cart(request: HttpRequest) -> None:
        request.session["cart"] = 1
        Note.objects.update(title="second")

    def title(request: HttpRequest) -> str:
        assert request.session["cart"]
        return Note.objects.get().title

    visitor = Client()
    cluster.wait_caught_up()
    pause(cluster)
    visit(visitor, fill_cart, "post")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "a new one"
    assert visit(visitor, title) == "second"


def by_key(request: HttpRequest) -> list[str]:
    """Name whom a request is for, by a header that nobody has verified."""
    return [request.headers["X-Api-Key"]]


def test_a_made_up_key_of_the_site_makes_no_session_real(cluster: Cluster, settings: Any) -> None:
    """Who makes up both leaves nothing either: the store is not filled by strangers."""
    settings.REPLICA_ROUTER = {**PATIENT, "IDENTITY": f"{__name__}.by_key"}
    client = Client(headers={"X-Api-Key": "made up"})
    client.cookies["sessionid"] = "made up as well"
    visit(client, lambda request: [str(request.user), Note.objects.count()])
    assert cluster.cache is not None
    assert cluster.cache.command("KEYS", "*") == [everybodys_key()]


def by_user(request: HttpRequest) -> list[str]:
    """Name whom a request is for, by what the database tells."""
    return [request.user.get_username()]


def test_the_site_may_ask_the_database_whom_a_request_is_for(
    ann: User, note: Note, served: Served, cluster: Cluster, settings: Any
) -> None:
    """The primary answers that: nobody's token protects such a read."""
    settings.REPLICA_ROUTER = {**PATIENT, "IDENTITY": f"{__name__}.by_user"}
    client = sign_in(ann)
    wait_until_known(cluster)
    served.clear()
    assert visit(client, lambda request: Note.objects.get().title) == note.title
    assert "default" in served.aliases("auth_user")
    assert served.only_replicas("notes_note")


def by_nothing(request: HttpRequest) -> list[str]:
    """Fail, as a callable of a site may."""
    raise LookupError(request.path)


def test_an_error_of_the_sites_callable_costs_no_token(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """A request that has written is remembered under what else is known of it."""
    client = Client(headers={"Authorization": "Token abc"})
    visit(client, lambda request: Note.objects.count())
    wait_until_known(cluster)
    pause(cluster)
    settings.REPLICA_ROUTER = {**PATIENT, "IDENTITY": f"{__name__}.by_nothing"}
    visit(client, lambda request: Note.objects.update(title="second") and None)
    settings.REPLICA_ROUTER = PATIENT
    assert visit(client, lambda request: Note.objects.get().title) == "second"


def test_a_made_up_session_leaves_nothing_in_the_cache(cluster: Cluster) -> None:
    """Nobody fills the cache with invented cookies."""
    client = Client()
    client.cookies["sessionid"] = "madeupmadeupmadeupmadeupmadeup12"
    visit(client, lambda request: str(request.user))
    assert cluster.cache is not None
    assert cluster.cache.command("KEYS", "*") == [everybodys_key()]


def test_the_token_counts_where_the_user_is_found_late(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """A floor raised in mid-request makes the chosen replica pass again, or the primary serve."""
    pause(cluster)
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="second")

    def late(request: HttpRequest) -> list[str]:
        before = Note.objects.get(pk=note.pk)
        request.user = ann
        after = Note.objects.get(pk=note.pk)
        return [str(before._state.db), before.title, str(after._state.db), after.title]

    before_db, before, after_db, after = visit(Client(), late)
    assert before_db.startswith("replica")
    assert (before, after_db, after) == ("first", "default", "second")


def test_a_view_without_session_or_user_costs_nothing(
    cluster: Cluster, settings: Any, served: Served
) -> None:
    """No query of the package's own, and no Vary: Cookie that would spoil a cache."""
    settings.MIDDLEWARE = PLAIN_MIDDLEWARE
    client = Client()
    client.cookies["sessionid"] = "something"
    response = visit(client, lambda request: None)
    assert served.statements == []
    assert "Vary" not in response.headers


def test_reading_under_a_session_does_not_vary_on_the_cookie(
    browser: Client, note: Note, settings: Any, served: Served
) -> None:
    """A view that reads rows but neither session nor user runs its own query, and no other."""
    from django.http import HttpResponse

    settings.MIDDLEWARE = PLAIN_MIDDLEWARE
    plain = Client()
    plain.cookies = browser.cookies
    response = visit(plain, lambda request: HttpResponse(str(Note.objects.count())))
    assert len(served.statements) == 1
    assert "Cookie" not in response.headers.get("Vary", "")


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

    routers = ["django_replica_router.ReplicaRouter", "tests.test_reads.Elsewhere"]
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


# Replicas that cannot serve


def test_waiting_serves_from_a_replica_that_catches_up(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """A read right after a write waits for the replica instead of loading the primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 10.0}
    found: set[str] = set()
    for title in ("a", "b", "c", "d", "e"):
        browser.post(f"/notes/{note.pk}/edit/", {"title": title, "body": ""})

        def read(request: HttpRequest) -> list[str]:
            mine = Note.objects.get(pk=note.pk)
            return [str(mine._state.db), mine.title]

        database, seen = visit(browser, read)
        found.add(database[:7])
        assert seen == title
    assert found == {"replica"}


def test_a_replica_that_does_not_catch_up_leaves_the_request_to_the_primary(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """After the wait budget the primary serves, and the rest of the request as well."""
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})

    def read(request: HttpRequest) -> list[str]:
        first = Note.objects.get(pk=note.pk)
        for replica in cluster.replicas:
            replica.resume()
        position = cluster.primary.flush()
        monitor = find_monitor("default")
        assert monitor is not None
        monitor.want(position, 0.0)
        wait_until(
            lambda: min(reading.watermark for reading in monitor.readings.values()) >= position,
            "the monitor to know that they have caught up",
        )
        return [str(first._state.db), first.title, str(Note.objects.get(pk=note.pk)._state.db)]

    assert visit(browser, read) == ["default", "second", "default"]


def test_the_wait_budget_is_one_for_the_whole_request(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Not one for each read, nor one for each key."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0.2}
    pause(cluster)
    with scope(user=ann):
        note.save()

    def read(request: HttpRequest) -> float:
        request.user = ann
        current = current_scope()
        assert current is not None
        list(Note.objects.all())
        with use_replica(max_lag=9.0):
            list(Note.objects.all())
        left = current.cluster("default").wait_left
        assert left is not None
        return left

    assert visit(Client(), read) == 0.0


def test_without_a_budget_nobody_waits(
    browser: Client, note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAIT = 0 goes to the primary at once."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
    monitor = find_monitor("default")
    assert monitor is not None

    def forbidden(*args: Any) -> None:
        pytest.fail("waited")

    monkeypatch.setattr(monitor, "wait_for", forbidden)
    assert reasons(settings, browser, lambda request: Note.objects.count()) == {"LAGGING"}


@pytest.mark.usefixtures("unhurried")
def test_an_idle_cluster_does_not_lag(cluster: Cluster, settings: Any) -> None:
    """Where nothing is written, replicas are as fresh as the last look at the primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "INTERVAL": 0.25}
    wait_until_routed()
    monitor = find_monitor("default")
    assert monitor is not None
    seen = len(monitor._samples)
    wait_until(lambda: len(monitor._samples) >= seen + 6, "six more samples")
    wait_until(
        lambda: max(replica.age for replica in monitor.replicas()) < 3 * monitor.interval,
        "replicas to be no older than the last looks",
    )


@pytest.mark.usefixtures("unhurried")
def test_a_replica_that_lags_too_far_serves_nobody(
    cluster: Cluster, settings: Any, served: Served
) -> None:
    """Not even a reader who has never written."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4}

    def is_served() -> bool:
        served.clear()
        visit(Client(), lambda request: Note.objects.count())
        return served.only_replicas("notes_note")

    wait_until(is_served, "a replica to serve")
    pause(cluster)
    Tag.objects.create(name="red")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.replicas()) > 0.4, "lag to be noticed")
    served.clear()
    assert reasons(settings, Client(), lambda request: Note.objects.count()) == {"LAGGING"}
    assert served.only_primary("notes_note")


@pytest.mark.usefixtures("unhurried")
def test_a_replica_whose_receiver_died_lags(cluster: Cluster, settings: Any) -> None:
    """Received and replayed positions that agree are no sign of health."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4}
    wait_until_routed()
    for replica in cluster.replicas:
        replica.cut()
    try:
        Tag.objects.create(name="red")
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(lambda: min(r.age for r in monitor.replicas()) > 0.4, "lag to be noticed")
        assert reasons(settings, Client(), lambda request: Note.objects.count()) == {"LAGGING"}
    finally:
        for replica in cluster.replicas:
            replica.reconnect()


@pytest.mark.usefixtures("unhurried")
def test_max_lag_of_a_block_is_obeyed(note: Note, cluster: Cluster, settings: Any) -> None:
    """A report may live with more lag than a page, or with less."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4, "WAIT": 0}
    wait_until_routed()
    pause(cluster)
    Tag.objects.create(name="late")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.replicas()) > 0.4, "lag to be noticed")
    with use_replica():
        assert Note.objects.get(pk=note.pk)._state.db == "default"
    with use_replica(max_lag=3600.0):
        assert str(Note.objects.get(pk=note.pk)._state.db).startswith("replica")


def test_a_block_with_a_lag_of_its_own_reads_from_the_requests_replica(
    note: Note, cluster: Cluster
) -> None:
    """Also for whom any other would do: it might show less than the request has seen."""

    def alias() -> str:
        return str(Note.objects.get(pk=note.pk)._state.db)

    for _ in range(20):
        with scope():
            before = alias()
            assert before.startswith("replica")
            with use_replica(max_lag=3600.0):
                assert alias() == before


def test_a_block_that_allows_less_lag_reads_from_a_replica_that_has_as_much(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """Where the request's own replica lags too far for it, another one takes the block."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 5.0}
    wait_until_routed()
    with scope():
        before = str(Note.objects.get(pk=note.pk)._state.db)
        slow = next(replica for replica in cluster.replicas if replica.name == before)
        slow.pause()
        try:
            cluster.primary.execute("INSERT INTO notes_tag (name) VALUES ('late')", dbname="app")
            monitor = find_monitor("default")
            assert monitor is not None
            wait_until(lambda: monitor.replica(before).age > 0.4, "lag to be noticed")
            with use_replica(max_lag=0.4):
                tag = Tag.objects.get(name="late")
        finally:
            slow.resume()
    assert tag._state.db not in ("default", before)


def test_without_a_live_replica_the_site_works_from_the_primary(
    browser: Client, note: Note, cluster: Cluster, served: Served, settings: Any
) -> None:
    """Every page is served, with persistent connections to servers that are gone."""
    # Who has failed is looked at again after an interval, then after two.
    settings.REPLICA_ROUTER = {**PATIENT, "INTERVAL": 0.25}
    wait_until_known(cluster)
    browser.get("/")
    try:
        with unwatched():
            for replica in cluster.replicas:
                replica.kill()
            # Before the monitor knows.
            assert browser.get("/").status_code == 200
        for _ in range(2):
            assert browser.get("/").status_code == 200
        served.clear()
        assert browser.get("/").status_code == 200
        assert served.only_primary()
    finally:
        for replica in cluster.replicas:
            replica.start()
        for alias in ("replica1", "replica2"):
            connections[alias].close()
    wait_until_known(cluster)
    served.clear()
    assert browser.get("/").status_code == 200
    assert served.only_replicas()


def test_without_a_configured_replica_the_site_works_from_the_primary(
    browser: Client, note: Note, settings: Any, served: Served
) -> None:
    """Installed before the first replica is."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": []}}
    assert browser.get("/").status_code == 200
    assert served.only_primary()


def test_without_a_cache_the_site_works_from_the_primary(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """What cannot be read may be a token: nobody is served by a replica, and nothing raises."""
    assert cluster.cache is not None
    cluster.cache.kill()
    try:
        assert reasons(settings, browser, lambda request: Note.objects.count()) == {"STORE_ERROR"}
        response = browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
        assert response.status_code == 302
        assert b"second" in browser.get(f"/notes/{note.pk}/").content
    finally:
        cluster.cache.start()
    wait_until(store_answers, "the store to be asked again")
    found = reasons(settings, browser, lambda request: str(request.user))
    assert found == {"UNKNOWN_SESSION", "EMPTY_STORE"}


def test_an_unreadable_record_is_no_record(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Garbage under a session's key means: not known, so the primary serves."""
    assert cluster.cache is not None
    for key in cluster.cache.command("KEYS", "*"):
        cluster.cache.command("SET", key, "garbage")
    found = reasons(settings, browser, lambda request: str(request.user))
    assert found == {"UNKNOWN_SESSION", "EMPTY_STORE"}


def test_a_token_of_a_later_timeline_is_served_by_the_primary(
    ann: User, note: Note, settings: Any
) -> None:
    """The primary has failed over, and this process does not know yet."""
    from django_replica_router.identity import user_key
    from django_replica_router.stores import get_store
    from django_replica_router.tokens import Position, Record

    key = f"rr:default:{user_key(ann)}"
    get_store("default").merge({key: Record(Position(2, 1), 1 << 42)}, {key: 60.0})

    def read(request: HttpRequest) -> int:
        request.user = ann
        return Note.objects.count()

    assert reasons(settings, Client(), read) == {"EPOCH"}


def test_writes_that_django_sends_to_a_replica_reach_the_primary(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Generic relations write through the alias that they read from."""

    def update(request: HttpRequest) -> str:
        mine = Note.objects.get(pk=note.pk)
        mine.comments.update(text="changed")
        return str(mine._state.db)

    assert visit(browser, update).startswith("replica")
    assert Comment.objects.using("default").get().text == "changed"

    def delete(request: HttpRequest) -> int:
        mine = get_object_or_404(Note, pk=note.pk)
        deleted, _ = mine.comments.all().delete()
        return deleted

    wait_until_known(cluster)
    assert visit(browser, delete) == 1
    assert not Comment.objects.using("default").exists()


def test_a_deletion_sent_to_a_replica_is_one_transaction(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Where one of its statements fails, none has had an effect."""
    from django.db.models.signals import post_delete

    note.comments.create(author=ann, text="another")
    wait_until_known(cluster)

    def explode(**kwargs: Any) -> None:
        message = "no"
        raise RuntimeError(message)

    def delete(request: HttpRequest) -> list[Any]:
        mine = Note.objects.get(pk=note.pk)
        try:
            mine.comments.all().delete()
        except RuntimeError:
            return [connections["default"].in_atomic_block, mine.comments.count()]
        return []

    post_delete.connect(explode, sender=Comment)
    try:
        assert visit(browser, delete) == [False, 2]
    finally:
        post_delete.disconnect(explode, sender=Comment)
    assert Comment.objects.using("default").count() == 2


def test_a_select_that_writes_reaches_the_primary(browser: Client, note: Note) -> None:
    """The standby refuses a writing function; the caller sees its rows, not an error."""
    from django.db.models import F, Func, IntegerField

    def touch(request: HttpRequest) -> list[Any]:
        touched = Note.objects.annotate(
            new=Func(F("pk"), function="notes_touch", output_field=IntegerField())
        ).get(pk=note.pk)
        return [touched.new, str(Note.objects.get(pk=note.pk)._state.db)]

    assert visit(browser, touch) == [2, "default"]
    assert Note.objects.using("default").get(pk=note.pk).version == 2


def test_a_replica_without_autocommit_serves_after_it_has_refused_to_write(note: Note) -> None:
    """Its transaction has failed with the statement, and would refuse whatever comes next."""
    with scope():
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        connections[alias].set_autocommit(False)
        try:
            Tag.objects.raw(
                "WITH new AS (INSERT INTO notes_tag (name) VALUES ('new') RETURNING *) SELECT * FROM new"
            )[0]
            assert Tag.objects.filter(name="new").exists()
            assert Note.objects.using(alias).get() == note
        finally:
            connections[alias].rollback()
            connections[alias].set_autocommit(True)


def test_many_selects_that_write_reach_the_primary(note: Note, cluster: Cluster) -> None:
    """All of them, also where what the replica has taken of their parameters comes but once."""
    cluster.primary.execute(
        "CREATE FUNCTION add_tag(name text) RETURNS void LANGUAGE sql "
        "AS 'INSERT INTO notes_tag (name) VALUES ($1)'",
        dbname="app",
    )
    try:
        wait_until_known(cluster)
        with scope():
            alias = str(Note.objects.get()._state.db)
            assert alias.startswith("replica")
            with connections[alias].cursor() as cursor:
                names = ([f"new {number}"] for number in range(3))
                cursor.executemany("SELECT add_tag(%s)", names)
            assert Tag.objects.filter(name__startswith="new").count() == 3
    finally:
        cluster.primary.execute("DROP FUNCTION add_tag(text)", dbname="app")


@pytest.mark.parametrize("asks", [True, False])
def test_a_replica_is_asked_itself_where_the_last_look_at_it_is_too_old(
    asks: bool,
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has arrived since then is known without waiting for anybody to look.

    Negative control: where the request does not ask, it knows of nothing, and reads elsewhere.
    """
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}

    def read() -> str:
        with scope(user=ann):
            return str(Note.objects.get(pk=note.pk)._state.db)

    assert read().startswith("replica")  # so this thread is connected to it
    if not asks:
        monkeypatch.setattr("django_replica_router.search.ask_over_connection", lambda *args: None)
    with unwatched():
        with scope(user=ann):
            note.save()
        cluster.wait_caught_up()
        assert read().startswith("replica" if asks else "default")


def test_a_replica_that_is_asked_itself_and_lacks_the_write_does_not_serve(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Negative: its answer is compared like any other."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}
    with scope(user=ann):
        assert str(Note.objects.get(pk=note.pk)._state.db).startswith("replica")
    pause(cluster)
    with scope(user=ann):
        note.save()
    with scope(user=ann):
        assert Note.objects.get(pk=note.pk)._state.db == "default"
