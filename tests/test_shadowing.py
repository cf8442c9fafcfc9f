"""SHADOW and ROLLOUT: what going live would bring is counted before anybody is sent to a replica."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connections, router
from django.http import HttpRequest
from django.test import AsyncClient, Client
from django.test.utils import override_settings

from django_replica_router import (
    current_token,
    get_stats,
    pop_stats,
    scope,
    use_primary,
    use_replica,
)
from django_replica_router.contrib.background import Run
from django_replica_router.errors import StoreError, TooStale
from django_replica_router.recording import finishing
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import shadowing
from django_replica_router.scopes.scope import current_scope
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import stand_still, wait_until, wait_until_known
from tests.reading import browser, note
from tests.site import avisit, visit

__all__ = ["browser", "note"]

TTL = 2.0

pytestmark = pytest.mark.usefixtures("test_site")


def configure(settings: Any, **values: object) -> None:
    """Add to the package's settings."""
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **values}


def read(*, user: User | None = None) -> str:
    """Return the alias that a scope of its own reads from."""
    with scope(user=user):
        return str(Note.objects.all()[0]._state.db)


def in_shadow() -> dict[str, int]:
    """Return what was counted of where reads would have gone."""
    return {name: n for name, n in get_stats().items() if name.startswith("shadow_")}


def users(number: int) -> list[User]:
    """Return users of different names, whom no database knows."""
    return [User(pk=1000 + n, username=f"user {n}") for n in range(number)]


def test_in_shadow_the_primary_serves_and_what_would_be_is_counted(
    note: Note, ann: User, cluster: Cluster, settings: Any
) -> None:
    """By server and reason; without it the replica serves that the count has named."""
    configure(settings, SHADOW=True)
    pop_stats()
    assert read(user=ann) == "default"
    counted = in_shadow()
    assert get_stats()["reads_shadow"] == get_stats()["reads_from_default"] == 1
    configure(settings, SHADOW=False)
    served = read(user=ann)
    assert served != "default"
    assert counted == {f"shadow_reads_from_{served}": 1, "shadow_reads_caught_up": 1}


def test_in_shadow_what_a_user_has_written_counts(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Who has written what no replica has would have been sent to the primary, because of that."""
    configure(settings, SHADOW=True)
    stand_still(cluster)
    visit(browser, lambda request: Note.objects.filter(pk=note.pk).update(title="mine"), "post")
    pop_stats()
    visit(browser, lambda request: Note.objects.count())
    assert in_shadow() == {"shadow_reads_from_default": 1, "shadow_reads_lagging": 1}


def test_in_shadow_what_would_serve_all_the_same_counts(
    note: Note, ann: User, cluster: Cluster, settings: Any
) -> None:
    """The one that lags least, within FALLBACK_LAG, and for users within what a token's life allows."""
    configure(settings, SHADOW=True, WAIT=0.0, MAX_LAG=0.4, FALLBACK_LAG=3600.0, TOKEN_TTL=TTL)
    stand_still(cluster)
    Tag.objects.create(name="later")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > TTL - 1.0, "lag")
    for user, expected in ((None, "least_lagged"), (ann, "lagging")):
        pop_stats()
        assert read(user=user) == "default"
        assert in_shadow()[f"shadow_reads_{expected}"] == 1


