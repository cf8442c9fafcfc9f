"""Whom a request is for: found out without touching it, and told to nobody."""

from __future__ import annotations

import hashlib
import re
import uuid
from base64 import urlsafe_b64decode
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.backends.cache import SessionStore
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from django.utils.functional import LazyObject, SimpleLazyObject
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.request import Request

from django_replica_router.conf import Config
from django_replica_router.errors import ConfigurationError
from django_replica_router.recording import floors
from django_replica_router.scopes.identity import (
    NamedIdentity,
    RequestIdentity,
    digest,
    user_key,
)
from django_replica_router.scopes.scope import Scope
from django_replica_router.values.tokens import NO_FLOOR, NOWHERE

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
COOKIE = "0123456789abcdefghijklmnopqrstuv"
TOKEN = "Bearer secret-token"
ANN = digest("user", "1")
BOB = digest("user", "2")


class ForcedError(Exception):
    """Raised where something that must not be touched is."""


def force() -> Any:
    """Fail, where a lazy object is evaluated that must not be."""
    raise ForcedError


@pytest.fixture(autouse=True)
def _sessions_in_memory(settings: Any) -> None:
    """Keep sessions in a cache of this test, so that no database is needed."""
    settings.CACHES = {"default": {"BACKEND": LOCMEM, "LOCATION": uuid.uuid4().hex}}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"


def make_request(*, cookie: str | None = None, **headers: str) -> HttpRequest:
    """Return a request with that session cookie and those headers."""
    request = RequestFactory().get("/", headers=headers or None)
    if cookie is not None:
        request.COOKIES[django_settings.SESSION_COOKIE_NAME] = cookie
    return request


def user(pk: object) -> Any:
    """Return a user object."""
    return User(pk=pk)


# Digests


@given(st.sampled_from(["session", "credential", "user"]), st.text(min_size=4))
def test_digest_does_not_tell_the_value(kind: str, value: str) -> None:
    """A key has 16 digits of 6 bits, in which neither the value nor a plain hash of it occurs."""
    key = digest(kind, value)
    assert re.fullmatch(r"[-0-9A-Z_a-z]{16}", key)
    assert value not in key
    hashed = urlsafe_b64decode(key)
    raw = value.encode("utf-8", "surrogatepass")
    for data in (raw, f"{kind}:".encode() + raw):
        for algorithm in ("md5", "sha1", "sha256", "blake2b"):
            assert hashed not in hashlib.new(algorithm, data).digest()
        assert hashed != hashlib.blake2b(data, digest_size=12).digest()


@given(st.text(), st.text())
def test_digest_tells_values_apart(first: str, second: str) -> None:
    """Equal values have one key, others have others, and so have other kinds."""
    assert (digest("user", first) == digest("user", second)) == (first == second)
    assert digest("user", first) != digest("session", first)


def test_digest_depends_on_the_secret_key() -> None:
    """Nobody without SECRET_KEY can name a key, and a new SECRET_KEY gives new keys."""
    before = digest("session", COOKIE)
    with override_settings(SECRET_KEY="another"):
        other = digest("session", COOKIE)
        assert other != before
        with override_settings(SECRET_KEY=b"another"):
            assert digest("session", COOKIE) == other
    assert digest("session", COOKIE) == before


def test_digest_takes_what_no_encoding_has() -> None:
    """A cookie with lone surrogates, as a server may hand over, has a key as well."""
    assert digest("session", "\udce9") != digest("session", "\udcea")


def test_long_secret_key_is_all_used() -> None:
    """Two secret keys that differ only far behind give different keys."""
    keys = set()
    for end in "ab":
        with override_settings(SECRET_KEY="x" * 200 + end):
            keys.add(digest("user", "1"))
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("someone", "key"),
    [
        (user(1), ANN),
        (user("1"), ANN),
        (SimpleNamespace(pk=1), ANN),
        (user(0), digest("user", "0")),
        (user(None), None),
        (AnonymousUser(), None),
        (None, None),
        (object(), None),
        (SimpleNamespace(pk=uuid.UUID(int=7)), digest("user", str(uuid.UUID(int=7)))),
    ],
    ids=range(9),
)
def test_key_of_a_user_is_that_of_the_primary_key(someone: Any, key: str | None) -> None:
    """A user is known by the primary key as the session keeps it; an anonymous one is nobody."""
    assert user_key(someone) == key


