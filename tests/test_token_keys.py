"""Under which keys tokens are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client

from django_replica_router.scopes.cookies import NAME
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import Record
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import empty_store, stand_still, wait_until_known
from tests.site import visit
from tests.written import note, signed_in  # noqa: F401 - fixtures

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


@pytest.mark.parametrize("engine", ["signed_cookies", "cache"])
def test_a_token_follows_its_session_to_a_new_key(
    note: Note, cluster: Cluster, settings: Any, engine: str
) -> None:
    """Also where a request that asks no database changes the key, and nobody is signed in."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    stand_still(cluster)
    browser = Client()

    def write(request: HttpRequest) -> None:
        request.session["basket"] = [1]
        Note.objects.filter(pk=note.pk).update(title="second")

    def change_key(request: HttpRequest) -> None:
        request.session["basket"] = [1, 2]
        request.session.cycle_key()

    def read(request: HttpRequest) -> str:
        return Note.objects.get(pk=note.pk).title

    visit(browser, write, "post")
    key = browser.cookies["sessionid"].value
    assert visit(browser, read) == "second"
    visit(browser, change_key)
    assert browser.cookies["sessionid"].value != key
    assert visit(browser, read) == "second"


def test_a_browser_carries_a_pin_where_the_store_does_not_tell_what_its_session_stood_for(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old key's token is not known, and the new key has none."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    browser = Client()
    visit(browser, lambda request: request.session.update({"basket": [1]}))
    assert NAME not in browser.cookies

    def fail(*args: object) -> None:
        message = "away"
        raise ConnectionError(message)

    with monkeypatch.context() as patch:
        patch.setattr(type(get_store("default")), "_load", fail)
        patch.setattr(type(get_store("default")), "_load_with_owners", fail)
        visit(browser, lambda request: request.session.update({"basket": [1, 2]}))
    empty_store()
    wait_until_known(cluster)
    assert visit(browser, lambda request: Note.objects.get(pk=note.pk)._state.db) == "default"


def test_nothing_of_a_session_or_credential_is_readable_in_the_cache(
    signed_in: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Keys are keyed hashes: a reader of the cache learns no session key and no password."""
    visit(
        signed_in, lambda request: note.save(), "post", headers={"authorization": "Basic c2VjcmV0"}
    )
    assert cluster.cache is not None
    keys = b" ".join(cluster.cache.command("KEYS", "*"))
    assert b"rr:default:" in keys
    assert signed_in.cookies["sessionid"].value.encode() not in keys
    assert b"c2VjcmV0" not in keys


def test_a_session_and_its_user_take_at_most_200_bytes_of_the_cache(
    signed_in: Client, note: Note, cluster: Cluster, forget_tokens: Callable[[], None]
) -> None:
    """Of a server that keeps key and value together, as Valkey does from 9 on; others need more."""
    visit(signed_in, lambda request: note.save(), "post")
    assert cluster.cache is not None
    keys = [key for key in cluster.cache.command("KEYS", "*") if EVERYBODY.encode() not in key]
    assert len(keys) == 2
    version = str(cluster.cache.command("INFO", "server").get("valkey_version", "0"))
    sizes = []
    for key in keys:
        life = cluster.cache.command("PTTL", key)
        record = Record.decode(cluster.cache.command("GET", key))
        assert record is not None
        # What somebody else has written before the primary was asked counts as seen, and takes 16 more.
        value = record._replace(seen=record.position).encode()
        # Written once: what was longer before may keep its place.
        cluster.cache.command("DEL", key)
        cluster.cache.command("SET", key, value, "PX", str(life))
        sizes.append(cluster.cache.command("MEMORY", "USAGE", key))
    assert sum(sizes) <= (200 if int(version.partition(".")[0]) >= 9 else 240), sizes
