"""APIs by POST and by token: reads from replicas where the view says so, own writes on each device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import AsyncClient, Client
from rest_framework_simplejwt.tokens import AccessToken

from django_replica_router.scopes.identity import UserWatch
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import stand_still, wait_until_known
from tests.examples import load_example
from tests.helpers import Served
from tests.site import PASSWORD, sign_in

HEADER = "X-Replica-Token"
JSON = "application/json"


@pytest.fixture
def _api_site(settings: Any, cluster: Cluster) -> None:
    settings.ROOT_URLCONF = "tests.api_site"
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "LoginRequired" not in name]
    # Long enough for its signature by HMAC.
    settings.SECRET_KEY = settings.SECRET_KEY.ljust(64)


@pytest.fixture
def _token_table(settings: Any, cluster: Cluster) -> Iterator[None]:
    """The table of Django REST framework's tokens."""
    # In place: whether its models are any depends on the settings at the moment of their import.
    settings.INSTALLED_APPS.append("rest_framework.authtoken")
    apps.set_installed_apps(settings.INSTALLED_APPS)
    from rest_framework.authtoken.models import TokenProxy

    call_command("migrate", "authtoken", verbosity=0)
    yield
    call_command("migrate", "authtoken", "zero", verbosity=0)
    settings.INSTALLED_APPS.remove("rest_framework.authtoken")
    apps.unset_installed_apps()
    if admin.site.is_registered(TokenProxy):
        admin.site.unregister(TokenProxy)


class Device(NamedTuple):
    """A client by which a user calls an API."""

    client: Client
    headers: dict[str, str]


def by_session(user: User) -> Device:
    """Sign in, on another device each time."""
    return Device(sign_in(user), {})


def by_token(user: User) -> Device:
    """Send a token of Django REST framework: users have one each, however they send it."""
    from rest_framework.authtoken.models import Token

    token, created = Token.objects.get_or_create(user=user)
    return Device(
        Client(), {"authorization": f"Token {token.key}" if created else f"token {token}"}
    )


def by_jwt(user: User) -> Device:
    """Send a JWT: another one on each device."""
    return Device(Client(), {"authorization": f"Bearer {AccessToken.for_user(user)}"})


class Api(NamedTuple):
    """How to call an API.

    Args:
        search: returns the titles that a device is shown.
        rename: gives the notes of the device's user a title.
        device: returns another one of a user.
    """

    search: Callable[[Device], list[str]]
    rename: Callable[[Device, str], None]
    device: Callable[[User], Device]


def post(device: Device, path: str, **data: Any) -> Any:
    """Post JSON; return the answer."""
    response = device.client.post(path, data, content_type=JSON, headers=device.headers)
    assert response.status_code == 200, response.content
    return response.json()


def rest(path: str, device: Callable[[User], Device]) -> Api:
    """Django REST framework."""
    return Api(
        lambda device: post(device, path, text=""),
        lambda device, title: post(device, "/rest/rename/", title=title),
        device,
    )


NINJA = Api(
    lambda device: [note["title"] for note in post(device, "/ninja/search/", text="")],
    lambda device, title: post(device, "/ninja/rename/", text=title),
    by_jwt,
)
GRAPHQL = Api(
    lambda device: post(device, "/graphql/", query='{ search(text: "") }')["data"]["search"],
    lambda device, title: post(
        device,
        "/graphql/",
        query="mutation($title: String!) { rename(title: $title) }",
        variables={"title": title},
    ),
    by_session,
)
APIS = {
    "rest session": rest("/rest/search/", by_session),
    "rest token": rest("/rest/search/", by_token),
    "rest jwt": rest("/rest/search/", by_jwt),
    "rest class": rest("/rest/Search/", by_jwt),
    "rest stateless": rest("/rest/stateless/", by_jwt),
    "ninja": NINJA,
    "graphql": GRAPHQL,
}


@pytest.fixture(params=APIS.values(), ids=APIS)
def api(request: pytest.FixtureRequest, _api_site: None, ann: User) -> Api:
    """Each API, and each way to authenticate."""
    if request.param.device is by_token:
        request.getfixturevalue("_token_table")
    found: Api = request.param
    return found


@pytest.fixture
def bob(cluster: Cluster) -> User:
    """Another user."""
    return User.objects.create_user("bob", password=PASSWORD)


def known(api: Api, user: User, cluster: Cluster) -> Device:
    """Return a device that has called before, and has seen all that there is."""
    device = api.device(user)
    api.search(device)
    wait_until_known(cluster)
    return device


def test_a_read_by_post_is_served_by_a_replica(
    api: Api, note: Note, cluster: Cluster, served: Served
) -> None:
    """The user's row as well, where the API asks for it inside the view."""
    device = known(api, note.owner, cluster)
    served.clear()
    assert api.search(device) == ["first"]
    assert served.only_replicas("notes_note")


