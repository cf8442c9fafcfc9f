"""Reads where replicas cannot serve."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.test import Client

from django_replica_router import current_scope, scope, use_replica
from django_replica_router.errors import StoreError
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.stores.store import get_store
from testproject.cluster import Cluster
from testproject.notes.models import Comment, Note, Tag
from tests.conftest import PATIENT, unwatched, wait_until, wait_until_known, wait_until_routed
from tests.helpers import Served
from tests.reading import browser, note, pause, reasons  # noqa: F401 - fixtures
from tests.site import visit

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("test_site")


def store_answers() -> bool:
    """Tell whether the token store is read again."""
    try:
        store = get_store("default")
        store.life()  # it was started anew, perhaps
        store.load(["anything"])
    except StoreError:
        return False
    return True


# Replicas that cannot serve


def test_waiting_serves_from_a_replica_that_catches_up(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """A read right after a write waits for the replica instead of loading the primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 10.0}
    found: set[str] = set()
    for title in ("a", "b", "c", "d", "e"):
        browser.post(f"/notes/{note.pk}/edit/", {"title": title, "body": ""})

        def read(request: HttpRequest) -> list[str]:
            mine = Note.objects.get(pk=note.pk)
            return [str(mine._state.db), mine.title]

        database, seen = visit(browser, read)
        found.add(database[:7])
        assert seen == title
    assert found == {"replica"}


def test_a_replica_that_does_not_catch_up_leaves_the_request_to_the_primary(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """After the wait budget the primary serves, and the rest of the request as well."""
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})

    def read(request: HttpRequest) -> list[str]:
        first = Note.objects.get(pk=note.pk)
        for replica in cluster.replicas:
            replica.resume()
        position = cluster.primary.flush()
        monitor = find_monitor("default")
        assert monitor is not None
        monitor.waiting.want(position, 0.0)
        wait_until(
            lambda: (
                min(reading.watermark for reading in monitor.known.readings.values()) >= position
            ),
            "the monitor to know that they have caught up",
        )
        return [str(first._state.db), first.title, str(Note.objects.get(pk=note.pk)._state.db)]

    assert visit(browser, read) == ["default", "second", "default"]


def test_the_wait_budget_is_one_for_the_whole_request(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Not one for each read, nor one for each key."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0.2}
    pause(cluster)
    with scope(user=ann):
        note.save()

    def read(request: HttpRequest) -> float:
        request.user = ann
        current = current_scope()
        assert current is not None
        list(Note.objects.all())
        with use_replica(max_lag=9.0):
            list(Note.objects.all())
        left = current.cluster("default").route.wait_left
        assert left is not None
        return left

    assert visit(Client(), read) == 0.0


def test_without_a_budget_nobody_waits(
    browser: Client, note: Note, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAIT = 0 goes to the primary at once."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}
    pause(cluster)
    browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
    monitor = find_monitor("default")
    assert monitor is not None

    def forbidden(*args: Any) -> None:
        pytest.fail("waited")

    monkeypatch.setattr(monitor.waiting, "wait_for", forbidden)
    assert reasons(settings, browser, lambda request: Note.objects.count()) == {"LAGGING"}


def test_an_idle_cluster_does_not_lag(cluster: Cluster, settings: Any) -> None:
    """Where nothing is written, replicas are as fresh as the last look at the primary."""
    settings.REPLICA_ROUTER = {**PATIENT, "INTERVAL": 0.25}
    wait_until_routed()
    monitor = find_monitor("default")
    assert monitor is not None
    seen = len(monitor.history.samples)
    wait_until(lambda: len(monitor.history.samples) >= seen + 6, "six more samples")
    wait_until(
        lambda: max(replica.age for replica in monitor.health.replicas()) < 3 * monitor.interval,
        "replicas to be no older than the last looks",
    )


def test_a_replica_that_lags_too_far_serves_nobody(
    cluster: Cluster, settings: Any, served: Served
) -> None:
    """Not even a reader who has never written."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4}

    def is_served() -> bool:
        served.clear()
        visit(Client(), lambda request: Note.objects.count())
        return served.only_replicas("notes_note")

    wait_until(is_served, "a replica to serve")
    pause(cluster)
    Tag.objects.create(name="red")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "lag to be noticed")
    served.clear()
    assert reasons(settings, Client(), lambda request: Note.objects.count()) == {"LAGGING"}
    assert served.only_primary("notes_note")


def test_a_replica_whose_receiver_died_lags(cluster: Cluster, settings: Any) -> None:
    """Received and replayed positions that agree are no sign of health."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4}
    wait_until_routed()
    for replica in cluster.replicas:
        replica.cut()
    try:
        Tag.objects.create(name="red")
        monitor = find_monitor("default")
        assert monitor is not None
        wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "lag to be noticed")
        assert reasons(settings, Client(), lambda request: Note.objects.count()) == {"LAGGING"}
    finally:
        for replica in cluster.replicas:
            replica.reconnect()


def test_max_lag_of_a_block_is_obeyed(note: Note, cluster: Cluster, settings: Any) -> None:
    """A report may live with more lag than a page, or with less."""
    settings.REPLICA_ROUTER = {**PATIENT, "MAX_LAG": 0.4, "WAIT": 0}
    wait_until_routed()
    pause(cluster)
    Tag.objects.create(name="late")
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 0.4, "lag to be noticed")
    with use_replica():
        assert Note.objects.get(pk=note.pk)._state.db == "default"
    with use_replica(max_lag=3600.0):
        assert str(Note.objects.get(pk=note.pk)._state.db).startswith("replica")


