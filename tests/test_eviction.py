"""Of whom a cache that drops keys has no record, that one may have written a moment ago."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.http import HttpRequest
from django.test import Client

from django_replica_router import get_stats, pop_stats, scope
from django_replica_router.scopes.keys import EVERYBODY
from django_replica_router.stores.store import RedisStore, get_store
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import empty_store, forget_the_server, stand_still, wait_until, wait_until_known
from tests.helpers import Served
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

ROOM = 64 * 1024 * 1024
DAY = 24 * 60 * 60


def ask_anew() -> None:
    """Have the package ask the server anew how it is set."""
    store = get_store("default")
    assert isinstance(store, RedisStore)
    store._server._asked_at = float("-inf")


@pytest.fixture
def redis() -> Any:
    """Redis' own client of the cache server."""
    return caches["default"].client.get_client(write=True)  # type: ignore[attr-defined]


@pytest.fixture
def dropping(cluster: Cluster, redis: Any) -> Iterator[Cluster]:
    """The cluster with a cache that drops keys when its memory is full, and has room as yet."""
    names = ("maxmemory-policy", "maxmemory", "maxmemory-samples")
    before = {name: redis.config_get(name)[name] for name in names}
    redis.config_set("maxmemory-policy", "volatile-ttl")
    redis.config_set("maxmemory-samples", "64")
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + ROOM)
    ask_anew()
    yield cluster
    for name, value in before.items():
        redis.config_set(name, value)
    ask_anew()


def tokens(redis: Any) -> list[bytes]:
    """Return the keys of all tokens: not that of the record for everybody."""
    return [key for key in redis.scan_iter("*rr:default:*") if EVERYBODY.encode() not in key]


def drop_tokens(redis: Any) -> None:
    """Drop the keys of all tokens, as the server does when another application needs room."""
    found = tokens(redis)
    assert found
    redis.delete(*found)


def write(request: HttpRequest) -> None:
    """Write a note for who is signed in."""
    Note.objects.create(owner=User.objects.get(username="ann"), title="mine")


def read(request: HttpRequest) -> list[str]:
    """Say who is signed in, and return the titles of all notes."""
    assert request.user.is_authenticated
    return list(Note.objects.values_list("title", flat=True))


def who_has_written(user: User, cluster: Cluster) -> Client:
    """Return a browser of the user, who has just written what no replica has."""
    browser = sign_in(user)
    stand_still(cluster)
    visit(browser, write, "post")
    return browser


def test_a_write_is_seen_though_its_token_was_dropped(
    ann: User, dropping: Cluster, redis: Any
) -> None:
    """Neither the session nor its user is known any more; that the store was emptied is not so."""
    browser = who_has_written(ann, dropping)
    drop_tokens(redis)
    assert visit(browser, read) == ["mine"]


def test_a_write_is_seen_on_another_device_though_its_token_was_dropped(
    ann: User, dropping: Cluster, redis: Any
) -> None:
    """The device is known, and has written nothing: what it leads to is missing."""
    laptop, phone = sign_in(ann), sign_in(ann)
    visit(phone, read)
    stand_still(dropping)
    before = {key: redis.dump(key) for key in tokens(redis)}
    visit(laptop, write, "post")
    changed = [key for key in tokens(redis) if redis.dump(key) != before.get(key)]
    assert len(changed) == 2  # of the laptop's session, and of Ann
    redis.delete(*changed)
    assert visit(phone, read) == ["mine"]


def test_a_write_is_seen_though_the_server_needed_its_room(
    ann: User, dropping: Cluster, redis: Any
) -> None:
    """The server itself drops the key, while others stay."""
    browser = who_has_written(ann, dropping)
    mine = tokens(redis)
    # Those that live longest go last: the tokens, these, the record for everybody.
    for number in range(300):
        redis.set(f"of another application {number}", "x" * 1000, ex=20 * DAY)
    redis.config_set("maxmemory", redis.info("memory")["used_memory"])
    for number in range(5000):  # few will do, unless other clients have left room behind
        redis.set(f"for ever {number}", "x" * 1000)
        if not redis.exists(*mine):
            break
    assert not redis.exists(*mine)
    assert list(redis.scan_iter(f"*{EVERYBODY}*"))
    redis.config_set("maxmemory", redis.info("memory")["used_memory"] + ROOM)
    assert visit(browser, read) == ["mine"]


