"""What was decided before is followed, and dropped as soon as it may not hold any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from functools import partial
from threading import Event, Thread, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connections, router, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.utils.functional import SimpleLazyObject

from django_replica_router import (
    current_scope,
    current_token,
    receivers,
    routers,
    scope,
    see,
    track,
    use_primary,
    use_replica,
)
from django_replica_router.middleware import ReplicaRouterMiddleware
from django_replica_router.policy import Decision, Reason
from django_replica_router.recording import floors
from django_replica_router.routers import ReplicaRouter
from django_replica_router.routing import choosing, deciding, reads, usual
from django_replica_router.scopes import scope as context
from django_replica_router.scopes.cluster import Choice
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.stores.store import get_store
from django_replica_router.transactions import blocks as transactions
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import PATIENT, forget_the_server, stand_still, wait_until_known
from tests.controls import go_by_the_floor_that_was_loaded
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch


def route(model: Any = Tag, **hints: Any) -> str:
    """Return the alias that Django would read from."""
    alias: str = router.db_for_read(model, **hints)
    return alias


def route_by_shortcut(model: Any = Tag) -> str:
    """Return the same, and make sure that the second time it comes from a shortcut."""
    first = route(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicaRouter, "_route", refuse)
        assert route(model) == first
    return first


def refuse(*args: Any) -> str:
    """Take the place of the long way, which must not be gone."""
    pytest.fail("there was no shortcut")


def is_replica(alias: str) -> bool:
    return alias.startswith("replica")


def in_request(action: Callable[[HttpRequest], Any], **cookies: str) -> Any:
    """Run the action inside a request that passes the middleware alone."""
    found = []

    def view(request: HttpRequest) -> HttpResponse:
        found.append(action(request))
        return HttpResponse()

    request = RequestFactory().get("/")
    request.COOKIES.update(cookies)
    ReplicaRouterMiddleware(view)(request)
    return found[0]


# Shortcuts are there


def test_a_repeated_decision_takes_the_shortcut(cluster: Cluster, ann: User) -> None:
    """In a scope, for a visitor, for who is signed in, and for the primary as for a replica."""
    browser = sign_in(ann)
    wait_until_known(cluster)
    with scope(user=ann):
        assert is_replica(route_by_shortcut())
    assert is_replica(in_request(lambda request: route_by_shortcut()))
    assert is_replica(visit(browser, lambda request: route_by_shortcut()))
    assert visit(Client(), lambda request: route_by_shortcut(), method="post") == "default"


def test_an_instance_of_the_cluster_takes_it_too(cluster: Cluster) -> None:
    """One that is new, one of the primary, one of a replica."""
    objects = [Tag(name="new"), Tag.objects.create(name="old")]
    wait_until_known(cluster)
    with scope():
        objects.append(Tag.objects.get(name="old"))
        assert is_replica(objects[-1]._state.db or "")
        for instance in objects:
            assert is_replica(route(instance=instance))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReplicaRouter, "_route", refuse)
            for instance in objects:
                assert is_replica(route(instance=instance))


# Shortcuts end


def test_a_write_ends_it(cluster: Cluster) -> None:
    """After its write the scope reads from the primary."""
    with scope():
        assert is_replica(route_by_shortcut())
        Tag.objects.create(name="mine")
        assert route_by_shortcut() == "default"


def test_a_transaction_suspends_it(cluster: Cluster) -> None:
    """Inside ``atomic()`` on the primary reads go there, and afterwards where they went before."""
    with scope():
        before = route_by_shortcut()
        assert is_replica(before)
        with transaction.atomic():
            assert route() == "default"
        assert route_by_shortcut() == before


def test_a_transaction_on_a_replica_suspends_it(cluster: Cluster) -> None:
    """Inside ``atomic()`` on the other replica reads go there."""
    with scope():
        before = route_by_shortcut()
        (other,) = {"replica1", "replica2"} - {before}
        with transaction.atomic(using=other):
            assert route() == other
        assert route_by_shortcut() == before


def test_a_transaction_on_a_new_connection_suspends_it(cluster: Cluster) -> None:
    """Also where the thread has had no connection to that replica before."""
    with scope():
        before = route_by_shortcut()
        (other,) = {"replica1", "replica2"} - {before}
        connections[other].close()
        del connections[other]
        with transaction.atomic(using=other):
            assert route() == other
        assert not transactions.replicas_in_transaction


def test_a_connection_closed_inside_its_block_is_forgotten(cluster: Cluster) -> None:
    """No end of the transaction is told, and nobody goes the long way for ever."""
    with scope():
        before = route_by_shortcut()
        with transaction.atomic(using="replica1"):
            connections["replica1"].close()
        assert route() == before
        assert not transactions.replicas_in_transaction
        route_by_shortcut()


def test_a_replica_without_autocommit_is_watched_from_the_start(
    cluster: Cluster, monkeypatch: Patch
) -> None:
    """Its atomic blocks switch nothing off."""
    monkeypatch.setitem(connections["replica1"].settings_dict, "AUTOCOMMIT", False)
    connections["replica1"].close()
    try:
        with scope(), transaction.atomic(using="replica1"):
            assert route() == "replica1"
    finally:
        connections["replica1"].close()


def test_use_primary_and_use_replica_stand_above_it(cluster: Cluster) -> None:
    """Blocks are obeyed inside a scope that has decided, and are gone at their end."""
    with scope():
        before = route_by_shortcut()
        with use_primary():
            assert route() == "default"
        with use_replica(max_lag=9.0):
            assert is_replica(route())
        assert route_by_shortcut() == before


def test_a_changed_setting_ends_it(cluster: Cluster) -> None:
    """A model that is reserved now, and the whole package switched off."""
    with scope():
        assert is_replica(route_by_shortcut())
        with override_settings(REPLICA_ROUTER={"PRIMARY_ONLY": ["notes.Tag"]}):
            assert route() == "default"
        with override_settings(REPLICA_ROUTER={"ENABLED": False}):
            assert route() == "default"
        assert is_replica(route())


class ElsewhereRouter:
    """Keeps tags in another database."""

    def db_for_read(self, model: type[Any], **hints: Any) -> str | None:
        """Return the alias of that database for tags."""
        return "archive" if model is Tag else None


def test_another_router_ends_it(cluster: Cluster) -> None:
    """Who comes into the chain later is asked."""
    with scope():
        assert is_replica(route_by_shortcut())
        with override_settings(DATABASE_ROUTERS=[ReplicaRouter(), ElsewhereRouter()]):
            assert route() == "archive"
            assert is_replica(route(Note))


def test_it_is_no_other_threads(cluster: Cluster) -> None:
    """A thread of the same scope that is not in the transaction keeps reading from the replica."""
    seen: list[str] = []
    with scope():
        frame = context.Frame(current_scope())

        def ask() -> None:
            context.current_frame.set(frame)
            seen.append(route_by_shortcut())
            close_connections()

        with transaction.atomic():
            assert route() == "default"
            thread = Thread(target=ask)
            thread.start()
            thread.join()
            assert route() == "default"
    assert is_replica(seen[0])


def close_connections() -> None:
    """Close those of the present thread."""
    for alias in connections:
        connections[alias].close()
    get_store("default")._client.connection_pool.disconnect()  # type: ignore[attr-defined]


def in_thread(action: Callable[[], Any]) -> tuple[int, Any]:
    """Run the action in a thread that takes the scope along; return its number and the result."""

    def run() -> Any:
        try:
            return action()
        finally:
            close_connections()

    found: list[Any] = []
    number = []
    run_here = copy_context().run
    thread = Thread(target=lambda: (number.append(get_ident()), found.append(run_here(run))))
    thread.start()
    thread.join()
    return number[0], found[0]


def test_it_is_not_left_to_the_next_thread_of_that_number(cluster: Cluster) -> None:
    """The operating system gives a number again: the new thread may be in a transaction."""

    def ask_in_transaction() -> str:
        with transaction.atomic():
            return route()

    with scope():
        before, alias = in_thread(route_by_shortcut)
        assert is_replica(alias)
        # Whoever else starts a thread may have got it: this one is the next, or the one after.
        for _ in range(100):
            now, alias = in_thread(ask_in_transaction)
            assert alias == "default"
            if now == before:
                return
    pytest.fail("no thread has got the number of the one before")


def test_a_scope_that_outlives_many_threads_does_not_keep_theirs(cluster: Cluster) -> None:
    """There may be any number of them."""
    with scope() as here:
        for _ in range(200):
            in_thread(here.shortcuts_here)
        assert 0 < len(here.shortcuts) <= 64


@pytest.mark.parametrize("block", [nullcontext, use_replica])
def test_what_is_decided_while_another_thread_writes_is_dropped(
    cluster: Cluster, monkeypatch: Patch, block: Callable[[], AbstractContextManager[Any]]
) -> None:
    """The decision holds for its own read, which began before, and for none that follows."""
    names = ["of another thread"]

    def during_a_write(find: Callable[..., Any]) -> Callable[..., Any]:
        def find_during_a_write(*args: Any) -> Any:
            found = find(*args)
            while found and names:
                in_thread(partial(Tag.objects.create, name=names.pop()))
            return found

        return find_during_a_write

    for module, name in ((choosing, "find_at_once"), (usual, "find_open")):
        monkeypatch.setattr(module, name, during_a_write(getattr(module, name)))
    with paused(cluster), scope(), block():
        assert is_replica(route())
        assert route() == "default"


def test_who_knows_the_user_does_not_take_the_choice_of_who_did_not(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """Two threads decide at once for the first time, and one of them has not met the user yet."""
    decide = deciding.choose_server

    def decide_second(case: Any, floor: Any) -> Any:
        found = decide(case, floor)
        other = Choice(Decision("replica1", Reason.NO_TOKEN), floor, None)
        case.state.route.choices.setdefault(case.max_lag, other)
        return found

    with paused(cluster):
        write_as(ann)
        monkeypatch.setattr(deciding, "choose_server", decide_second)
        with scope(user=ann):
            assert route() == "default"
            assert route() == "default"


@contextmanager
def paused(cluster: Cluster) -> Iterator[None]:
    """Let every replica show the present for ever."""
    stand_still(cluster)
    try:
        yield
    finally:
        for replica in cluster.replicas:
            replica.resume()


def write_as(user: User) -> None:
    """Let the user have written something that no replica has."""
    with scope(user=user):
        Tag.objects.create(name=f"of {user.username}")


@pytest.mark.parametrize("way", ["set", "replaced", "lazy", "session", "cached"])
def test_a_user_who_becomes_known_ends_it(cluster: Cluster, ann: User, way: str) -> None:
    """However the user becomes known in the middle of the request, his token counts from then."""

    def action(request: Any) -> str:
        if way == "replaced":
            request.user = AnonymousUser()
        elif way == "lazy":
            request.user = SimpleLazyObject(lambda: ann)
        elif way == "session":
            request.session = Session()
        assert is_replica(route_by_shortcut())
        if way in {"set", "replaced"}:
            request.user = ann
        elif way == "lazy":
            assert request.user.username == "ann"
        elif way == "session":
            request.session._session_cache = {"_auth_user_id": str(ann.pk)}
        else:
            request._cached_user = ann
        return route()

    with paused(cluster):
        write_as(ann)
        assert in_request(action) == "default"


class Session:
    """A session that has not been loaded."""


def test_a_user_whom_the_token_store_cannot_tell_of_ends_it(
    cluster: Cluster, ann: User, settings: Any
) -> None:
    """What he has written is not known: the primary serves, and not what served before."""

    def action(request: Any) -> list[str]:
        assert is_replica(route_by_shortcut())
        request.user = ann
        assert cluster.cache is not None
        cluster.cache.suspend()
        return [route(), route()]

    settings.REPLICA_ROUTER = {**PATIENT, "STORE_TIMEOUT": 0.25}
    forget_the_server()
    with paused(cluster):
        write_as(ann)
        try:
            assert in_request(action) == ["default", "default"]
        finally:
            assert cluster.cache is not None
            cluster.cache.resume_process()


def route_when_found(ann: User, cluster: Cluster, then: Callable[[], object]) -> str:
    """Return where a request reads on that has read by a shortcut before she stood on it.

    She has written what no replica has.

    Args:
        ann: the user.
        cluster: with the replicas.
        then: is called between the two reads, when she stands there.
    """

    def action(request: Any) -> str:
        assert is_replica(route_by_shortcut())
        request.user = ann
        then()
        return route()

    with paused(cluster):
        write_as(ann)
        return str(in_request(action))


def test_a_user_found_by_somebody_else_ends_it(cluster: Cluster, ann: User) -> None:
    """Whoever asks the identity first does not keep the news to himself."""

    def ask() -> None:
        present = current_scope()
        assert present is not None
        assert present.identity.users()

    assert route_when_found(ann, cluster, ask) == "default"


def test_a_user_whose_token_has_left_ends_it(cluster: Cluster, ann: User) -> None:
    """His record was loaded for that: what was decided before does not go by it all the same."""

    assert route_when_found(ann, cluster, current_token) == "default"


def test_a_key_whose_token_has_left_ends_it(cluster: Cluster) -> None:
    """As where a task is queued between ``see()`` and the next read."""
    with paused(cluster):
        with scope():
            track("of the team")
            Tag.objects.create(name="of another")
        with scope():
            assert is_replica(route_by_shortcut())
            see(key="of the team")
            current_token()
            assert route() == "default"


def test_an_object_is_not_read_again_by_what_was_decided_before(
    cluster: Cluster, ann: User
) -> None:
    """Its alias names the replica, and leads to where its reader reads now."""

    def action(request: Any) -> bool:
        tag = Tag.objects.get(name="old")
        assert is_replica(tag._state.db or "")
        request.user = ann
        current_token()
        return Tag.objects.using(tag._state.db).filter(name="of ann").exists()

    Tag.objects.create(name="old")
    wait_until_known(cluster)
    with paused(cluster):
        write_as(ann)
        assert in_request(action)


def test_nobody_follows_it_while_another_thread_decides_by_more(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """That one has loaded the user's token, and may be waiting for a replica to have it."""
    decide = deciding.choose_server
    seen: list[list[str]] = []

    def decide_second(*args: Any) -> Any:
        if not seen:
            seen.append([])
            seen.append(in_thread(lambda: [route(), route()])[1])
        return decide(*args)

    put = partial(monkeypatch.setattr, deciding, "choose_server", decide_second)
    assert route_when_found(ann, cluster, put) == "default"
    assert seen == [[], ["default", "default"]]


