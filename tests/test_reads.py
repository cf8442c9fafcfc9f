"""Replicas serve, and a user sees what the user has written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client

from django_replica_router import scope, use_replica
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import PATIENT, everybodys_key, wait_until_known
from tests.helpers import Served
from tests.reading import browser, note, pause, reasons  # noqa: F401 - fixtures
from tests.site import PASSWORD, sign_in, visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


# A site whose other middleware does not ask who is signed in.
PLAIN_MIDDLEWARE = [
    "django_replica_router.middleware.ReplicaRouterMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


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
    visit(Client(), lambda request: Note.objects.count())  # somebody else finds the store empty
    wait_until_known(cluster)
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


def test_the_token_counts_under_each_lag_where_the_user_is_found_late(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """Also where the first read under it is one that another lag was allowed for."""
    pause(cluster)
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="second")

    def late(request: HttpRequest) -> list[str]:
        before = Note.objects.get(pk=note.pk)
        request.user = ann
        with use_replica(max_lag=3600.0):
            between = Note.objects.get(pk=note.pk)
        return [before.title, between.title, Note.objects.get(pk=note.pk).title]

    assert visit(Client(), late) == ["first", "second", "second"]


def test_no_lag_leads_back_to_a_replica_that_another_lag_has_left(
    ann: User, note: Note, cluster: Cluster
) -> None:
    """What the other replica has shown may be missing there, also where it has the user's own by now."""
    left, other = cluster.replicas
    wait_until_known(cluster)
    left.pause()
    with scope(user=ann):
        Note.objects.filter(pk=note.pk).update(title="second")
    other.wait_replayed(cluster.primary.flush())

    def read() -> str:
        return str(Note.objects.get(pk=note.pk)._state.db)

    def late(request: HttpRequest) -> list[str]:
        first = read()
        if first != left.name:  # who is nobody in particular is led by chance
            return []
        request.user = ann
        with use_replica(max_lag=3600.0):
            between = read()
        if between != other.name:  # the machine was busy
            return []
        left.resume()
        wait_until_known(cluster)
        return [first, between, read()]

    seen = next(filter(None, (visit(Client(), late) for _ in range(100))))
    assert seen == [left.name, other.name, "default"]


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