def test_a_write_of_a_session_without_a_user_is_seen_though_its_token_was_dropped(
    dropping: Cluster, redis: Any
) -> None:
    """A visitor who has not signed in, and has a session."""
    browser = Client()
    visit(browser, lambda request: request.session.update({"cart": "full"}), "post")
    stand_still(dropping)
    visit(browser, lambda request: str(Tag.objects.create(name="red")), "post")
    drop_tokens(redis)
    assert visit(browser, lambda request: [request.session["cart"], Tag.objects.count()]) == [
        "full",
        1,
    ]


def test_a_task_sees_what_its_user_wrote_though_the_token_was_dropped(
    ann: User, dropping: Cluster, redis: Any
) -> None:
    """It names a user, and has no session."""
    who_has_written(ann, dropping)
    drop_tokens(redis)
    with scope(user=ann):
        assert Note.objects.exists()


def test_who_has_become_known_is_asked_for_once(
    ann: User, dropping: Cluster, redis: Any, served: Served
) -> None:
    """Then there is a record again, and its readers are served by replicas that show no more."""
    browser = sign_in(ann)
    drop_tokens(redis)
    wait_until_known(dropping)
    pop_stats()
    visit(browser, read)
    assert get_stats()["readers_unknown"] >= 1
    stand_still(dropping)
    pop_stats()
    served.clear()
    for _ in range(3):
        visit(browser, read)
    assert "readers_unknown" not in get_stats()
    assert served.only_replicas("notes_note")


def test_who_is_known_has_a_record_for_as_long_as_a_session(
    ann: User, dropping: Cluster, redis: Any, settings: Any
) -> None:
    """One that merely ran out would be taken for one that was dropped."""
    visit(sign_in(ann), write, "post")
    assert len(tokens(redis)) == 2
    assert all(redis.ttl(key) > DAY / 2 for key in tokens(redis))


def test_a_record_that_is_made_anew_says_no_less_than_the_dropped_one(
    ann: User, dropping: Cluster, redis: Any
) -> None:
    """A request that reads nothing from a replica makes one, too."""
    browser = who_has_written(ann, dropping)
    drop_tokens(redis)
    visit(browser, lambda request: str(request.user), "post")
    assert tokens(redis)
    assert visit(browser, read) == ["mine"]


def test_whoever_is_nobody_in_particular_is_not_asked_for(
    dropping: Cluster, redis: Any, served: Served
) -> None:
    """There is no record to be missed."""
    pop_stats()
    stand_still(dropping)
    assert visit(Client(), lambda request: Note.objects.count()) == 0
    assert "readers_unknown" not in get_stats()
    assert served.only_replicas("notes_note")


def test_a_server_that_keeps_everything_is_believed(
    ann: User, cluster: Cluster, redis: Any, served: Served
) -> None:
    """Who has no record there has written nothing: it costs the primary no question."""
    ask_anew()
    browser = sign_in(ann)
    drop_tokens(redis)
    stand_still(cluster)
    pop_stats()
    served.clear()
    visit(browser, read)
    assert "readers_unknown" not in get_stats()
    assert served.only_replicas("notes_note")


def test_a_server_that_does_not_tell_is_not_believed(
    ann: User, cluster: Cluster, redis: Any
) -> None:
    """Some hosts forbid to ask."""
    redis.execute_command("ACL", "SETUSER", "default", "-info")
    try:
        forget_the_server()
        empty_store()
        browser = who_has_written(ann, cluster)
        drop_tokens(redis)
        assert visit(browser, read) == ["mine"]
    finally:
        redis.execute_command("ACL", "SETUSER", "default", "+info")
        forget_the_server()


def test_a_change_of_the_servers_policy_is_noticed(
    ann: User, cluster: Cluster, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked again, though not by every request."""
    store = get_store("default")
    ask_anew()
    assert not store.may_forget()
    redis.config_set("maxmemory-policy", "allkeys-lru")
    redis.config_set("maxmemory", "100mb")
    try:
        assert not store.may_forget()
        monkeypatch.setattr("django_replica_router.stores.redis._SETTING_SECONDS", 0.01)
        wait_until(store.may_forget, "the change to be noticed")
    finally:
        redis.config_set("maxmemory", "0")
        redis.config_set("maxmemory-policy", "noeviction")
        ask_anew()
