"""Whom a request is for: from what it carries, and from what Django has found out meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.utils.functional import LazyObject, empty
from django.utils.module_loading import import_string

from django_replica_router.conf import get_config, site_settings
from django_replica_router.errors import ConfigurationError, tell_import_failure
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.cookies import NAME as COOKIE
from django_replica_router.scopes.cookies import read_cookie
from django_replica_router.scopes.keys import digest, remembered_digest
from django_replica_router.scopes.scope import Frame, Identity, Shortcuts, current_frame, here
from django_replica_router.values.tokens import Record

_SESSION_USER = "_auth_user_id"  # django.contrib.auth.SESSION_KEY, without loading its models

# Nothing will ever be loaded there.
_NOT_UNLOADED: Mapping[str, Any] = {}
_NOT_LAZY: Mapping[str, Any] = {"_wrapped": empty}


def user_key(user: Any) -> str | None:
    """Return the key of a user object, or None for an anonymous one."""
    pk = getattr(user, "pk", None)
    return None if pk is None else remembered_digest("user", str(pk))


class UserWatch(Identity):
    """Finds out who is signed in from what others put on a request: again wherever there is news.

    It touches neither ``request.session`` nor ``request.user``. Touching the session sets its
    ``accessed`` flag, and so ``Vary: Cookie``; touching the user runs queries. What Django has loaded
    already lies in the objects' own dictionaries.

    Args:
        request: the request.
    """

    __slots__ = (
        "_found",
        "_known",
        "_lazy",
        "_session_object",
        "_size",
        "_unloaded",
        "_user",
        "request",
    )

    def __init__(self, request: HttpRequest) -> None:
        self.request = request
        self.settled = False
        self._known: dict[str, Any] = request.__dict__
        self._found: tuple[str, ...] = ()
        self._size = -1  # nobody has looked: what a look finds is not there before

    def has_news(self) -> bool:
        """Tell whether something was put on the request, or loaded, since the last look."""
        known = self._known
        return (
            len(known) != self._size
            or known.get("user") is not self._user
            or known.get("session") is not self._session_object
            or "_session_cache" in self._unloaded
            or self._lazy["_wrapped"] is not empty
        )

    def look_again(self) -> None:
        """Take into account that the user has changed, as after a login."""
        self.settled = False
        self._size = -1

    def _look(self) -> str | None:
        """Return the key of the user whom the request shows now, or None; remember what was looked at."""
        known = self._known
        size, user, session = len(known), known.get("user"), known.get("session")
        self._user: object = user
        self._session_object: object = session
        data: Any = getattr(session, "__dict__", None)
        is_unloaded = data is not None and "_session_cache" not in data
        lazy = _NOT_LAZY
        # What stands in "user" is lazy, or a real one: Django REST framework, or code that logs
        # somebody in, has put it there.
        if isinstance(user, LazyObject):
            inside = user.__dict__
            user = inside["_wrapped"]
            if user is empty:
                lazy, user = inside, None
        # The dictionaries of a session and of a lazy user that are not loaded yet.
        self._unloaded: Mapping[str, Any] = data if is_unloaded else _NOT_UNLOADED
        self._lazy: Mapping[str, Any] = lazy
        self._size = size  # last: another thread may ask for news, and goes by it first
        if user is None:
            user = known.get("_cached_user") or known.get("_acached_user")
        key = None if user is None else user_key(user)
        if key is None and "auth" in known:
            key = self._authenticated(known["auth"])
        if key is not None:
            self.settled = True
            return key
        has_data = data is not None and not is_unloaded and bool(data["_session_cache"])
        return self._session_user() if has_data else None

    def _authenticated(self, auth: Any) -> str | None:
        """Return the key of what Django Ninja's authenticator has returned, where that is a user."""
        if isinstance(auth, LazyObject):
            auth = auth.__dict__["_wrapped"]
        return user_key(auth) if hasattr(auth, "is_authenticated") else None

    def _session_user(self) -> str | None:
        data = self._session_data()
        value = data.get(_SESSION_USER) if isinstance(data, dict) else None
        return None if value is None else remembered_digest("user", str(value))

    def _session_data(self) -> Any:
        """Return what the request has loaded of its session, if it has."""
        return getattr(self._known.get("session"), "__dict__", {}).get("_session_cache")

    def has_session_data(self) -> bool:
        """Tell whether the request has loaded a session that is not empty."""
        return bool(self._session_data())


