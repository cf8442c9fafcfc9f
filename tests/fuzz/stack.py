"""The whole stack: middleware, router, a real primary, a real replica and a real Valkey server."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
from django.core.cache import caches
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.test import RequestFactory
from django.urls import clear_url_caches, set_urlconf

from django_replica_router import conf
from django_replica_router.conf import get_config
from django_replica_router.recording.floors import expiry_ms
from django_replica_router.recording.writes import store_for_everybody
from django_replica_router.replicas.registry import get_monitor
from django_replica_router.scopes.cookies import NAME
from django_replica_router.scopes.keys import EVERYBODY, digest, store_key
from django_replica_router.stores.store import RedisStore, open_store
from django_replica_router.values.tokens import Position, Record
from testproject.cluster.processes import wait_for
from testproject.notes.models import Tag
from tests.fuzz.cookies import signed
from tests.fuzz.identities import FAR_MS, as_header
from tests.fuzz.site import content
from tests.fuzz.surface import BrokenError, Surface, Tally, require

BACKEND = "django.contrib.auth.backends.ModelBackend"


class Stack(Surface):
    """Requests to a page that reads, from nobody, from forgers and from users."""

    name = "stack"
    what = "requests to the whole stack, over garbage in the cache"
    share = 0.005
    needs = "cluster"

    def __init__(self, random: Random, tally: Tally) -> None:
        super().__init__(random, tally)
        self._before: dict[str, Any] = {
            name: getattr(settings, name) for name in ("REPLICA_ROUTER", "ROOT_URLCONF")
        }
        store = open_store(caches["default"], 10.0)
        if not isinstance(store, RedisStore):
            raise BrokenError("the cache of this run is no Redis and no Valkey")
        self._store, self._client = store, store._client
        self._factory = RequestFactory()
        self._seen: set[str] = set()

    def _open(self, stack: ExitStack) -> None:
        stack.callback(self._put_back)
        # A machine that is busy for a moment makes no server count as down.
        settings.REPLICA_ROUTER = {
            "IDENTITY": "tests.fuzz.identities.api_keys",
            "CONNECT_TIMEOUT": 10.0,
            "STORE_TIMEOUT": 10.0,
        }
        settings.ROOT_URLCONF = "tests.fuzz.site"
        conf.parsed.config = None
        set_urlconf(None)
        clear_url_caches()
        self._handler = WSGIHandler()
        self._client.flushdb()
        Tag.objects.get_or_create(name="fuzz")
        self._user = User.objects.get_or_create(username="fuzz")[0]
        self._session = self._sign_in()
        self._seen.add(self._session)
        store_for_everybody("default", get_config(), None)
        self._wait_for_replicas()

    def _put_back(self) -> None:
        for name, value in self._before.items():
            setattr(settings, name, value)
        conf.parsed.config = None
        set_urlconf(None)
        clear_url_caches()
        self._client.flushdb()
        store_for_everybody("default", get_config(), None)

    def _sign_in(self) -> str:
        session = SessionStore()
        session.update(
            {
                SESSION_KEY: str(self._user.pk),
                BACKEND_SESSION_KEY: BACKEND,
                HASH_SESSION_KEY: self._user.get_session_auth_hash(),
            }
        )
        session.save()
        return str(session.session_key)

    def _wait_for_replicas(self) -> None:
        config = get_config()
        record = self._store.load([store_key("default", EVERYBODY, self._store.life())])[0]
        position = Position(0, 0) if record is None else record.position

        def have_all() -> bool:
            known = get_monitor("default").health.replicas()
            return all(r.watermark >= position.lsn and r.age < config.MAX_LAG for r in known)

        if not wait_for(have_all, timeout=15.0):
            raise BrokenError("the replicas do not catch up")

    # 1. What comes in ------------------------------------------------------------------------

    def _made_up(self) -> str:
        """Return a credential that nobody has: such as are like real ones, or like nothing."""
        draw = self.draw
        text = self.random.choice(
            (self.random.randbytes(16).hex(), draw.changed(self._session), draw.text())
        )
        if len(text) >= 12 and text != self._session:
            self._seen.add(text)
        # Not what no server accepts, or Django's own session store cannot ask the database for.
        text = as_header(text.replace("\0", ""))
        return "" if text == self._session else text

    def _forged_cookie(self) -> str:
        record = Record(Position(99, 1 << 60), FAR_MS, FAR_MS).encode()
        return self.random.choice(
            (
                record,
                signed({"default": record}, key="somebody else's"),
                signed({"default": record}, salt="other"),
                signed({"default": record}, age=10**6),
                self.draw.text(),
            )
        )

    def _spoil(self, credentials: list[tuple[str, str]]) -> None:
        """Put garbage where the records of the request's credentials are looked up."""
        for kind, value in credentials:
            key = self._store._cache.make_key(store_key("default", digest(kind, value)))
            far = Record(Position(99, 1 << 60), FAR_MS, FAR_MS).encode()
            garbage = self.random.choice(
                (self.draw.changed(far).encode("utf-8", "surrogatepass"), self.draw.bytes(), b"[]")
            )
            if Record.decode(garbage) is not None:
                continue
            if self.draw.chance(0.1):
                self._client.delete(key)
                self._client.rpush(key, garbage)
                self._client.expire(key, 60)
            else:
                self._client.set(key, garbage, ex=60)
        self.tally.kinds["over garbage"] += 1

    def case(self) -> None:
        """Send one request."""
        draw = self.draw
        is_user = draw.chance(0.3)
        session = self._session if is_user else self._made_up()
        cookies, headers, credentials = {}, {}, []
        if is_user or draw.chance(0.5):
            cookies[settings.SESSION_COOKIE_NAME] = session
            credentials.append(("session", session))
        for name, kind in (("HTTP_AUTHORIZATION", "credential"), ("HTTP_X_API_KEY", "custom")):
            if draw.chance(0.2):
                headers[name] = self._made_up()
                credentials.append((kind, headers[name]))
        if draw.chance(0.4):
            cookies[NAME] = self._forged_cookie()
        credentials = [(kind, value) for kind, value in credentials if value]
        if draw.chance(0.3):
            self._spoil(credentials)
        self.present = (cookies, headers)
        self.tally.kinds["of a user" if is_user else "of nobody"] += 1
        # The row that tells whose an unknown credential is may be in any table.
        has_unknown = bool(headers.get("HTTP_AUTHORIZATION"))
        first = self._send(cookies, headers)
        self._compare(first, is_user=is_user, may_use_primary=has_unknown)
        if has_unknown:
            self._compare(self._send(cookies, headers), is_user=is_user, may_use_primary=False)

    def _send(self, cookies: dict[str, str], headers: dict[str, Any]) -> dict[str, Any]:
        request = self._factory.get("/look/", **headers)
        request.COOKIES.update(cookies)
        request_started.disconnect(close_old_connections)
        request_finished.disconnect(close_old_connections)
        try:
            response = self._handler.get_response(request)
            response.close()
        finally:
            request_started.connect(close_old_connections)
            request_finished.connect(close_old_connections)
        require(response.status_code == 200, f"is answered with {response.status_code}")
        return content(response)

    def _compare(self, told: dict[str, Any], *, is_user: bool, may_use_primary: bool) -> None:
        expected = self._user.pk if is_user else None
        require(told["user"] == expected, f"is taken for user {told['user']}")
        require(not told["pinned"], "is pinned to the primary")
        require(told["lsn"] < 1 << 60, f"binds to {told['lsn']}")
        if told["alias"] == "default" and not may_use_primary:
            raise BrokenError("is served by the primary")
        self.tally.kinds["by the primary" if told["alias"] == "default" else "by a replica"] += 1

    def end(self) -> None:
        """Look through every key and value of the server."""
        prefix = self._store._cache.make_key("rr:default:")
        latest = expiry_ms(get_config())
        seen = [secret.encode("utf-8", "surrogatepass") for secret in self._seen]
        for key in self._client.scan_iter(count=1000):
            self.tally.kinds["keys looked through"] += 1
            is_list = self._client.type(key) == b"list"
            value = b"" if is_list else (self._client.get(key) or b"")
            if not key.startswith(str(prefix).encode()):
                raise BrokenError(f"{key!r} is stored")
            if any(secret in key for secret in seen):
                raise BrokenError(f"a secret is the key {key!r}")
            record = Record.decode(value)
            if record is None:
                continue  # what was put there as garbage, and nobody has had a reason to replace
            is_bounded = record.expires_ms <= latest or key.endswith(
                store_key("default", EVERYBODY, self._store.life()).encode()
            )
            require(is_bounded, f"{value!r} is stored under {key!r}")
            if any(secret in value for secret in seen):
                raise BrokenError(f"a secret is in the value {value!r}")
