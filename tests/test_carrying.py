"""Tokens that are passed on: who acts next, in another process or for another user, sees what was written."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction

from django_replica_router import (
    Token,
    acurrent_token,
    current_token,
    get_stats,
    note_write,
    scope,
    see,
    track,
    use_replica,
)
from django_replica_router.errors import ConfigurationError, StoreError
from django_replica_router.recording import carrying
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import choosing
from django_replica_router.stores.store import RedisStore
from django_replica_router.values.carried import Entry
from django_replica_router.values.tokens import Position, Record
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests.conftest import stand_still, wait_until, wait_until_known
from tests.helpers import Served

pytestmark = pytest.mark.usefixtures("note")


def title(**kwargs: Any) -> str:
    """Return the title of the note as a scope of its own reads it."""
    with scope(**kwargs):
        return Note.objects.values_list("title", flat=True).get()


def change(text: str) -> None:
    """Give the note another title."""
    Note.objects.update(title=text)


def written(text: str) -> Token:
    """Write in a scope for nobody in particular, and return its token."""
    with scope() as opened:
        change(text)
        return opened.token


@pytest.fixture
def in_a_thread() -> Iterator[Any]:
    """Runs something in a thread of its own, which has connections of its own; joined at the end."""
    threads: list[Thread] = []

    def run(work: Any) -> Thread:
        def close_after() -> None:
            try:
                work()
            finally:
                connections.close_all()

        thread = Thread(target=close_after)
        threads.append(thread)
        thread.start()
        return thread

    yield run
    for thread in threads:
        thread.join()


def test_who_has_the_token_sees_the_write(lagging: Cluster) -> None:
    """And who has not is shown by a replica what was before: nobody else is bound by it."""
    text = str(written("second"))
    assert title() == "first"
    assert title(token=text) == "second"
    assert title(token=Token.read(text)) == "second"


def test_a_replica_serves_once_it_has_the_write(cluster: Cluster, served: Served) -> None:
    """A token binds to a position, not to the primary."""
    token = written("second")
    wait_until_known(cluster)
    served.clear()
    assert title(token=token) == "second"
    assert served.only_replicas("notes_note")


def test_a_scope_that_has_ended_still_tells(lagging: Cluster) -> None:
    """As for the result of a task, which leaves after its work is done."""
    with scope() as opened:
        change("second")
    assert title(token=opened.token) == "second"
    with scope() as empty:
        pass
    assert title(token=empty.token) == "first"


def test_a_token_covers_what_came_with_one(lagging: Cluster) -> None:
    """From a request to a task to its task: whoever comes third sees what the first one wrote."""
    with scope(token=written("second")) as opened:
        assert title(token=opened.token) == "second"


def test_a_token_covers_what_its_user_had_written(ann: User, lagging: Cluster) -> None:
    """Although another process, which knows no user, goes by the token alone."""
    with scope(user=ann):
        change("second")
    with scope(user=ann) as opened:
        token = opened.token
    assert title(token=token) == "second"
    with scope() as opened:
        assert title(token=opened.token) == "first"


def test_a_token_covers_what_was_seen_on_the_primary(lagging: Cluster) -> None:
    """What somebody acts upon must not be missing where they have somebody act."""
    change("second")
    with scope() as opened:
        assert Note.objects.using("default").get().title == "second"
        token = opened.token
    assert title(token=token) == "second"


def test_seeing_a_token_raises_the_scope(lagging: Cluster) -> None:
    """Also where a replica has been chosen before."""
    token = written("second")
    with scope():
        assert Note.objects.get().title == "first"
        see(token)
        assert Note.objects.get().title == "second"
    with scope(), use_replica(max_lag=100.0):
        assert Note.objects.get().title == "first"
        see(str(token))
        assert Note.objects.get().title == "second"
        with use_replica():
            assert Note.objects.get().title == "second"


def test_two_lags_of_a_scope_are_both_raised(lagging: Cluster) -> None:
    """A replica that was chosen under another lag may lack what the token names, too."""
    token = written("second")
    with scope():
        for _ in range(2):
            titles = {Note.objects.get().title}
            with use_replica(max_lag=100.0):
                titles.add(Note.objects.get().title)
            assert titles == {"first"}
        see(token)
        with use_replica(max_lag=100.0):
            assert Note.objects.get().title == "second"
        assert Note.objects.get().title == "second"


def test_what_has_expired_binds_a_report_that_allows_more_lag(
    cluster: Cluster, settings: Any
) -> None:
    """A replica that lags by more than tokens live may lack what one of them was made for."""
    brief = {"MAX_LAG": 0.2, "WAIT": 0, "TOKEN_TTL": 1.3}
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, **brief}
    stand_still(cluster)
    with scope() as opened:
        change("second")
        track("order:1")
    token = str(opened.token)
    monitor = find_monitor("default")
    assert monitor is not None
    wait_until(lambda: min(r.age for r in monitor.health.replicas()) > 1.5, "the token to expire")

    def report(key: str = "", **kwargs: Any) -> str:
        with scope(**kwargs), use_replica(max_lag=3600.0):
            if key:
                see(key=key)
            return Note.objects.get().title

    assert report() == "first"
    assert report(token=token) == "second"
    assert report(key="order:1") == "second"


@pytest.mark.parametrize("what", ["outlives", "is_bound"])
def test_without_the_rule_it_does_not_bind(
    what: str, cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: of a token, and of a key."""
    raised, wish = choosing.raised_by_carried, choosing._wish
    if what == "outlives":
        monkeypatch.setattr(choosing, "raised_by_carried", lambda *args, outlives: raised(*args))
    else:
        monkeypatch.setattr(
            choosing,
            "_wish",
            lambda case, floor: wish(case, floor)._replace(is_bound=False, max_lag=case.max_lag),
        )
    with pytest.raises(AssertionError, match="first"):
        test_what_has_expired_binds_a_report_that_allows_more_lag(cluster, settings)


