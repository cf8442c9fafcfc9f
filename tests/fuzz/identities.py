"""Cookies and headers through the real middleware: whom they bind, and what they leave behind."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from contextlib import ExitStack
from random import Random
from types import SimpleNamespace
from typing import Any

from django.conf import settings
from django.core.cache.backends.locmem import LocMemCache
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory

from django_replica_router import conf
from django_replica_router.conf import get_config
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.recording import finishing, floors, writes
from django_replica_router.recording.floors import expiry_ms, load_floor, wall_clock_ms
from django_replica_router.scopes.cookies import NAME
from django_replica_router.scopes.keys import digest, store_key
from django_replica_router.scopes.scope import current_scope
from django_replica_router.stores.store import LocMemStore
from django_replica_router.values.tokens import Floor, Position, Record
from tests.fuzz.cookies import signed
from tests.fuzz.surface import Surface, Tally, require

FAR_MS = (1 << 48) - 1
SHORTEST_SECRET = 12
"""A shorter one may occur by chance in what has nothing to do with it."""


def api_keys(request: HttpRequest) -> Iterable[str]:
    """Name whom a request is for: the setting ``IDENTITY`` of this run."""
    key = request.headers.get("X-Api-Key")
    return [key] if key else []


def as_header(text: str) -> str:
    """Return a text as a server hands over a header's value."""
    return text.encode("utf-8", "replace").decode("latin-1")


class _RoomyStore(LocMemStore):
    """Never full: to find no record in it says that there was none."""

    def may_forget(self) -> bool:
        return False