def test_a_block_with_a_lag_of_its_own_reads_from_the_requests_replica(
    note: Note, cluster: Cluster
) -> None:
    """Also for whom any other would do: it might show less than the request has seen."""

    def alias() -> str:
        return str(Note.objects.get(pk=note.pk)._state.db)

    for _ in range(20):
        with scope():
            before = alias()
            assert before.startswith("replica")
            with use_replica(max_lag=3600.0):
                assert alias() == before


def test_a_block_that_allows_less_lag_reads_from_a_replica_that_has_as_much(
    note: Note, cluster: Cluster, settings: Any
) -> None:
    """Where the request's own replica lags too far for it, another one takes the block."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 5.0}
    wait_until_routed()
    with scope():
        before = str(Note.objects.get(pk=note.pk)._state.db)
        slow = next(replica for replica in cluster.replicas if replica.name == before)
        slow.pause()
        try:
            cluster.primary.execute("INSERT INTO notes_tag (name) VALUES ('late')", dbname="app")
            written = time.monotonic()
            monitor = find_monitor("default")
            assert monitor is not None
            # By a sample of after it: one that is under way shows the replica as fresh as it then was.
            wait_until(
                lambda: (
                    monitor.history.sampled_at > written
                    and monitor.health.replica(before).age > 0.4
                ),
                "lag to be noticed",
            )
            with use_replica(max_lag=0.4):
                tag = Tag.objects.get(name="late")
        finally:
            slow.resume()
    assert tag._state.db not in ("default", before)


def test_without_a_live_replica_the_site_works_from_the_primary(
    browser: Client, note: Note, cluster: Cluster, served: Served, settings: Any
) -> None:
    """Every page is served, with persistent connections to servers that are gone."""
    # Who has failed is looked at again after an interval, then after two.
    settings.REPLICA_ROUTER = {**PATIENT, "INTERVAL": 0.25}
    wait_until_known(cluster)
    browser.get("/")
    try:
        with unwatched():
            for replica in cluster.replicas:
                replica.kill()
            # Before the monitor knows.
            assert browser.get("/").status_code == 200
        for _ in range(2):
            assert browser.get("/").status_code == 200
        served.clear()
        assert browser.get("/").status_code == 200
        assert served.only_primary()
    finally:
        for replica in cluster.replicas:
            replica.start()
        for alias in ("replica1", "replica2"):
            connections[alias].close()
    wait_until_known(cluster)

    def do_replicas_serve() -> bool:
        served.clear()
        assert browser.get("/").status_code == 200
        return served.only_replicas()

    # A pooler that has met a dead server goes on refusing for a moment, and is tried again then.
    wait_until(do_replicas_serve, "replicas to serve again")


def test_without_a_configured_replica_the_site_works_from_the_primary(
    browser: Client, note: Note, settings: Any, served: Served
) -> None:
    """Installed before the first replica is."""
    settings.REPLICA_ROUTER = {"CLUSTERS": {"default": []}}
    assert browser.get("/").status_code == 200
    assert served.only_primary()


def test_without_a_cache_the_site_works_from_the_primary(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """What cannot be read may be a token: nobody is served by a replica, and nothing raises."""
    assert cluster.cache is not None
    cluster.cache.kill()
    try:
        assert reasons(settings, browser, lambda request: Note.objects.count()) == {"STORE_ERROR"}
        response = browser.post(f"/notes/{note.pk}/edit/", {"title": "second", "body": ""})
        assert response.status_code == 302
        assert b"second" in browser.get(f"/notes/{note.pk}/").content
    finally:
        cluster.cache.start()
    wait_until(store_answers, "the store to be asked again")
    found = reasons(settings, browser, lambda request: str(request.user))
    assert found == {"UNKNOWN_SESSION", "EMPTY_STORE"}


def test_an_unreadable_record_is_no_record(
    browser: Client, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Garbage under a session's key means: not known, so the primary serves."""
    assert cluster.cache is not None
    for key in cluster.cache.command("KEYS", "*"):
        cluster.cache.command("SET", key, "garbage")
    found = reasons(settings, browser, lambda request: str(request.user))
    assert found == {"UNKNOWN_SESSION", "EMPTY_STORE"}


