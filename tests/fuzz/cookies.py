"""The package's own cookie: genuine, forged, of old, or signed for something else."""

from __future__ import annotations

import json
import time
from random import Random
from typing import Any

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, HttpResponse

from django_replica_router.scopes.cookies import _SALT, NAME, read_cookie, set_cookie
from django_replica_router.values.tokens import Record
from tests.fuzz.records import draw_record
from tests.fuzz.surface import Surface, Tally, require

LIFE = 600.0
ISSUED = 40


class _Backdated(signing.TimestampSigner):
    """Signs as of another moment."""

    moment = 0.0

    def timestamp(self) -> str:
        return signing.b62_encode(int(self.moment))


def signed(content: Any, *, key: str | None = None, salt: str = _SALT, age: float = 0.0) -> str:
    """Return a cookie's value as ``signing.dumps`` makes it, as of some time ago."""
    signer = _Backdated(key=key or settings.SECRET_KEY, salt=salt)
    signer.moment = time.time() - age
    return signer.sign_object(content)


def request_with(value: Any) -> HttpRequest:
    """Return a request that carries the cookie."""
    request = HttpRequest()
    request.COOKIES[NAME] = value
    return request


def issue(records: dict[str, Record]) -> str:
    """Return the cookie that the site itself hands out for records."""
    response = HttpResponse()
    set_cookie(HttpRequest(), response, records, LIFE)
    return str(response.cookies[NAME].value)


def check(value: Any, issued: dict[str, dict[str, Record]]) -> None:
    """Require that a cookie says what the site has put into it, or nothing."""
    found = read_cookie(request_with(value), LIFE)
    require(found == issued.get(value, {}), f"says {found}")


class Cookies(Surface):
    """Reading the cookie, and setting it anew on top of that."""

    name = "cookies"
    what = "the signed cookie"
    share = 0.18

    def __init__(self, random: Random, tally: Tally) -> None:
        super().__init__(random, tally)
        contents = [
            {
                alias: draw_record(self.draw)
                for alias in self.draw.random.sample(["default", "b"], n)
            }
            for n in (1, 2)
            for _ in range(ISSUED // 2)
        ]
        self.issued = {issue(content): content for content in contents}
        self.values = list(self.issued)

    def case(self) -> None:
        """Read one cookie."""
        kind, value = self._draw()
        self.tally.kinds[kind] += 1
        self.present = value
        check(value, self.issued)
        if self.draw.chance(0.02):
            self._renew(value)

    def _renew(self, value: str) -> None:
        """Require that a new cookie binds at least as much as the old one, where that was ours."""
        record, response = draw_record(self.draw), HttpResponse()
        set_cookie(request_with(value), response, {"default": record}, LIFE)
        found = read_cookie(request_with(response.cookies[NAME].value), LIFE)
        old = self.issued.get(value, {})
        expected = old["default"].merge(record) if "default" in old else record
        require(found == {**old, "default": expected}, f"is renewed as {found}")

    def _draw(self) -> tuple[str, str]:
        draw, random = self.draw, self.random
        genuine = random.choice(self.values)
        way = random.randrange(10)
        if way == 0:
            return "genuine", genuine
        if way <= 4:
            changed = draw.changed(genuine)
            return ("genuine" if changed == genuine else "changed"), changed
        content = {"default": draw_record(draw).encode()}
        if way == 5:
            return "unsigned", self._unsigned(content)
        if way == 6:
            return "other key", signed(content, key=random.randbytes(random.randrange(1, 40)).hex())
        if way == 7:
            salts = ("", "django.core.signing", "django.contrib.sessions.SessionStore")
            return "other salt", signed(content, salt=random.choice(salts))
        if way == 8:
            return "too old", signed(content, age=LIFE + random.choice((2, 3600, 10**8)))
        return "anything", draw.text(200)

    def _unsigned(self, content: dict[str, str]) -> str:
        genuine = self.random.choice(self.values)
        body = signing.b64_encode(json.dumps(content).encode()).decode()
        _, stamp, signature = genuine.rsplit(":", 2)
        return self.random.choice(
            (
                body,
                json.dumps(content),
                f"{body}:{stamp}",
                f"{body}:{stamp}:",
                f"{body}:{stamp}:{signature}",
                f".{body}:{stamp}:{signature}",
                f"{body}::{signature}",
            )
        )