def test_who_decides_anew_goes_where_another_thread_has_gone_meanwhile(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """What that one has shown on the primary, a replica may not have yet."""
    decide = deciding.choose_server

    def decide_second(case: Any, floor: Any) -> Any:
        found = decide(case, floor)
        assert is_replica(found.decision.alias)
        late = Decision("default", Reason.LAGGING)
        case.state.route.choices[case.max_lag] = Choice(late, floor, None)
        return found

    def action(request: Any) -> list[str]:
        assert is_replica(route_by_shortcut())
        request.user = ann
        monkeypatch.setattr(deciding, "choose_server", decide_second)
        return [route(), route()]

    wait_until_known(cluster)
    assert in_request(action) == ["default", "default"]


def test_what_was_decided_by_less_is_not_followed_because_another_lag_was_decided_by_more(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """By two threads at once, of which one has met the user."""
    decide = deciding.choose_server
    is_deciding, has_decided = Event(), Event()

    def read_under_another_lag() -> str:
        with use_replica(max_lag=3600.0):
            return route()

    def action(request: Any) -> list[str]:
        def decide_among_others(case: Any, floor: Any) -> Any:
            if case.max_lag == 3600.0:
                is_deciding.set()
                assert has_decided.wait(30)
            elif not others:
                request.user = ann
                others.append(pool.submit(copy_context().run, read_under_another_lag))
                assert is_deciding.wait(30)
            return decide(case, floor)

        others: list[Any] = []
        monkeypatch.setattr(usual.Usual, "choose", lambda *args: None)
        monkeypatch.setattr(deciding, "choose_server", decide_among_others)
        first = route()
        has_decided.set()
        return [first, others[0].result(), route()]

    with paused(cluster), ThreadPoolExecutor(1) as pool:
        write_as(ann)
        try:
            first, *later = in_request(action)
        finally:
            has_decided.set()
            pool.submit(close_connections).result()
    assert is_replica(first)
    assert later == ["default", "default"]


def test_a_choice_is_not_followed_that_another_thread_has_changed_since_it_was_looked_at(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """By then nothing more was known of the reader; a moment later the other has found him."""
    original = deciding.holds
    others: list[str] = []

    def action(request: Any) -> str:
        assert is_replica(route())

        def held_before_another_decides(*args: Any) -> bool:
            held = original(*args)
            if not others:
                request.user = ann
                others.append("")
                others.append(in_thread(route)[1])
                assert held
            return held

        monkeypatch.setattr(deciding, "holds", held_before_another_decides)
        present = current_scope()
        assert present is not None
        present.shortcuts.clear()
        return route()

    with paused(cluster):
        write_as(ann)
        assert in_request(action) == "default"
    assert others == ["", "default"]


def test_moving_to_the_primary_ends_those_of_threads_that_have_read_meanwhile(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """One read on between the answer of the token store and what was made of it."""
    floor_of = floors._floor_of
    others: list[str] = []

    def action(request: Any) -> tuple[str, str]:
        assert is_replica(route_by_shortcut())
        request.user = ann
        run = copy_context().run

        def floor_after_another_has_read(*args: Any) -> Any:
            others.append(pool.submit(run, route_by_shortcut).result())
            return floor_of(*args)

        monkeypatch.setattr(floors, "_floor_of", floor_after_another_has_read)
        here = route()
        return here, pool.submit(run, route).result()

    with paused(cluster), ThreadPoolExecutor(1) as pool:
        write_as(ann)
        try:
            assert in_request(action) == ("default", "default")
        finally:
            pool.submit(close_connections).result()
    assert len(others) == 1


def test_threads_that_would_rather_have_no_replica_than_the_primary_decide_anew_at_once(
    cluster: Cluster,
) -> None:
    """Each of them drops the decision for the primary, and one of them finds it gone."""

    class Vanishing(dict[float, Choice]):
        def get(self, lag: float, default: Any = None) -> Any:
            return super().pop(lag, default)

    wait_until_known(cluster)
    with scope(), use_replica(max_lag=9.0, on_stale="raise"):
        present = current_scope()
        assert present is not None
        late = Choice(Decision("default", Reason.LAGGING), None, None)
        present.cluster("default").route.choices = Vanishing({9.0: late})
        assert is_replica(route())


def test_a_user_found_by_two_threads_ends_it(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """One of them has loaded his token before the other has looked whether it was there already."""
    is_covered = RequestIdentity._is_covered

    def is_covered_meanwhile(self: Any, key: str) -> bool:
        in_thread(current_token)
        return is_covered(self, key)

    put = partial(monkeypatch.setattr, RequestIdentity, "_is_covered", is_covered_meanwhile)
    assert route_when_found(ann, cluster, put) == "default"


def test_a_shortcut_that_was_dropped_is_not_followed_because_another_thread_has_one(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """That one has decided anew since."""
    users = RequestIdentity.users
    others: list[str] = []

    def users_before_another_reads(self: Any) -> Any:
        found = users(self)
        if not others:
            others.append("")
            others.extend(in_thread(lambda: [route(), route()])[1])
        return found

    put = partial(monkeypatch.setattr, RequestIdentity, "users", users_before_another_reads)
    assert route_when_found(ann, cluster, put) == "default"
    assert others == ["", "default", "default"]


_read_meanwhile: list[Callable[[], str]] = []


def identify_slowly(request: HttpRequest) -> list[str]:
    """Name a reader, while another thread reads."""
    for read in _read_meanwhile:
        assert is_replica(read())
    return ["somebody"]


def test_a_reader_whom_the_site_names_ends_what_another_thread_has_decided_meanwhile(
    cluster: Cluster, settings: Any, monkeypatch: Patch
) -> None:
    """``IDENTITY`` was asked where a token left, say, and took its time."""
    settings.REPLICA_ROUTER = settings.REPLICA_ROUTER | {"IDENTITY": f"{__name__}.identify_slowly"}

    def write(request: HttpRequest) -> None:
        Tag.objects.create(name="of somebody")

    def action(request: Any) -> str:
        run = copy_context().run
        read = partial(pool.submit, run, route)
        monkeypatch.setattr(f"{__name__}._read_meanwhile", [lambda: read().result()])
        current_token()
        return read().result()

    with paused(cluster), ThreadPoolExecutor(1) as pool:
        in_request(write)
        try:
            assert in_request(action) == "default"
        finally:
            pool.submit(close_connections).result()


def test_the_user_whom_the_session_has_named_does_not_end_it(cluster: Cluster, ann: User) -> None:
    """His token came with the session's record, and is in the floor already."""

    def action(request: Any) -> str:
        first = route_by_shortcut()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ReplicaRouter, "_route", refuse)
            request.user = ann
            assert route() == first
        present = current_scope()
        assert present is not None
        assert present.identity.users()
        return first

    session = sign_in(ann).cookies["sessionid"].value
    wait_until_known(cluster)
    assert is_replica(in_request(action, sessionid=session))


# One question to the token store


def commands(cluster: Cluster) -> int:
    """Return how many commands the cache server has been sent by clients to read tokens."""
    assert cluster.cache is not None
    statistics = cluster.cache.command("INFO", "commandstats")
    # Of a script that it does not have yet it says so, and is sent it.
    return sum(
        int(values["calls"]) - int(values["failed_calls"])
        for name, values in statistics.items()
        if name in READING_COMMANDS
    )


READING_COMMANDS = {"cmdstat_mget", "cmdstat_evalsha", "cmdstat_eval"}


def test_session_and_user_cost_one_question(
    cluster: Cluster, ann: User, monkeypatch: Patch
) -> None:
    """The first time, when the session's record names its user, and each time after."""
    browser = sign_in(ann)
    wait_until_known(cluster)  # else the primary answers, and what it shows is remembered
    asked: list[int] = []
    original = floors.get_store

    def get_store(alias: str) -> Any:
        asked.append(1)
        return original(alias)

    monkeypatch.setattr(floors, "get_store", get_store)
    for _ in range(2):
        asked.clear()
        before = commands(cluster)
        browser.get("/")
        assert len(asked) == 1
        # A script counts the MGET that it runs itself.
        assert commands(cluster) - before <= 2
        assert commands(cluster) - before >= 1


def test_nobody_in_particular_asks_once_in_a_while(cluster: Cluster, monkeypatch: Patch) -> None:
    """Visitors without a session share one question a second."""
    now = [time.monotonic()]
    # Not in the module of that name, by which other threads go as well.
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time)
    monkeypatch.setattr(floors, "time", clock)
    floors.forget_everybody()
    before = commands(cluster)
    for _ in range(5):
        assert is_replica(in_request(lambda request: route()))
    assert commands(cluster) - before == 1
    now[0] += floors.EVERYBODY_SECONDS + 0.01
    assert is_replica(in_request(lambda request: route()))
    assert commands(cluster) - before == 2


def test_the_last_app_of_a_migration_waits(cluster: Cluster, monkeypatch: Patch) -> None:
    """Afterwards no process goes by an older record for everybody."""
    waited: list[float] = []
    monkeypatch.setattr(receivers, "is_under_test", lambda: False)
    monkeypatch.setattr(receivers, "time", SimpleNamespace(sleep=waited.append))
    configs = [config for config in receivers.apps.get_app_configs() if config.models_module]
    for config in configs:
        receivers.on_post_migrate(sender=config, using="default", plan=[object()])
    assert waited == [floors.EVERYBODY_SECONDS]


# Negative controls


def without_atomic_replicas(patch: Patch) -> None:
    patch.setattr(routers, "replicas_in_transaction", frozenset())


def without_news(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "has_news", lambda self: self._size < 0)


def keep_shortcuts_of_users(patch: Patch) -> None:
    original = RequestIdentity.users

    def users(self: Any) -> Any:
        kept, self.shortcuts = self.shortcuts, None
        try:
            return original(self)
        finally:
            self.shortcuts = kept

    patch.setattr(RequestIdentity, "users", users)


def take_everybody_for_known(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "_is_covered", lambda self, key: True)


def take_nobody_for_known(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "_is_covered", lambda self, key: False)


def keep_models(patch: Patch) -> None:
    class Everything(set[Any]):
        def __contains__(self, model: object) -> bool:
            return True

    original = reads.Shortcut

    def shortcut(alias: str, connection: Any, idle: Any, models: Any, identity: Any) -> Any:
        return original(alias, connection, idle, Everything(), identity)

    patch.setattr(reads, "Shortcut", shortcut)


def share_among_threads(patch: Patch) -> None:
    for module in (context, routers):
        patch.setattr(module, "here", SimpleNamespace(thread=1))


class _ByNumber:
    thread = property(lambda self: get_ident())


def tell_threads_by_number(patch: Patch) -> None:
    for module in (context, routers):
        patch.setattr(module, "here", _ByNumber())


def keep_after_writes(patch: Patch) -> None:
    def add_write(self: Any, mark: Any) -> None:
        kept = dict(self.shortcuts)
        original(self, mark)
        self.shortcuts.update(kept)

    original = context.ClusterScope.add_write
    patch.setattr(context.ClusterScope, "add_write", add_write)


def keep_among_blocks(patch: Patch) -> None:
    original = context.Frame.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.shortcuts = None if self.scope is None else self.scope.shortcuts

    patch.setattr(context.Frame, "__init__", init)


CONTROLS = [
    (without_atomic_replicas, test_a_transaction_on_a_replica_suspends_it, {}),
    (without_news, test_a_user_who_becomes_known_ends_it, {"way": "set"}),
    (without_news, test_a_user_who_becomes_known_ends_it, {"way": "replaced"}),
    (without_news, test_a_user_who_becomes_known_ends_it, {"way": "lazy"}),
    (without_news, test_a_user_who_becomes_known_ends_it, {"way": "session"}),
    (without_news, test_a_user_who_becomes_known_ends_it, {"way": "cached"}),
    (keep_shortcuts_of_users, test_a_user_found_by_somebody_else_ends_it, {}),
    (take_everybody_for_known, test_a_user_found_by_somebody_else_ends_it, {}),
    (go_by_the_floor_that_was_loaded, test_a_user_whose_token_has_left_ends_it, {}),
    (go_by_the_floor_that_was_loaded, test_a_key_whose_token_has_left_ends_it, {}),
    (
        go_by_the_floor_that_was_loaded,
        test_an_object_is_not_read_again_by_what_was_decided_before,
        {},
    ),
    (
        go_by_the_floor_that_was_loaded,
        test_nobody_follows_it_while_another_thread_decides_by_more,
        {},
    ),
    (take_nobody_for_known, test_the_user_whom_the_session_has_named_does_not_end_it, {}),
    (keep_models, test_a_changed_setting_ends_it, {}),
    (keep_models, test_another_router_ends_it, {}),
    (share_among_threads, test_it_is_no_other_threads, {}),
    (tell_threads_by_number, test_it_is_not_left_to_the_next_thread_of_that_number, {}),
    (keep_after_writes, test_a_write_ends_it, {}),
    (keep_among_blocks, test_use_primary_and_use_replica_stand_above_it, {}),
]


def name_of(control: Any) -> str:
    """Return what tells a control from the others."""
    take_out, test, arguments = control
    return "-".join([take_out.__name__, test.__name__.removeprefix("test_"), *arguments.values()])


@pytest.mark.parametrize("control", CONTROLS, ids=name_of)
def test_the_test_of_a_rule_fails_without_the_rule(
    control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]],
    cluster: Cluster,
    ann: User,
) -> None:
    """A test that cannot fail would prove nothing."""
    take_out, test, arguments = control
    names = test.__code__.co_varnames[: test.__code__.co_argcount]
    with pytest.MonkeyPatch.context() as patch:
        given = {"cluster": cluster, "ann": ann, "monkeypatch": patch} | arguments
        take_out(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test(**{name: given[name] for name in names})