def test_a_token_of_a_later_timeline_is_served_by_the_primary(
    ann: User, note: Note, settings: Any
) -> None:
    """The primary has failed over, and this process does not know yet."""
    from django_replica_router.scopes.identity import user_key
    from django_replica_router.stores.store import get_store
    from django_replica_router.values.tokens import Position, Record

    key = f"rr:default:{user_key(ann)}"
    get_store("default").merge({key: Record(Position(2, 1), 1 << 42)}, {key: 60.0})

    def read(request: HttpRequest) -> int:
        request.user = ann
        return Note.objects.count()

    assert reasons(settings, Client(), read) == {"EPOCH"}


def test_writes_that_django_sends_to_a_replica_reach_the_primary(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Generic relations write through the alias that they read from."""

    def update(request: HttpRequest) -> str:
        mine = Note.objects.get(pk=note.pk)
        mine.comments.update(text="changed")
        return str(mine._state.db)

    assert visit(browser, update).startswith("replica")
    assert Comment.objects.using("default").get().text == "changed"

    def delete(request: HttpRequest) -> int:
        mine = get_object_or_404(Note, pk=note.pk)
        deleted, _ = mine.comments.all().delete()
        return deleted

    wait_until_known(cluster)
    assert visit(browser, delete) == 1
    assert not Comment.objects.using("default").exists()


def test_a_deletion_sent_to_a_replica_is_one_transaction(
    browser: Client, ann: User, note: Note, cluster: Cluster
) -> None:
    """Where one of its statements fails, none has had an effect."""
    from django.db.models.signals import post_delete

    note.comments.create(author=ann, text="another")
    wait_until_known(cluster)

    def explode(**kwargs: Any) -> None:
        message = "no"
        raise RuntimeError(message)

    def delete(request: HttpRequest) -> list[Any]:
        mine = Note.objects.get(pk=note.pk)
        try:
            mine.comments.all().delete()
        except RuntimeError:
            return [connections["default"].in_atomic_block, mine.comments.count()]
        return []

    post_delete.connect(explode, sender=Comment)
    try:
        assert visit(browser, delete) == [False, 2]
    finally:
        post_delete.disconnect(explode, sender=Comment)
    assert Comment.objects.using("default").count() == 2


def test_a_select_that_writes_reaches_the_primary(browser: Client, note: Note) -> None:
    """The standby refuses a writing function; the caller sees its rows, not an error."""
    from django.db.models import F, Func, IntegerField

    def touch(request: HttpRequest) -> list[Any]:
        touched = Note.objects.annotate(
            new=Func(F("pk"), function="notes_touch", output_field=IntegerField())
        ).get(pk=note.pk)
        return [touched.new, str(Note.objects.get(pk=note.pk)._state.db)]

    assert visit(browser, touch) == [2, "default"]
    assert Note.objects.using("default").get(pk=note.pk).version == 2


def test_a_replica_without_autocommit_serves_after_it_has_refused_to_write(note: Note) -> None:
    """Its transaction has failed with the statement, and would refuse whatever comes next."""
    with scope():
        alias = str(Note.objects.get()._state.db)
        assert alias.startswith("replica")
        connections[alias].set_autocommit(False)
        try:
            Tag.objects.raw(
                "WITH new AS (INSERT INTO notes_tag (name) VALUES ('new') RETURNING *) SELECT * FROM new"
            )[0]
            assert Tag.objects.filter(name="new").exists()
            assert Note.objects.using(alias).get() == note
        finally:
            connections[alias].rollback()
            connections[alias].set_autocommit(True)


def test_many_selects_that_write_reach_the_primary(note: Note, cluster: Cluster) -> None:
    """All of them, also where what the replica has taken of their parameters comes but once."""
    cluster.primary.execute(
        "CREATE FUNCTION add_tag(name text) RETURNS void LANGUAGE sql "
        "AS 'INSERT INTO notes_tag (name) VALUES ($1)'",
        dbname="app",
    )
    try:
        wait_until_known(cluster)
        with scope():
            alias = str(Note.objects.get()._state.db)
            assert alias.startswith("replica")
            with connections[alias].cursor() as cursor:
                names = ([f"new {number}"] for number in range(3))
                cursor.executemany("SELECT add_tag(%s)", names)
            assert Tag.objects.filter(name__startswith="new").count() == 3
    finally:
        cluster.primary.execute("DROP FUNCTION add_tag(text)", dbname="app")


@pytest.mark.parametrize("asks", [True, False])
def test_a_replica_is_asked_itself_where_the_last_look_at_it_is_too_old(
    asks: bool,
    ann: User,
    note: Note,
    cluster: Cluster,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has arrived since then is known without waiting for anybody to look.

    Negative control: where the request does not ask, it knows of nothing, and reads elsewhere.
    """
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}

    def read() -> str:
        with scope(user=ann):
            return str(Note.objects.get(pk=note.pk)._state.db)

    assert read().startswith("replica")  # so this thread is connected to it
    if not asks:
        monkeypatch.setattr(
            "django_replica_router.routing.waiting.ask_over_connection", lambda *args: None
        )
    with unwatched():
        with scope(user=ann):
            note.save()
        cluster.wait_caught_up()
        assert read().startswith("replica" if asks else "default")


def test_a_replica_that_is_asked_itself_and_lacks_the_write_does_not_serve(
    ann: User, note: Note, cluster: Cluster, settings: Any
) -> None:
    """Negative: its answer is compared like any other."""
    settings.REPLICA_ROUTER = {**PATIENT, "WAIT": 0}
    with scope(user=ann):
        assert str(Note.objects.get(pk=note.pk)._state.db).startswith("replica")
    pause(cluster)
    with scope(user=ann):
        note.save()
    with scope(user=ann):
        assert Note.objects.get(pk=note.pk)._state.db == "default"
