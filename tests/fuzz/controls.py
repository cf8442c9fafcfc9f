"""The package with a rule taken out: each control must be found by its surface."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from django.core import signing

from django_replica_router import conf
from django_replica_router.recording import floors
from django_replica_router.scopes import cookies, identity
from django_replica_router.sql import rows, standby, wal
from django_replica_router.stores import store as stores
from django_replica_router.values import tokens
from django_replica_router.values.tokens import Record


class Control(NamedTuple):
    """A change of the package.

    Args:
        surface: name of the surface that must find it.
        owner: what is changed.
        attribute: of that.
        make: from the attribute as it is, makes another.
    """

    surface: str
    owner: Any
    attribute: str
    make: Callable[[Any], Any]


def _unsigned(value: str, **options: Any) -> Any:
    body = value.rsplit(":", 2)[0].removeprefix(".")
    return json.loads(signing.b64_decode(body.encode()))


def _lenient(decode: Any) -> Any:
    def decode_kindly(cls: type[Record], value: object) -> Record | None:
        if isinstance(value, bytes):
            value = value.decode("utf-8", "ignore")
        found: Record | None = decode(value.strip() if isinstance(value, str) else value)
        return found

    return classmethod(decode_kindly)


def _healthy_null(original: Any) -> Any:
    def position(value: object) -> int:
        return (1 << 63) if value is None else original(value)

    return position


def _null_replay(original: Any) -> Any:
    def ask_replica(connection: Any) -> Any:
        answer = original(connection)
        return answer._replace(in_recovery=True)

    return ask_replica


def _plain_set(original: Any) -> Any:
    def merge(self: Any, records: Any, lives: Any) -> None:
        for key, record in records.items():
            life = max(1, round(lives[key] * 1000))
            self._client.set(self._cache.make_key(key), record.encode(), px=life)

    return merge


def _pickling(original: Any) -> Any:
    def load(self: Any, keys: Any) -> Any:
        values = self._client.mget([self._cache.make_key(key) for key in keys])
        return [None if value is None else _decoded(value) for value in values]

    return load


def _decoded(value: bytes) -> Record:
    record = Record.decode(value)
    if record is None:
        raise ValueError(value)
    return record


def _any_number(value: object) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


CONTROLS: dict[str, Control] = {
    "unsigned_cookie_accepted": Control(
        "cookies",
        cookies,
        "signing",
        lambda old: SimpleNamespace(loads=_unsigned, dumps=signing.dumps),
    ),
    "cookie_of_any_age_accepted": Control(
        "cookies", cookies, "timedelta", lambda old: lambda **kw: 1e12
    ),
    "decoding_is_lenient": Control("records", tokens.Record, "decode", _lenient),
    "cookie_is_not_clamped": Control("identities", floors, "clamped", lambda old: lambda r, ms: r),
    "keys_are_not_hashed": Control(
        "identities", identity, "digest", lambda old: lambda kind, value: f"{kind}:{value}"
    ),
    "kinds_of_keys_are_one": Control(
        "identities", identity, "digest", lambda old: lambda kind, value: old("", value)
    ),
    "made_up_keys_own_sessions": Control(
        "identities",
        identity.RequestIdentity,
        "owner",
        lambda old: lambda self: next(iter(self.users()[-1:]), ""),
    ),
    "null_is_far_ahead": Control("answers", wal, "read_lsn", _healthy_null),
    "everybody_is_in_recovery": Control("answers", standby, "ask_replica", _null_replay),
    "any_lsn_is_read": Control(
        "answers", rows, "parse_lsn", lambda old: lambda text: old(text.strip())
    ),
    "merge_by_plain_set": Control("merging", stores.RedisStore, "_merge", _plain_set),
    "any_number_is_seconds": Control(
        "configs",
        conf,
        "RULES",
        lambda old: {**old, "MAX_LAG": (_any_number, ""), "TOKEN_TTL": (_any_number, "")},
    ),
    "garbage_breaks_the_store": Control("stack", stores.RedisStore, "_load", _pickling),
    "unsigned_cookie_binds": Control(
        "stack",
        cookies,
        "signing",
        lambda old: SimpleNamespace(
            loads=lambda value, **kw: {"default": value} if value[:1] == "2" else _unsigned(value),
            dumps=signing.dumps,
        ),
    ),
}


@contextmanager
def sabotaged(name: str) -> Iterator[None]:
    """Change the package for the length of the block."""
    control = CONTROLS[name]
    # Not getattr: of a class method the object behind it must be put back.
    before = control.owner.__dict__[control.attribute]
    made = control.make(getattr(control.owner, control.attribute))
    setattr(control.owner, control.attribute, made)
    try:
        yield
    finally:
        setattr(control.owner, control.attribute, before)