def test_in_shadow_what_would_yield_counts(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """What was seen before, and not written, as while replicas served."""
    configure(settings, MONOTONIC_SHARE=0.0)
    stand_still(cluster)
    Tag.objects.create(name="later")
    assert visit(browser, use_primary(lambda request: Tag.objects.count())) == 2
    configure(settings, SHADOW=True)
    pop_stats()
    visit(browser, lambda request: Note.objects.count())
    assert in_shadow()["shadow_reads_yielded"] == 1


def test_in_shadow_no_replica_is_connected_to(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor waited for, whatever a block asks for."""
    configure(settings, SHADOW=True, WAIT=5.0)
    stand_still(cluster)
    Tag.objects.create(name="later")

    def refuse(*args: Any) -> None:
        pytest.fail("a replica was asked")

    monkeypatch.setattr("django_replica_router.routing.search.connect_to_replica", refuse)
    monkeypatch.setattr("django_replica_router.routing.waiting.ask_over_connection", refuse)
    with scope(), use_replica(max_lag=0.001, on_stale="raise"):
        assert str(Note.objects.all()[0]._state.db) == "default"
    with scope():
        Note.objects.update(title="mine")
        with use_replica(on_stale="wait", timeout=30.0):
            assert str(Note.objects.all()[0]._state.db) == "default"
    configure(settings, SHADOW=False)
    with scope(), use_replica(max_lag=0.001, on_stale="raise"), pytest.raises(TooStale):
        Note.objects.count()


def test_in_shadow_what_is_seen_on_the_primary_binds_nobody(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Else each page would have to be read there after the first: what would be would be told wrongly."""
    configure(settings, SHADOW=True)
    visit(browser, lambda request: Note.objects.count())
    Tag.objects.create(name="of somebody else")
    stand_still(cluster)
    Tag.objects.create(name="of somebody else, and later")
    for _ in range(2):
        pop_stats()
        visit(browser, lambda request: [Note.objects.count(), Tag.objects.count()])
        assert in_shadow()["shadow_reads_caught_up"] == 1


def test_where_nobody_is_routed_no_task_waits_for_a_replica(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """It reads what it must see on the primary."""
    stand_still(cluster)
    with scope():
        Tag.objects.create(name="later")
        token = str(current_token())
    for values, is_ready in (({}, False), ({"SHADOW": True}, True), ({"ROLLOUT": 0.0}, True)):
        with override_settings(REPLICA_ROUTER={**settings.REPLICA_ROUTER, **values}):
            run = Run(token)
            try:
                assert run.wait_for_replica(0.0) is is_ready
            finally:
                run.close()


def test_of_a_share_each_user_is_or_is_not(note: Note, cluster: Cluster, settings: Any) -> None:
    """On each request alike; about that share of them; and whoever is stays so where it grows."""
    many = users(200)
    routed: list[set[str]] = []
    for share in (0.2, 0.2, 0.6):
        configure(settings, ROLLOUT=share)
        routed.append({user.username for user in many if read(user=user) != "default"})
    few, again, more = routed
    assert few == again
    assert few < more
    assert 15 <= len(few) <= 70
    assert 80 <= len(more) <= 160


def test_of_visitors_a_share_of_requests_is_routed(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a request stays with what was drawn for it."""
    configure(settings, ROLLOUT=0.5)
    drawn = iter([0.4, 0.6])

    class Draw:
        @staticmethod
        def random() -> float:
            return next(drawn)

    monkeypatch.setattr(shadowing, "_draw", Draw)

    def pages(request: HttpRequest) -> list[str]:
        found = []
        for _ in range(2):
            found.append(str(Note.objects.all()[0]._state.db))
            with use_replica(max_lag=100.0):
                found.append(str(Note.objects.all()[0]._state.db))
        return found

    assert "default" not in visit(Client(), pages)
    assert set(visit(Client(), pages)) == {"default"}


def test_a_share_of_none_and_of_all_are_exact(note: Note, cluster: Cluster, settings: Any) -> None:
    """0 routes nobody, and 1 everybody."""
    for share, expected in ((0.0, True), (1.0, False)):
        configure(settings, ROLLOUT=share)
        found = Counter(read(user=user) == "default" for user in [*users(50), None])
        assert found == {expected: 51}


def test_in_shadow_no_replica_stands_in_for_the_primary(
    healed: Cluster, ann: User, settings: Any
) -> None:
    """Nor for whoever is not of the share: what needs no look at replicas to be decided fails as all else does."""
    configure(settings, PRIMARY_DOWN="replicas")
    wait_until_known(healed)
    healed.primary.stop()
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: monitor.known.primary_is_down, "the loss of the primary to be noticed")
    client = Client(raise_request_exception=False)

    def count(method: str) -> Any:
        return visit(client, lambda request: Note.objects.count(), method)

    for values in ({"SHADOW": True}, {"ROLLOUT": 0.0}):
        with override_settings(REPLICA_ROUTER={**settings.REPLICA_ROUTER, **values}):
            assert [count(method).status_code for method in ("get", "post")] == [500, 500]
    assert [count(method) for method in ("get", "post")] == [0, 0]
    configure(settings, ROLLOUT=0.5)
    for user in users(20):
        with scope(user=user):
            is_routed = str(router.db_for_read(Note)) != "default"
        with scope(user=user), patch.object(current_scope(), "unsafe", True):
            assert (str(router.db_for_read(Note)) != "default") is is_routed


def test_in_shadow_no_read_is_refused(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the token store does not answer, which else refuses what is not to go to the primary."""
    wait_until_known(cluster)

    def refuse(*args: Any) -> None:
        raise StoreError("it is down")

    monkeypatch.setattr("django_replica_router.routing.deciding.load_floor", refuse)
    with scope(), use_replica(on_stale="raise"), pytest.raises(TooStale):
        Note.objects.count()
    for values in ({"SHADOW": True}, {"ROLLOUT": 0.0}):
        changed = {**settings.REPLICA_ROUTER, **values}
        with override_settings(REPLICA_ROUTER=changed), scope(), use_replica(on_stale="raise"):
            assert Note.objects.count() == 1


@pytest.mark.parametrize("is_user_routed", [True, False])
def test_a_user_who_becomes_known_counts_by_name(
    note: Note,
    ann: User,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    is_user_routed: bool,
) -> None:
    """Whatever the session, whose user no store knows yet, has said: what was seen until then is not missing later."""
    configure(settings, ROLLOUT=0.5)
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "LoginRequired" not in name]
    browser = Client()
    browser.force_login(ann)

    def is_of_share(reader: str, share: float) -> bool:
        current = current_scope()
        assert current is not None
        return (reader != current.identity.session()) is is_user_routed

    for module in (shadowing, finishing):
        monkeypatch.setattr(module, "is_of_share", is_of_share)
    stand_still(cluster)
    Tag.objects.create(name="later")

    def page(request: HttpRequest) -> list[str]:
        found: list[Any] = [Note.objects.all()[0]]
        with use_replica(max_lag=100.0):
            found.append(Note.objects.all()[0])
        assert request.user.is_authenticated
        found += Tag.objects.all()
        with use_replica(max_lag=100.0):
            found += Tag.objects.all()
        return [str(one._state.db) for one in found]

    first, second = (visit(browser, page) for _ in range(2))
    assert {name == "default" for name in first[:2]} == {is_user_routed}
    assert first[2:] == second[2:] == ["default"] * 4


def test_a_user_whom_the_view_finds_counts_by_name(
    note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a key of its own: nothing that a request carries has told who reads, so it was drawn by lot."""
    configure(settings, ROLLOUT=0.5)

    class Draw:
        @staticmethod
        def random() -> float:
            return 0.9

    monkeypatch.setattr(shadowing, "_draw", Draw)
    for module in (shadowing, finishing):
        monkeypatch.setattr(module, "is_of_share", lambda reader, share: True)
    stand_still(cluster)
    Tag.objects.create(name="later")

    def first(user: User, request: HttpRequest) -> int:
        assert Note.objects.count() == 1
        request.user = user
        return Tag.objects.count()

    def later(user: User, request: HttpRequest) -> int:
        request.user = user
        return Tag.objects.count()

    async def visit_first(user: User) -> int:
        try:
            found: int = await avisit(AsyncClient(), sync_to_async(partial(first, user)))
            return found
        finally:
            await sync_to_async(connections.close_all)()  # those of this thread

    one, another = users(2)
    assert visit(Client(), partial(first, one)) == 2
    assert visit(Client(), partial(later, one)) == 2
    assert visit(Client(), partial(later, another)) == 1
    assert asyncio.run(visit_first(another)) == 2
    assert visit(Client(), partial(later, another)) == 2