def test_users_see_on_each_device_what_they_wrote_on_another(
    api: Api, note: Note, bob: User, cluster: Cluster
) -> None:
    """One that has called before, and one that has not; another user's shows that replicas lag."""
    ann = note.owner
    Note.objects.create(owner=bob, title="first")
    first, second, bobs = (known(api, user, cluster) for user in (ann, ann, bob))
    for replica in cluster.replicas:
        replica.pause()
    Note.objects.filter(owner=bob).update(title="second")
    api.rename(first, "second")
    assert api.search(first) == ["second"]
    assert api.search(second) == ["second"]
    assert api.search(bobs) == ["first"]
    if api.device is by_jwt:
        assert api.search(api.device(ann)) == ["second"]


@pytest.mark.usefixtures("_api_site")
@pytest.mark.parametrize("name", ["rest jwt", "ninja"])
def test_that_test_fails_where_nobody_looks_for_the_user(
    name: str, note: Note, bob: User, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other device's own record tells of nothing then."""
    monkeypatch.setattr(UserWatch, "_look", lambda self: None)
    with pytest.raises(AssertionError, match="second"):
        test_users_see_on_each_device_what_they_wrote_on_another(APIS[name], note, bob, cluster)


@pytest.mark.usefixtures("_api_site")
def test_without_a_word_what_comes_by_post_reads_from_the_primary(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """The same search, not decorated."""
    api = rest("/rest/undecorated/", by_jwt)
    device = known(api, note.owner, cluster)
    served.clear()
    assert api.search(device) == ["first"]
    assert served.only_primary("notes_note")


@pytest.mark.usefixtures("_api_site")
def test_what_an_operation_returns_unevaluated_is_read_outside_of_it(
    note: Note, cluster: Cluster, served: Served
) -> None:
    """Django Ninja evaluates it: so the operation's view has to be decorated, as the documents say."""
    device = known(NINJA, note.owner, cluster)
    served.clear()
    assert post(device, "/others/lazily/", text="") == [{"title": "first"}]
    assert served.only_primary("notes_note")


@pytest.mark.usefixtures("_api_site")
def test_an_authenticator_that_names_no_user_binds_nobody(note: Note, cluster: Cluster) -> None:
    """What it returns is no user, whatever else it may be."""
    device = known(NINJA, note.owner, cluster)
    other = {"authorization": device.headers["authorization"].replace("Bearer", "bearer")}
    # The first time nobody knows whose credential that is, and the primary serves.
    assert Client().get("/others/nobody/", headers=other).json() == [{"title": "first"}]
    stand_still(cluster)
    NINJA.rename(device, "second")
    assert Client().get("/others/nobody/", headers=other).json() == [{"title": "first"}]


@pytest.mark.usefixtures("_api_site")
def test_mutations_read_from_the_primary(note: Note, cluster: Cluster, served: Served) -> None:
    """They save what they read; queries of the same view go on reading from replicas."""
    device = known(GRAPHQL, note.owner, cluster)
    served.clear()
    GRAPHQL.rename(device, "second")
    assert served.only_primary()
    wait_until_known(cluster)
    served.clear()
    assert GRAPHQL.search(device) == ["second"]
    assert served.only_replicas("notes_note")


@pytest.mark.usefixtures("_api_site")
@pytest.mark.parametrize("path", ["/others/asearch/", "/agraphql/"])
def test_it_works_in_an_event_loop(path: str, note: Note, cluster: Cluster, served: Served) -> None:
    """Django Ninja's coroutines, and Strawberry's asynchronous view."""
    body = {"query": "{ search }"} if path == "/agraphql/" else {"text": ""}
    headers = by_jwt(note.owner).headers

    async def work() -> None:
        client = AsyncClient()
        await client.aforce_login(note.owner)
        for _ in range(2):  # the second time it is known whose session and credential these are
            await sync_to_async(wait_until_known)(cluster)
            served.clear()
            response = await client.post(path, body, content_type=JSON, headers=headers)
            assert "first" in response.text, response.text

    async_to_sync(work)()
    assert served.only_replicas("notes_note")


@pytest.mark.usefixtures("_api_site")
def test_pages_of_another_origin_may_read_and_send_the_header(
    settings: Any, note: Note, lagging: Cluster
) -> None:
    """With the documents' settings of django-cors-headers; and caches know of both."""
    first, *others = settings.MIDDLEWARE
    settings.MIDDLEWARE = [first, "corsheaders.middleware.CorsMiddleware", *others]
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "HEADER": HEADER}
    cors = load_example("http.md", "api/cors.py")
    for name in ("CORS_ALLOWED_ORIGINS", "CORS_ALLOW_HEADERS", "CORS_EXPOSE_HEADERS"):
        setattr(settings, name, getattr(cors, name))
    (origin,) = cors.CORS_ALLOWED_ORIGINS
    preflight = Client().options(
        "/ninja/search/",
        headers={"origin": origin, "access-control-request-method": "POST"},
    )
    assert HEADER.lower() in preflight.headers["Access-Control-Allow-Headers"]
    device = NINJA.device(note.owner)
    response = device.client.post(
        "/ninja/rename/",
        {"text": "second"},
        content_type=JSON,
        headers={**device.headers, "origin": origin},
    )
    assert response.headers["Access-Control-Expose-Headers"] == HEADER.lower()
    assert HEADER in response.headers
    varies = {name.strip().lower() for name in response.headers["Vary"].split(",")}
    assert {"origin", HEADER.lower()} <= varies
