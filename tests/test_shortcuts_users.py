"""What was decided before is dropped where it turns out who the reader is, whichever thread finds that out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from threading import Event
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from django_replica_router import (
    current_scope,
    current_token,
    scope,
    see,
    track,
    use_replica,
)
from django_replica_router.policy import Decision, Reason
from django_replica_router.recording import floors
from django_replica_router.routers import ReplicaRouter
from django_replica_router.routing import deciding, usual
from django_replica_router.scopes.cluster import Choice
from django_replica_router.scopes.identity import RequestIdentity
from testproject.cluster import Cluster
from testproject.notes.models import Tag
from tests.conftest import PATIENT, forget_the_server, wait_until_known
from tests.controls import fail_without, go_by_the_floor_that_was_loaded
from tests.shortcuts import (
    close_connections,
    in_request,
    in_thread,
    is_replica,
    paused,
    refuse,
    route,
    route_by_shortcut,
    route_when_found,
    write_as,
)
from tests.site import sign_in

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch


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


# Negative controls


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


CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
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
]


@pytest.mark.parametrize(
    "control", CONTROLS, ids=[f"{c[0].__name__}-{n}" for n, c in enumerate(CONTROLS)]
)
def test_the_test_of_a_rule_fails_without_the_rule(
    control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    """A test that cannot fail would prove nothing."""
    fail_without(*control, request, AssertionError)