# What a request carries


@pytest.mark.parametrize("cookie", [None, "", COOKIE])
@pytest.mark.parametrize("header", [None, "", TOKEN])
def test_request_carries_cookie_and_credential(cookie: str | None, header: str | None) -> None:
    """The session cookie and the Authorization header are keys, each where it is there."""
    request = make_request(cookie=cookie, **({} if header is None else {"Authorization": header}))
    identity = RequestIdentity(request)
    for _ in range(2):  # the second answer comes from memory
        assert identity.session() == (digest("session", cookie) if cookie else None)
        assert identity.credential() == (digest("credential", header) if header else None)


def test_session_cookie_has_the_name_of_the_setting() -> None:
    """A site that names its cookie differently is served as well."""
    request = make_request()
    request.COOKIES = {"sid": COOKIE, "sessionid": "other"}
    with override_settings(SESSION_COOKIE_NAME="sid"):
        assert RequestIdentity(request).session() == digest("session", COOKIE)


def test_nothing_is_found_of_a_bare_request() -> None:
    """A request without anything is nobody's, and says nothing of the future."""
    identity = RequestIdentity(make_request())
    assert identity.users() == ()
    assert not identity.settled
    assert not identity.has_session_data()


# The user


def run_middleware(request: HttpRequest) -> Any:
    """Let Django's own middleware put session and user on the request, both not yet loaded."""
    SessionMiddleware(lambda request: HttpResponse()).process_request(request)
    AuthenticationMiddleware(lambda request: HttpResponse()).process_request(request)
    return request


def test_lazy_user_and_session_are_not_touched() -> None:
    """Asking for the user forces neither the lazy user nor the session, and loads nothing."""
    request = run_middleware(make_request(cookie=COOKIE))
    request.user = SimpleLazyObject(force)
    identity = RequestIdentity(request)
    for _ in range(2):
        assert identity.users() == ()
        assert identity.session() is not None
        assert not identity.has_session_data()
        identity.look_again()
    assert request.session.accessed is False
    assert "_session_cache" not in vars(request.session)
    assert "_cached_user" not in vars(request)
    with pytest.raises(ForcedError):
        bool(request.user)


class LazyUser(LazyObject):
    """A site's own lazy user."""

    def _setup(self) -> None:
        force()


class LazySubclass(SimpleLazyObject):
    """A site's own kind of Django's lazy object."""


@pytest.mark.parametrize("make", [LazyUser, lambda: LazySubclass(force)], ids=["own", "subclass"])
def test_lazy_user_of_another_kind_is_not_touched_either(make: Any) -> None:
    """Whatever lazy object a site puts there, looking does not evaluate it."""
    request: Any = make_request()
    request.user = make()
    assert RequestIdentity(request).users() == ()


def test_user_is_found_once_django_has_loaded_it() -> None:
    """When the view has used request.user, its user is known, and the identity is settled."""
    request = run_middleware(make_request())
    identity = RequestIdentity(request)
    assert identity.users() == ()
    request._cached_user = user(1)
    assert identity.users() == (ANN,)
    assert identity.settled


def test_user_is_found_once_an_async_view_has_loaded_it() -> None:
    """What await request.auser() has loaded is found as well."""
    request = run_middleware(make_request())
    request._acached_user = user(1)
    assert RequestIdentity(request).users() == (ANN,)