class RequestIdentity(UserWatch):
    """Whom a request is for: who is signed in, and what the request carries.

    Args:
        request: the request.
        asks_site: the setting ``IDENTITY`` may name further keys.
    """

    __slots__ = ("_cookie", "_credential", "_extra", "_session")

    def __init__(self, request: HttpRequest, *, asks_site: bool = True) -> None:
        UserWatch.__init__(self, request)  # super() takes as long as the rest of this
        self.shortcuts: Shortcuts | None = None
        self.clusters: Mapping[str, ClusterScope] | None = None
        # None until somebody asks, "" where the request carries none.
        self._session: str | None = None
        self._credential: str | None = None
        self._cookie: dict[str, Record] | None = None
        self._extra: tuple[str, ...] | None = None if asks_site else ()

    def session(self) -> str | None:
        """Return the key of the session cookie."""
        if self._session is None:
            cookie = self._session_cookie()
            self._session = digest("session", cookie) if cookie else ""
        return self._session or None

    def carries_nothing(self) -> bool:
        """Tell whether there is no cookie at all, and no ``Authorization`` header."""
        request = self.request
        return not request.COOKIES and "HTTP_AUTHORIZATION" not in request.META

    def _session_cookie(self) -> str | None:
        cookies = self.request.COOKIES
        return cookies.get(site_settings().SESSION_COOKIE_NAME) if cookies else None

    def credential(self) -> str | None:
        """Return the key of the ``Authorization`` header."""
        if self._credential is None:
            value = self.request.META.get("HTTP_AUTHORIZATION")
            self._credential = digest("credential", value) if value else ""
        return self._credential or None

    def carried(self, primary: str) -> Record | None:
        """Return what the signed cookie says of a cluster."""
        if self._cookie is None:
            has_one = COOKIE in self.request.COOKIES
            self._cookie = read_cookie(self.request, get_config().TOKEN_TTL) if has_one else {}
        return self._cookie.get(primary)

    def users(self) -> tuple[str, ...]:
        """Return the keys of the users found so far: a request that logs in may have two."""
        if not self.settled and (self._size < 0 or self.has_news()):
            key = self._look()
            if key is not None and key not in self._found:
                # Before others know of him: they may load his token, for what they decide themselves.
                clusters = self.clusters or {}
                before, is_covered = len(clusters), self._is_covered(key)
                self._found = (*self._found, key)
                if self.shortcuts and not (is_covered and len(clusters) == before):
                    self.shortcuts.clear()
        return self._found + (self._ask_site() if self._extra is None else self._extra)

    def _is_covered(self, key: str) -> bool:
        """Tell whether every floor holds the token of that user, since a session's record named him."""
        # A copy: another thread of the scope may add to them.
        return all(key in state.reader.records for state in list((self.clusters or {}).values()))

    def owner(self) -> str:
        """Return the key of the user who was found last, or nothing.

        Not what ``IDENTITY`` says: nobody has verified that, so it makes no session a real one.
        """
        self.users()
        return self._found[-1] if self._found else ""

    def _ask_site(self) -> tuple[str, ...]:
        path = get_config().IDENTITY
        # Asked once: not again by the reads of its own, nor after it has raised.
        self._extra = ()
        if path is not None:
            self._extra = _identify(path, self.request)
            shortcuts = self.shortcuts or {}
            if self._extra and shortcuts.keys() - {here.thread}:
                shortcuts.clear()  # of threads that have read meanwhile
        return self._extra

    def load_user(self) -> None:
        """Find the user behind the session by a query of the session, if nobody has looked yet.

        Used when a request has written without ever asking who is signed in. It reads through a
        session object of its own, so that the request's stays untouched.
        """
        session, cookie = self._known.get("session"), self._session_cookie()
        if self.users() or self.settled or session is None or not cookie:
            return
        value = type(session)(cookie).get(_SESSION_USER)
        if value is not None:
            self._found = (*self._found, remembered_digest("user", str(value)))

    def sent_session(self, response: HttpResponseBase) -> str | None:
        """Return the key of the session cookie that the response sets, where it is a new one."""
        cookies = getattr(response, "cookies", None)
        cookie = cookies.get(site_settings().SESSION_COOKIE_NAME) if cookies else None
        if cookie is None or not cookie.value:
            return None
        key = digest("session", cookie.value)
        return None if key == self.session() else key


def _identify(path: str, request: HttpRequest) -> tuple[str, ...]:
    """Return the keys of those whom the callable of ``IDENTITY`` names."""
    try:
        identify: Callable[[HttpRequest], Iterable[str]] = import_string(path)
    except ImportError as error:
        raise ConfigurationError(tell_import_failure("IDENTITY", path, error)) from error
    # Nobody knows yet whose reads these are: outside of any scope the primary answers them.
    token = current_frame.set(Frame())
    try:
        values = identify(request)
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            message = (
                f"REPLICA_ROUTER['IDENTITY'] ({path}) should return a list of texts, not "
                f"{type(values).__name__}. Return [] where the request names nobody."
            )
            raise ConfigurationError(message)
        return tuple(digest("custom", str(value)) for value in values)
    finally:
        current_frame.reset(token)


class NamedIdentity(Identity):
    """Somebody named by the code: ``scope(user=...)`` in a task or a command."""

    __slots__ = ("_found",)

    def __init__(self, users: Iterable[Any] = ()) -> None:
        self.settled = True
        self.shortcuts: Shortcuts | None = None
        self.clusters: Mapping[str, ClusterScope] | None = None
        keys = (
            user_key(user) if hasattr(user, "pk") else remembered_digest("user", str(user))
            for user in users
        )
        self._found = tuple(key for key in keys if key is not None)

    def users(self) -> tuple[str, ...]:
        """Return the keys of the users who were named."""
        return self._found

    def owner(self) -> str:
        """Return the key of the user who was named last."""
        return self._found[-1] if self._found else ""
