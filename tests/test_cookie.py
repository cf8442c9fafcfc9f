"""The signed cookie: set after writes, merged, and worth nothing where it is not ours."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core import signing
from django.http import HttpRequest
from django.test import Client, RequestFactory, override_settings

from django_replica_router.recording import finishing
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.replicas.waiting import Waiting
from django_replica_router.scopes.cookies import NAME, read_cookie
from django_replica_router.values.tokens import Position, Record
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import PATIENT, TIMEOUT, stand_still, wait_until_known
from tests.site import sign_in, visit

SALT = "django_replica_router.cookie"


@pytest.fixture
def with_cookie(settings: Any, test_site: None) -> None:
    """The site with the cookie switched on."""
    settings.REPLICA_ROUTER = {**PATIENT, "COOKIE": True}


def names(request: HttpRequest) -> list[str]:
    """Return the names of all tags."""
    return list(Tag.objects.values_list("name", flat=True))


def write(request: HttpRequest) -> None:
    """Add a tag."""
    Tag.objects.create(name="red")


@pytest.mark.usefixtures("with_cookie")
def test_an_anonymous_visitor_sees_the_own_write(lagging: Cluster) -> None:
    """Without session and user, the browser itself carries the token."""
    client = Client()
    visit(client, write, "post")
    assert visit(client, names) == ["red"]
    assert visit(Client(), names) == []


@pytest.mark.usefixtures("with_cookie")
def test_the_cookie_is_as_safe_as_the_sessions(cluster: Cluster, settings: Any) -> None:
    """Out of reach of scripts, and sent where the session's is; not for shared caches."""
    settings.SESSION_COOKIE_SECURE = True
    settings.SESSION_COOKIE_SAMESITE = "Strict"
    response = visit(Client(), write, "post")
    cookie = response.cookies[NAME]
    assert cookie["httponly"]
    assert cookie["secure"]
    assert cookie["samesite"] == "Strict"
    assert cookie["max-age"] == 60
    assert "Cookie" in response["Vary"]
    assert "private" in response["Cache-Control"]


@pytest.mark.usefixtures("with_cookie")
def test_a_response_that_wrote_nothing_sets_no_cookie(cluster: Cluster) -> None:
    """Cacheable responses stay cacheable."""
    for method in ("get", "post"):
        response = visit(Client(), lambda request: None, method)
        assert NAME not in response.cookies
        assert "private" not in response.headers.get("Cache-Control", "")


@pytest.mark.usefixtures("test_site")
def test_the_cookie_is_off_by_default(cluster: Cluster) -> None:
    """The token store suffices for who is signed in."""
    assert NAME not in visit(Client(), write, "post").cookies


@pytest.mark.usefixtures("with_cookie")
def test_a_token_in_a_cookie_never_falls(cluster: Cluster) -> None:
    """A response with a low token does not undo what the browser knows."""
    client = Client()
    high = Record(Position(1, 1 << 60), 1 << 42)
    client.cookies[NAME] = signing.dumps({"default": high.encode()}, salt=SALT)
    visit(client, write, "post")
    request = RequestFactory().get("/")
    request.COOKIES[NAME] = client.cookies[NAME].value
    assert read_cookie(request, 60.0)["default"].position == high.position


FORGERIES = {
    "nonsense": "ffffffff/ffffffff",
    "empty": "",
    "other key": signing.dumps(
        {"default": Record(Position(1, 1 << 60), 1 << 42).encode()}, key="k" * 50, salt=SALT
    ),
    "other salt": "sessions",
    "no dict": "list",
    "no record": "record",
}


@pytest.mark.usefixtures("with_cookie")
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_cookie_binds_nobody(cluster: Cluster, forgery: str) -> None:
    """Neither an error nor a pin to the primary."""
    high = {"default": Record(Position(1, 1 << 60), 1 << 42).encode()}
    value = {
        "other salt": signing.dumps(high, salt="django.contrib.sessions"),
        "no dict": signing.dumps([1], salt=SALT),
        "no record": signing.dumps({"default": {"a": 1}, "b": None}, salt=SALT),
    }.get(forgery, FORGERIES[forgery])
    client = Client()
    client.cookies[NAME] = value
    assert visit(client, lambda request: Note.objects.all().db).startswith("replica")


@pytest.mark.usefixtures("with_cookie")
def test_an_old_cookie_binds_nobody(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signed by this site, but longer ago than a token lives."""
    monkeypatch.setattr(signing.time, "time", lambda: 1_000_000.0)
    value = signing.dumps({"default": Record(Position(1, 1 << 60), 1 << 42).encode()}, salt=SALT)
    monkeypatch.undo()
    client = Client()
    client.cookies[NAME] = value
    assert visit(client, lambda request: Note.objects.all().db).startswith("replica")


@pytest.mark.usefixtures("test_site")
def test_where_the_store_refuses_a_token_the_cookie_carries_it(ann: User, cluster: Cluster) -> None:
    """A store that can be read and not written would otherwise answer as before the write."""
    client = sign_in(ann)
    stand_still(cluster)
    assert cluster.cache is not None
    cluster.cache.command("CONFIG", "SET", "maxmemory", "1")
    try:
        response = visit(client, write, "post")
        assert NAME in response.cookies
        assert visit(client, names) == ["red"]
    finally:
        cluster.cache.command("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.usefixtures("test_site")
def test_where_the_store_refuses_a_token_the_response_waits_for_the_replicas(
    ann: User, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device, which carries no such cookie, finds the write on every replica."""
    monkeypatch.setattr(finishing, "_HOLD", TIMEOUT)  # however long a busy machine takes to replay
    laptop, phone = sign_in(ann), sign_in(ann)
    wait_until_known(cluster)
    visit(phone, names)
    visit(phone, names)
    assert cluster.cache is not None
    cluster.cache.command("CONFIG", "SET", "maxmemory", "1")
    try:
        for number in range(10):
            visit(
                laptop, lambda request, n=number: Tag.objects.create(name=str(n)) and None, "post"
            )
            assert str(number) in visit(phone, names)
    finally:
        cluster.cache.command("CONFIG", "SET", "maxmemory", "0")


@pytest.mark.usefixtures("test_site")
def test_a_process_that_has_only_written_waits_for_the_replicas_as_well(
    ann: User, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has looked at none of them yet, from which other processes read."""
    client = sign_in(ann)
    stand_still(cluster)
    stop_monitors()
    waits: list[bool] = []
    wait_for_all = Waiting.wait_for_all

    def note(waiting: Waiting, lsn: int, timeout: float, max_lag: float) -> bool:
        waits.append(wait_for_all(waiting, lsn, 0.2, max_lag))
        return waits[-1]

    monkeypatch.setattr(Waiting, "wait_for_all", note)
    assert cluster.cache is not None
    cluster.cache.command("CONFIG", "SET", "maxmemory", "1")
    try:
        visit(client, write, "post")
    finally:
        cluster.cache.command("CONFIG", "SET", "maxmemory", "0")
    assert waits == [False]


@override_settings(SECRET_KEY="another")
def test_the_cookie_is_bound_to_the_secret_key() -> None:
    """Signed under one key, read under another: none."""
    with override_settings(SECRET_KEY="one"):
        value = signing.dumps({"default": Record(Position(1, 1)).encode()}, salt=SALT)
    request = RequestFactory().get("/")
    request.COOKIES[NAME] = value
    assert read_cookie(request, 60.0) == {}