def test_lazy_user_of_the_site_is_found_once_it_is_loaded() -> None:
    """A lazy user that authentication by token has put there counts as soon as it is evaluated."""
    request = run_middleware(make_request())
    request.user = SimpleLazyObject(lambda: user(1))
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert request.user.pk == 1
    assert identity.users() == (ANN,)


def test_user_of_rest_framework_is_found() -> None:
    """REST framework puts the user whom a token stands for on Django's request."""
    request = run_middleware(make_request(Authorization=TOKEN))
    request.user = SimpleLazyObject(force)
    identity = RequestIdentity(request)
    assert identity.users() == ()
    Request(request).user = user(1)
    assert identity.users() == (ANN,)
    assert identity.settled


def test_user_of_django_ninja_is_found() -> None:
    """Ninja puts what an authenticator returns on the request; only a user of it is one."""
    request = run_middleware(make_request(Authorization=TOKEN))
    request.user = SimpleLazyObject(force)
    identity = RequestIdentity(request)
    assert identity.users() == ()
    request.auth = user(1)
    assert identity.users() == (ANN,)
    for other in ("text", None, AnonymousUser(), SimpleNamespace(pk=1), SimpleLazyObject(force)):
        request = make_request(Authorization=TOKEN)
        request.auth = other
        assert RequestIdentity(request).users() == ()


@pytest.mark.parametrize(
    "anonymous", [AnonymousUser(), None, object()], ids=["anonymous", "None", "object"]
)
def test_anonymous_user_is_nobody(anonymous: Any) -> None:
    """A user without a primary key is none, and a later login is still looked for."""
    request = run_middleware(make_request())
    request.user = anonymous
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert not identity.settled
    request.user = user(1)
    assert identity.users() == (ANN,)


def stored_session(**data: Any) -> str:
    """Return the key of a session with that content."""
    session = SessionStore()
    session.update(data)
    session.save()
    return str(session.session_key)


def test_user_is_found_in_a_session_that_is_loaded() -> None:
    """A view that has looked into its session has shown whose it is, without any user object."""
    request = run_middleware(make_request(cookie=stored_session(_auth_user_id="1")))
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert not identity.has_session_data()
    request.session.get("basket")
    assert identity.users() == (ANN,)
    assert identity.has_session_data()
    assert not identity.settled


def test_session_of_nobody_has_data_and_no_user() -> None:
    """An anonymous session that holds something is a session, of no user."""
    request = run_middleware(make_request(cookie=stored_session(basket=[1])))
    request.session.get("basket")
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert identity.has_session_data()


def test_unknown_session_has_no_data() -> None:
    """A cookie that stands for no session leaves an empty one."""
    request = run_middleware(make_request(cookie=COOKIE))
    request.session.get("basket")
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert not identity.has_session_data()


@pytest.mark.parametrize(
    "session", [{"_auth_user_id": "1"}, None, object(), 5], ids=["dict", "None", "object", "int"]
)
def test_session_of_another_make_is_left_alone(session: Any) -> None:
    """What a site puts in the place of the session does no harm."""
    request: Any = make_request()
    request.session = session
    identity = RequestIdentity(request)
    assert identity.users() == ()
    assert not identity.has_session_data()


def test_user_object_and_session_agree() -> None:
    """The same user is found once, whichever way first."""
    request = run_middleware(make_request(cookie=stored_session(_auth_user_id="1")))
    identity = RequestIdentity(request)
    request.session.get("basket")
    assert identity.users() == (ANN,)
    request._cached_user = user(1)
    assert identity.users() == (ANN,)


def test_login_adds_the_new_user() -> None:
    """A request in which somebody else logs in is of both: what it wrote, either must see."""
    request = run_middleware(make_request())
    request._cached_user = user(1)
    identity = RequestIdentity(request)
    assert identity.users() == (ANN,)
    request.user = user(2)
    assert identity.users() == (ANN,)  # settled: nobody has said that it changed
    identity.look_again()
    assert identity.users() == (ANN, BOB)