class Identities(Surface):
    """Requests with credentials of every kind, genuine and made up."""

    name = "identities"
    what = "session keys, Authorization, X-Api-Key, cookies"
    share = 0.065

    def __init__(self, random: Random, tally: Tally) -> None:
        super().__init__(random, tally)
        self._before: Any = settings.REPLICA_ROUTER
        self._get_store = floors.get_store
        self._cache = LocMemCache(f"fuzz {id(self)}", {"OPTIONS": {"MAX_ENTRIES": 1 << 30}})
        self._store = _RoomyStore(self._cache)
        self._middleware = ReplicaRouterMiddleware(self._view)
        self._factory = RequestFactory()
        self._floor: Floor | None = None
        self._user: Any = None
        # What a credential is, by kind; the position that it binds to tells them apart.
        self.secrets = {
            kind: random.randbytes(16).hex() for kind in ("session", "credential", "key")
        }
        self._positions = {
            kind: Position(1, place) for place, kind in enumerate(self.secrets, 1 << 20)
        }
        self._carried = Position(1, 1 << 24)
        self._seen: set[str] = set(self.secrets.values())

    def _open(self, stack: ExitStack) -> None:
        stack.callback(self._put_back)
        settings.REPLICA_ROUTER = {"IDENTITY": f"{__name__}.api_keys"}
        conf.parsed.config = None
        for module in (finishing, floors, writes):
            module.get_store = lambda alias: self._store  # type: ignore[attr-defined]
        self._fill()

    def _put_back(self) -> None:
        settings.REPLICA_ROUTER = self._before
        conf.parsed.config = None
        for module in (finishing, floors, writes):
            module.get_store = self._get_store  # type: ignore[attr-defined]
        self._cache.clear()

    def _fill(self) -> None:
        self._cache.clear()
        config = get_config()
        kinds = {"session": "session", "credential": "credential", "key": "custom"}
        records = {
            store_key("default", digest(kinds[kind], secret)): Record(
                self._positions[kind], expiry_ms(config)
            )
            for kind, secret in self.secrets.items()
        }
        self._store.merge(records, dict.fromkeys(records, 3600.0))

    def _view(self, request: HttpRequest) -> HttpResponse:
        scope = current_scope()
        require(scope is not None, "there is no scope")
        assert scope is not None
        if self._user is not None:
            request.user = self._user
        self._floor = load_floor("default", scope, get_config())
        return HttpResponse()

    def _secret(self) -> str:
        secret = self.random.randbytes(12).hex()
        self._seen.add(secret)
        return secret

    def _credential(self) -> str:
        """Return something that stands in a header: a secret, nearly one, or anything."""
        draw = self.draw
        own = self.random.choice(list(self.secrets.values()))
        way = self.random.randrange(6)
        if way <= 1:
            return own
        text = (draw.changed(own), self._secret(), draw.text(), own.upper())[way - 2]
        if len(text) >= SHORTEST_SECRET:
            self._seen.add(text)
        return text

    def case(self) -> None:
        """Send one request."""
        draw = self.draw
        headers: dict[str, Any] = {}
        cookies = {}
        if draw.chance(0.6):
            cookies[settings.SESSION_COOKIE_NAME] = self._credential()
        if draw.chance(0.4):
            headers["HTTP_AUTHORIZATION"] = self._credential()
        if draw.chance(0.3):
            headers["HTTP_X_API_KEY"] = self._credential()
        is_carried = draw.chance(0.1)
        if is_carried:
            cookies[NAME] = self._signed()
        elif draw.chance(0.3):
            record = Record(Position(1, 1 << 60), FAR_MS, FAR_MS)
            forged = signed({"default": record.encode()}, key="somebody else's")
            cookies[NAME] = self.random.choice((forged, record.encode(), draw.text()))
        if draw.chance(0.1):
            headers["HTTP_COOKIE"] = draw.text(100)
        # A server hands over bytes, each as one character. Cookies are decoded once more.
        headers = {name: as_header(text) for name, text in headers.items()}
        request = self._factory.generic(
            self.random.choice(("GET", "GET", "POST", "HEAD", draw.text(6) or "X")), "/", **headers
        )
        request.COOKIES.update(cookies)
        self._user = self._draw_user()
        self.present = (request.method, headers, cookies, self._user)
        self._floor = None
        response = self._middleware(request)
        require(isinstance(response, HttpResponse), f"is answered with {response!r}")
        self._compare(request, is_carried=is_carried)
        if self.tally.cases % 5000 == 0:
            self.end()

    def _signed(self) -> str:
        """Return a cookie of this site with times that no clock of it can have given."""
        record = Record(self._carried, FAR_MS, self.random.choice((0, 1)))
        return signed({"default": record.encode()})

    def _draw_user(self) -> Any:
        if self.draw.chance(0.8):
            return None
        pk = self.random.choice((None, 1, 10**30, "", self.draw.text(), self._secret()))
        return SimpleNamespace(pk=pk)

    def _compare(self, request: HttpRequest, *, is_carried: bool) -> None:
        carried = {
            "session": request.COOKIES.get(settings.SESSION_COOKIE_NAME),
            "credential": request.META.get("HTTP_AUTHORIZATION"),
            "key": request.META.get("HTTP_X_API_KEY"),
        }
        binding = [self._positions[k] for k, v in carried.items() if v == self.secrets[k]]
        if is_carried:
            binding.append(self._carried)
        expected = max(binding, default=Floor().position)
        self.tally.kinds["bound" if binding else "bound by nothing"] += 1
        require(self._floor is not None, "the view was not called")
        assert self._floor is not None
        require(self._floor.position == expected, f"binds to {self._floor}, not {expected}")
        require(not self._floor.pinned, "pins to the primary")
        latest = expiry_ms(get_config())
        require(self._floor.expires_ms <= latest, f"binds until {self._floor.expires_ms}")

    def end(self) -> None:
        """Look through all that is in the store, and begin with an empty one."""
        entries: dict[str, bytes] = self._cache._cache  # type: ignore[attr-defined]
        now = wall_clock_ms()
        for key, pickled in entries.items():
            value = pickle.loads(pickled)  # noqa: S301 - of the cache in this process's memory
            record = Record.decode(value)
            require(record is not None, f"{value!r} is stored")
            assert record is not None
            require(record.expires_ms <= now + 10**6, f"{value!r} is stored")
            require(not _occurring(self._seen, f"{key} {value}"), f"a secret is stored: {key}")
        self.tally.kinds["keys looked through"] += len(entries)
        self._seen = set(self.secrets.values())
        self._fill()


def _occurring(secrets: set[str], text: str) -> list[str]:
    return [secret for secret in secrets if secret in text]