def test_outside_of_a_scope_there_is_nothing_to_see(cluster: Cluster) -> None:
    """The primary answers there; and a call that says nothing is told so."""
    see(written("second"))
    assert not current_token()
    assert str(current_token()) == ""
    with pytest.raises(ConfigurationError, match=r"see\(\) needs a token"):
        see()


def test_a_transaction_that_is_open_is_waited_for(lagging: Cluster, in_a_thread: Any) -> None:
    """Who publishes a task before the commit has it see what is committed later."""
    titles: list[str] = []
    with scope():
        with transaction.atomic():
            change("second")
            token = str(current_token())
            asked = in_a_thread(lambda: titles.append(title(token=token)))
            asked.join(0.1)
            assert titles == []
        asked.join()
    assert titles == ["second"]


def test_a_transaction_that_is_rolled_back_binds_nobody(lagging: Cluster) -> None:
    """Its end has a position: what was written before it, and nothing else."""
    with scope(), transaction.atomic():
        change("second")
        token = current_token()
        transaction.set_rollback(True)
    assert title(token=token) == "first"


def test_a_transaction_that_does_not_end_leads_to_the_primary(
    lagging: Cluster, in_a_thread: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while, and whatever that shows: waiting on would hold up the worker."""
    monkeypatch.setattr(carrying, "OPEN_WAIT", 0.0)
    served: list[str] = []

    def read() -> None:
        with Served() as here, scope(token=token):
            Note.objects.get()
        served.extend(here.aliases("notes_note"))

    with transaction.atomic(), scope():
        change("second")
        token = str(current_token())
        in_a_thread(read).join()
    assert served == ["default"]
    assert get_stats()["transactions_outwaited"]


def test_an_open_transaction_that_only_reads_is_not_waited_for(lagging: Cluster) -> None:
    """It has no number: nothing of it is ever missing."""
    with scope() as opened, transaction.atomic():
        Note.objects.get()
        (entry,) = opened.token.entries.values()
    assert entry.open == frozenset()


def test_a_write_that_cannot_be_located_leads_to_the_primary(
    lagging: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost: the token says so, for as long as it lives."""
    monkeypatch.setattr(carrying, "locate", lambda primary, mark: None)
    token = written("second")
    assert title(token=str(token)) == "second"


def test_without_the_store_a_token_leads_to_the_primary(
    ann: User, lagging: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the user had written is not known then."""
    with scope(user=ann):
        change("second")

    def fail(*args: Any) -> None:
        message = "away"
        raise StoreError(message)

    with monkeypatch.context() as patch, scope(user=ann) as opened:
        patch.setattr(carrying, "load_floor", fail)
        token = opened.token
    assert title(token=token) == "second"


@pytest.mark.parametrize(
    "text",
    ["", "1", "1AAAA", "nonsense", "1AAAA:forged", "9" * 5000, "\N{SNOWMAN}", "1\N{SNOWMAN}:x"],
)
def test_a_broken_token_is_ignored_and_counted(lagging: Cluster, text: str) -> None:
    """It neither raises nor sends anybody to the primary."""
    written("second")
    before = get_stats().get("tokens_refused", 0)
    assert title(token=text) == "first"
    assert get_stats().get("tokens_refused", 0) == before + bool(text)


def test_a_token_that_was_changed_is_refused(lagging: Cluster) -> None:
    """Each character of it counts; as does the key that it was signed with."""
    text = str(written("second"))
    middle = len(text) // 3
    other = "A" if text[middle] != "A" else "B"
    assert title(token=text[:middle] + other + text[middle + 1 :]) == "first"
    assert title(token=text[:-1]) == "first"
    assert title(token=text) == "second"


def test_services_agree_on_keys(lagging: Cluster, settings: Any) -> None:
    """The first signs, and those of before are still read; without any, it is those of Django."""
    text = str(written("second"))
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "new", [settings.SECRET_KEY]
    assert Token.read(text)
    settings.SECRET_KEY_FALLBACKS = []
    assert not Token.read(text)
    shared = {**settings.REPLICA_ROUTER, "TOKEN_KEYS": ["shared"]}
    settings.REPLICA_ROUTER = shared
    text = str(Token({1: Entry(Record(Position(1, 2), 3))}))
    settings.SECRET_KEY = "another service"
    settings.REPLICA_ROUTER = {**shared, "TOKEN_KEYS": ["newer", "shared"]}
    assert Token.read(text)
    settings.REPLICA_ROUTER = {**shared, "TOKEN_KEYS": ["newer"]}
    assert not Token.read(text)


def test_a_token_of_another_cluster_is_passed_on(lagging: Cluster, served: Served) -> None:
    """Its positions mean nothing here: they send nobody to the primary, and do not get lost."""
    foreign = Token({42: Entry(Record(Position(9, 1 << 60), 1 << 47))})
    with scope(token=str(foreign)) as opened:
        assert Note.objects.get().title == "first"
        assert opened.token >= foreign
    assert served.only_replicas("notes_note")


def test_what_nobody_knows_the_cluster_of_leads_to_the_primary(
    lagging: Cluster, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position may be one of this cluster."""

    def fail(primary: str) -> int:
        raise ConfigurationError(primary)

    foreign = Token({42: Entry(Record(Position(9, 1 << 60), 1 << 47))})
    monkeypatch.setattr(carrying, "system_of", fail)
    with scope(token=foreign):
        Note.objects.get()
    assert served.only_primary("notes_note")


def test_tokens_only_rise(cluster: Cluster) -> None:
    """Of two of one scope the later covers the earlier, and not the other way round."""
    with scope() as opened:
        change("second")
        first = opened.token
        change("third")
        second = opened.token
    assert second >= first
    assert not first >= second
    assert first | second == second | first
    assert (first | second) >= second
    assert first <= second


def test_in_an_event_loop_a_token_is_awaited(lagging: Cluster) -> None:
    """It may have to be asked for, which would block the loop."""

    async def work() -> str:
        async with scope():
            await Note.objects.aupdate(title="second")
            with pytest.raises(SynchronousOnlyOperation, match="acurrent_token"):
                current_token()
            token = await acurrent_token()
        async with scope(token=token):
            return (await Note.objects.aget()).title

    assert async_to_sync(work)() == "second"


def test_what_is_written_under_a_key_is_seen_under_it(lagging: Cluster) -> None:
    """Whoever they are: an order is packed by another than has placed it."""
    with scope():
        track("order:1")
        change("second")

    def by_another_key() -> str:
        with scope():
            see(key="order:2")
            return Note.objects.get().title

    # As soon as it is known how the cache is set: one that drops keys may have dropped that one.
    wait_until(lambda: by_another_key() == "first", "a replica to serve who names another key")
    with scope():
        assert Note.objects.get().title == "first"
        see(key="order:1")
        assert Note.objects.get().title == "second"


def test_a_key_is_remembered_at_once(lagging: Cluster) -> None:
    """Its actors may be told of the write before the request that has written ends."""
    with scope():
        change("second")
        track("order:1")
        with scope():
            see(key="order:1")
            assert Note.objects.get().title == "second"


def test_a_key_is_remembered_with_the_commit(lagging: Cluster, in_a_thread: Any) -> None:
    """Not before it, when nothing can be seen; and not if it is rolled back."""
    titles: list[str] = []

    def read() -> None:
        with scope():
            see(key="order:1")
            titles.append(Note.objects.get().title)

    with transaction.atomic():
        change("second")
        track("order:1")
        in_a_thread(read).join()
        transaction.set_rollback(True)
    in_a_thread(read).join()
    with transaction.atomic():
        change("third")
        track("order:1")
    in_a_thread(read).join()
    assert titles == ["first", "first", "third"]


def test_a_key_that_the_store_refuses_holds_up_its_writer(
    lagging: Cluster, in_a_thread: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until replicas have what nobody can be told of."""
    before = get_stats().get("tokens_unstored", 0)

    def refuse(*args: Any) -> None:
        message = "away"
        raise StoreError(message)

    monkeypatch.setattr(RedisStore, "merge", refuse)
    monkeypatch.setattr("django_replica_router.recording.finishing._HOLD", 60.0)

    def write() -> None:
        change("second")
        track("order:1")

    writer = in_a_thread(write)
    wait_until(lambda: get_stats().get("tokens_unstored", 0) > before, "the store to refuse")
    assert writer.is_alive()
    for replica in lagging.replicas:
        replica.resume()
    writer.join()


def test_what_is_past_the_router_is_in_the_token(lagging: Cluster) -> None:
    """Told by note_write, as for the user's own record."""
    with scope() as opened:
        with connections["default"].cursor() as cursor:
            cursor.connection.execute("UPDATE notes_note SET title = 'second'")
        note_write()
        token = opened.token
    assert title(token=token) == "second"