def test_logout_keeps_the_user() -> None:
    """After a logout the request is still of the user whose session it has ended."""
    request = run_middleware(make_request())
    request._cached_user = user(1)
    identity = RequestIdentity(request)
    assert identity.users() == (ANN,)
    request.user = AnonymousUser()
    identity.look_again()
    assert identity.users() == (ANN,)


# A user whom nobody has asked for


def test_user_is_looked_up_behind_the_session_without_touching_it() -> None:
    """Loading the user reads the session through an object of its own."""
    request = run_middleware(make_request(cookie=stored_session(_auth_user_id="1")))
    identity = RequestIdentity(request)
    identity.load_user()
    assert identity.users() == (ANN,)
    assert request.session.accessed is False
    assert "_session_cache" not in vars(request.session)


@pytest.mark.parametrize("cookie", [None, "", COOKIE])
def test_no_user_is_found_where_there_is_none(cookie: str | None) -> None:
    """Without a cookie, or with one that stands for nothing, loading finds nobody."""
    identity = RequestIdentity(run_middleware(make_request(cookie=cookie)))
    identity.load_user()
    assert identity.users() == ()


def test_user_is_not_looked_up_where_it_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user is known, or there is no session at all, the session is not read."""
    monkeypatch.setattr(SessionStore, "load", lambda self: force())
    request = run_middleware(make_request(cookie=COOKIE))
    request._cached_user = user(1)
    RequestIdentity(request).load_user()
    RequestIdentity(make_request(cookie=COOKIE)).load_user()
    with pytest.raises(ForcedError):
        RequestIdentity(run_middleware(make_request(cookie=COOKIE))).load_user()


# A site's own keys


def by_tenant(request: HttpRequest) -> list[Any]:
    """Return the tenant whom the request names, twice, and count the calls."""
    request.META["calls"] = request.META.get("calls", 0) + 1
    return [request.headers.get("Tenant"), 7]


def test_site_names_further_keys() -> None:
    """IDENTITY adds keys of the site's own, asked for once, behind those of the user."""
    request = run_middleware(make_request(Tenant="acme"))
    tenant = (digest("custom", "acme"), digest("custom", "7"))
    with override_settings(REPLICA_ROUTER={"IDENTITY": f"{__name__}.by_tenant"}):
        identity = RequestIdentity(request)
        assert identity.users() == tenant
        request._cached_user = user(1)
        assert identity.users() == (ANN, *tenant)
        assert identity.users() == (ANN, *tenant)
    assert request.META["calls"] == 1


def test_what_the_site_names_owns_no_session() -> None:
    """A session and a credential belong to the user who was found, and never to an unverified key."""
    request = run_middleware(make_request(Tenant="acme"))
    with override_settings(REPLICA_ROUTER={"IDENTITY": f"{__name__}.by_tenant"}):
        identity = RequestIdentity(request)
        assert identity.owner() == ""
        request._cached_user = user(1)
        assert identity.owner() == ANN


def by_none(request: HttpRequest) -> None:
    """Return nothing, as a callable that has forgotten to."""


def by_text(request: HttpRequest) -> str:
    """Return one text in the place of a list of them."""
    return "acme"


@pytest.mark.parametrize(("name", "kind"), [("by_none", "NoneType"), ("by_text", "str")])
def test_wrong_answer_of_the_site_is_told(name: str, kind: str) -> None:
    """Each letter of a text would be a key that many readers share; and None is no list."""
    with override_settings(REPLICA_ROUTER={"IDENTITY": f"{__name__}.{name}"}):
        identity = RequestIdentity(run_middleware(make_request()))
        message = (
            f"REPLICA_ROUTER['IDENTITY'] ({__name__}.{name}) should return a list of texts, not "
            f"{kind}. Return [] where the request names nobody."
        )
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
            identity.users()
        assert identity.users() == ()


def test_wrong_path_of_the_site_is_told() -> None:
    """Where nobody has run the checks, the error names the setting as they do."""
    with override_settings(REPLICA_ROUTER={"IDENTITY": "nowhere.identify"}):
        identity = RequestIdentity(run_middleware(make_request()))
        message = "REPLICA_ROUTER['IDENTITY'] names 'nowhere.identify', which cannot be imported"
        with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}"):
            identity.users()


# What the response hands out


@pytest.mark.parametrize(
    ("carried", "sent", "expected"),
    [
        (None, None, None),
        (None, COOKIE, digest("session", COOKIE)),
        ("other", COOKIE, digest("session", COOKIE)),
        (COOKIE, COOKIE, None),
        (COOKIE, None, None),
        (COOKIE, "", None),
    ],
)
def test_new_session_cookie_of_the_response_is_seen(
    carried: str | None, sent: str | None, expected: str | None
) -> None:
    """A session key that the response hands out is seen where it is new; a deleted one is not."""
    response = HttpResponse()
    if sent is not None:
        response.set_cookie(django_settings.SESSION_COOKIE_NAME, sent)
    assert RequestIdentity(make_request(cookie=carried)).sent_session(response) == expected


def test_deleted_session_cookie_is_no_new_one() -> None:
    """After a logout the response deletes the cookie, and hands out nothing."""
    response = HttpResponse()
    response.delete_cookie(django_settings.SESSION_COOKIE_NAME)
    response.set_cookie("other", COOKIE)
    assert RequestIdentity(make_request(cookie=COOKIE)).sent_session(response) is None


def test_response_without_cookies_hands_out_nothing() -> None:
    """A response object that is not Django's does no harm."""
    response: Any = object()
    assert RequestIdentity(make_request()).sent_session(response) is None


# Somebody named


@pytest.mark.parametrize(
    ("named", "keys"),
    [
        ([], ()),
        ([1], (ANN,)),
        (["1"], (ANN,)),
        ([user(1), user(2)], (ANN, BOB)),
        ([user(1), 2, AnonymousUser(), user(None)], (ANN, BOB)),
        ([SimpleLazyObject(lambda: user(1))], (ANN,)),
        ([uuid.UUID(int=7)], (digest("user", str(uuid.UUID(int=7))),)),
    ],
    ids=range(7),
)
def test_named_users_are_the_users(named: list[Any], keys: tuple[str, ...]) -> None:
    """Whom the code names is known at once, by object or primary key, and stays so."""
    identity = NamedIdentity(named)
    identity.look_again()
    identity.load_user()
    assert identity.users() == keys
    assert identity.settled
    assert identity.session() is None
    assert identity.credential() is None
    assert not identity.has_session_data()


# Several threads of one scope


class Meddling:
    """A record during whose look another thread adds one: what it is asked for, it adds first."""

    def __init__(self, records: dict[str, Any]) -> None:
        self._records = records

    def __getattr__(self, name: str) -> int:
        self._records[f"added with {name}"] = None
        return 0


def test_another_thread_may_add_a_record_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a scope knows of its reader is shared by the threads that work for it."""
    monkeypatch.setattr(floors, "_take_last_everybody", lambda *args: NO_FLOOR)
    scope = Scope(NamedIdentity())
    state = scope.cluster("default")
    state.reader.records["b"] = None
    state.reader.records["a"] = Meddling(state.reader.records)  # type: ignore[assignment]
    assert floors.load_floor("default", scope, Config()).position == NOWHERE
    assert floors.known_owners(state) == ()
    assert len(state.reader.records) > 2


def test_another_thread_may_add_a_cluster_meanwhile() -> None:
    """Whoever finds the user looks at all of them."""
    identity = RequestIdentity(make_request())
    scope = Scope(identity)

    class Records(dict[str, Any]):
        def __contains__(self, key: object) -> bool:
            scope.cluster("other").reader.records["1"] = None
            return True

    scope.cluster("default").reader.records = Records()
    assert identity._is_covered("1")
    assert "other" in scope.clusters
