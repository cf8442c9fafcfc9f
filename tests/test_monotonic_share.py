"""What a reader has seen, not written, is given up where the primary's share of such reads is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest
from django.test import Client

from django_replica_router import pop_stats, scope, use_primary, use_replica
from django_replica_router.conf import Config, get_config
from django_replica_router.errors import ReplicasLagError
from django_replica_router.policy import ReplicaState
from django_replica_router.recording import finishing
from django_replica_router.recording.writes import store_for_everybody
from django_replica_router.replicas.registry import find_monitor
from django_replica_router.routing import candidates, deciding, search
from django_replica_router.routing.budget import Budget
from django_replica_router.routing.search import Search
from django_replica_router.scopes.identity import user_key
from django_replica_router.scopes.keys import store_key
from django_replica_router.stores import scripts
from django_replica_router.stores.store import get_store
from django_replica_router.values.tokens import NOWHERE, Position, Record
from testproject.cluster import Cluster
from testproject.notes.models import Note
from tests import test_eviction
from tests.conftest import PATIENT, renew_store, stand_still, wait_until
from tests.controls import fail_without
from tests.helpers import Served
from tests.site import sign_in, visit
from tests.test_eviction import dropping, redis  # noqa: F401 - fixtures
from tests.test_monotonic import WAYS, by_somebody_else, note, title  # noqa: F401 - a fixture
from tests.written import record_of, session_record_of, wrote

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch

SPENT = {**PATIENT, "MONOTONIC_SHARE": 0}
STRICT = {**PATIENT, "MONOTONIC_SHARE": 1}


def allot(patch: Patch, free: int) -> None:
    """Let so many reads go to the primary, and, with a share of 0, no more."""
    budget = Budget(clock=lambda: 0.0, free=free)
    patch.setattr(deciding, "monotonic_budget", budget)
    patch.setattr(search, "monotonic_budget", budget)


@pytest.fixture
def spent(settings: Any, monkeypatch: Patch) -> None:
    """The share of reads that may go to the primary for what was seen is spent."""
    settings.REPLICA_ROUTER = SPENT
    allot(monkeypatch, 0)


@pytest.fixture
def ahead(ann: User, note: Note, cluster: Cluster) -> Client:  # noqa: F811
    """Ann's browser, which has seen on the primary what no replica has."""
    browser = sign_in(ann)
    stand_still(cluster)
    assert visit(browser, title) == "old"
    by_somebody_else(cluster, "new")
    assert visit(browser, use_primary(title)) == "new"
    return browser


def rename(request: HttpRequest) -> None:
    """Give the one note another title, by whoever is signed in."""
    assert request.user.is_authenticated
    Note.objects.update(title="mine")


# What yields, and how much of it -----------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_was_seen_yields_where_the_share_is_spent(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
    spent: None,
    way: Any,
) -> None:
    """The read is served by the usual replica, which has all that its reader has written."""
    browser = sign_in(ann)
    stand_still(cluster)
    by_somebody_else(cluster, "new")
    assert way(browser) == "new"
    pop_stats()
    for _ in range(3):
        assert visit(browser, title) == "old"
    assert pop_stats()["reads_yielded"] == 3


def test_with_a_share_of_1_nothing_yields(ahead: Client, settings: Any, monkeypatch: Patch) -> None:
    """Then no budget is asked: the primary serves for as long as no replica has what was seen."""
    settings.REPLICA_ROUTER = STRICT
    allot(monkeypatch, 0)
    pop_stats()
    for _ in range(3):
        assert visit(ahead, title) == "new"
    assert "reads_yielded" not in pop_stats()


def test_within_the_share_the_primary_serves(
    ahead: Client, settings: Any, monkeypatch: Patch
) -> None:
    """What is granted whatever the share comes first."""
    settings.REPLICA_ROUTER = SPENT
    allot(monkeypatch, 3)
    assert [visit(ahead, title) for _ in range(5)] == ["new"] * 3 + ["old"] * 2


def test_the_share_is_one_of_all_decisions(
    ahead: Client, settings: Any, monkeypatch: Patch
) -> None:
    """Beyond what is free, one read of so many."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_SHARE": 0.25}
    allot(monkeypatch, 0)
    served = [visit(ahead, title) for _ in range(9)]
    assert served == ["old", "new", "old", "old", "old", "new", "old", "old", "old"]


def test_yielding_lowers_nothing_that_is_stored(
    ahead: Client, ann: User, settings: Any, monkeypatch: Patch, spent: None
) -> None:
    """With room in the share again, the primary shows what was seen before."""
    before = record_of(ann), session_record_of(ahead)
    assert visit(ahead, title) == "old"
    assert (record_of(ann), session_record_of(ahead)) == before
    allot(monkeypatch, 1)
    assert visit(ahead, title) == "new"


@pytest.mark.parametrize(("share", "version"), [(0.05, "3"), (1, "2")])
def test_what_was_seen_is_stored_apart_where_it_may_yield(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
    settings: Any,
    share: float,
    version: str,
) -> None:
    """With a share of 1 a record has the form that earlier versions read as well."""
    settings.REPLICA_ROUTER = {**PATIENT, "MONOTONIC_SHARE": share}
    browser = sign_in(ann)
    before = wrote(ann)
    by_somebody_else(cluster, "new")
    visit(browser, use_primary(title))
    record = wrote(ann)
    assert record.encode()[0] == version
    assert record.token > before.token
    assert (record.position > before.position) is (share == 1)


# What never yields -------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["the same", "another"])
def test_what_was_written_never_yields(
    ahead: Client, ann: User, cluster: Cluster, spent: None, device: str
) -> None:
    """Also where something newer was seen since."""
    other = sign_in(ann)
    visit(ahead, rename, "post")
    by_somebody_else(cluster, "newest")
    assert visit(ahead, use_primary(title)) == "newest"
    pop_stats()
    for _ in range(3):
        assert visit(ahead if device == "the same" else other, title) == "newest"
    assert "reads_yielded" not in pop_stats()


def test_a_write_of_before_does_not_hinder(ahead: Client, cluster: Cluster, spent: None) -> None:
    """Once a replica has that, what was seen since yields."""
    visit(ahead, rename, "post")
    for replica in cluster.replicas:
        replica.resume()
    stand_still(cluster)
    by_somebody_else(cluster, "newest")
    assert visit(ahead, use_primary(title)) == "newest"
    assert visit(ahead, title) == "mine"


def test_what_binds_everybody_never_yields(ahead: Client, spent: None) -> None:
    """As a migration: who reads without it reads from tables that are not there."""
    assert visit(ahead, title) == "old"
    store_for_everybody("default", get_config(), None)
    assert visit(ahead, title) == "new"


def test_a_dropped_record_counts_as_written(
    ann: User,
    dropping: Cluster,  # noqa: F811
    redis: Any,  # noqa: F811
    spent: None,
) -> None:
    """One that is made by a request which has only seen something takes its place."""
    browser = test_eviction.who_has_written(ann, dropping)
    test_eviction.drop_tokens(redis)
    visit(browser, lambda request: str(request.user), "post")
    assert test_eviction.tokens(redis)
    assert visit(browser, test_eviction.read) == ["mine"]


def test_who_was_missed_has_written_up_to_then(
    ann: User,
    dropping: Cluster,  # noqa: F811
    redis: Any,  # noqa: F811
    spent: None,
) -> None:
    """Also where another process has made a record meanwhile that tells of less."""
    browser = test_eviction.who_has_written(ann, dropping)
    test_eviction.drop_tokens(redis)
    low = Record(Position(1, 1), 1 << 42)

    def action(request: HttpRequest) -> None:
        assert test_eviction.read(request) == ["mine"]
        keys = [store_key("default", user_key(ann)), *map(_stored, test_eviction.tokens(redis))]
        get_store("default").merge(dict.fromkeys(keys, low), dict.fromkeys(keys, 60.0))

    visit(browser, action)
    assert wrote(ann).position > low.position
    assert visit(browser, test_eviction.read) == ["mine"]


def _stored(key: bytes) -> str:
    return key.decode().removeprefix(":1:")


@pytest.mark.parametrize("engine", ["signed_cookies", "cache"])
def test_a_new_session_stands_for_what_was_written_under_the_old_one(
    note: Note,  # noqa: F811
    cluster: Cluster,
    settings: Any,
    spent: None,
    engine: str,
) -> None:
    """Also where the request that changes the key has seen something, and written nothing."""
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{engine}"
    stand_still(cluster)
    browser = Client()

    def write(request: HttpRequest) -> None:
        request.session["basket"] = [1]
        Note.objects.update(title="mine")

    def change_key(request: HttpRequest) -> str:
        request.session["basket"] = [1, 2]
        request.session.cycle_key()
        with use_primary():
            return Note.objects.get().title

    def read(request: HttpRequest) -> str:
        return Note.objects.get().title

    visit(browser, write, "post")
    assert visit(browser, change_key) == "mine"
    assert visit(browser, read) == "mine"


# One request, one usual replica ------------------------------------------------------------------


def test_a_request_does_not_go_back_in_time(
    ahead: Client, settings: Any, monkeypatch: Patch
) -> None:
    """What it has read on the primary under one lag, a replica under another must have."""
    settings.REPLICA_ROUTER = SPENT
    allot(monkeypatch, 1)

    def twice(request: HttpRequest) -> list[str]:
        with use_replica(max_lag=3600.0):
            before = title(request)
        return [before, Note.objects.get().title]

    assert visit(ahead, twice) == ["new", "new"]
    assert visit(ahead, twice) == ["old", "old"]


def test_a_request_whose_user_is_found_late_stays_on_its_replica(
    ahead: Client, ann: User, spent: None
) -> None:
    """It lacks what the user has seen, and not what the user has written."""

    def late(request: HttpRequest) -> list[str]:
        before = Note.objects.get()
        request.user = ann
        after = Note.objects.get()
        return [before.title, str(before._state.db), after.title, str(after._state.db)]

    pop_stats()
    before, before_db, after, after_db = visit(Client(), late)
    assert (before, after) == ("old", "old")
    assert before_db == after_db != "default"
    assert pop_stats()["reads_yielded"] == 1


@pytest.mark.hangs
def test_what_was_seen_where_a_reader_yielded_to_another_replica_is_not_taken_back(
    ann: User,
    note: Note,  # noqa: F811
    cluster: Cluster,
    served: Served,
    settings: Any,
    monkeypatch: Patch,
) -> None:
    """It may be more than the usual one shows when that comes back."""
    browser = sign_in(ann)
    stand_still(cluster)
    visit(browser, title)
    (usual,) = served.aliases("notes_note") - {"default"}
    mine, other = sorted(cluster.replicas, key=lambda replica: replica.name != usual)
    by_somebody_else(cluster, "new")
    other.resume()
    other.wait_replayed(cluster.primary.flush())
    other.pause()
    by_somebody_else(cluster, "newest")
    monitor = find_monitor("default")
    assert monitor is not None
    settings.REPLICA_ROUTER = SPENT
    allot(monkeypatch, 0)

    def serves() -> bool:
        return monitor.known.readings[usual].state is ReplicaState.STREAMING

    mine.suspend()
    try:
        wait_until(lambda: not serves(), "its silence to be noticed")
        assert visit(browser, title) == "new"
    finally:
        mine.resume_process()
    wait_until(serves, "it to be known again")
    settings.REPLICA_ROUTER = STRICT
    assert visit(browser, title) in {"new", "newest"}


# Beside the share of the primary in all reads ------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 1])
def test_who_may_yield_is_not_refused(
    ahead: Client, ann: User, settings: Any, monkeypatch: Patch, share: float
) -> None:
    """Where PRIMARY_SHARE is used up, a replica that has what was written serves, if one may."""
    settings.REPLICA_ROUTER = {**PATIENT, "PRIMARY_SHARE": 0, "MONOTONIC_SHARE": share}
    allot(monkeypatch, 100)
    monkeypatch.setattr(search, "primary_budget", Budget(free=0))
    with scope(user=ann):
        if share < 1:
            assert Note.objects.get().title == "old"
        else:
            with pytest.raises(ReplicasLagError):
                Note.objects.get()


def test_the_share_is_for_those_who_are_known(cluster: Cluster, spent: None) -> None:
    """A task names its user, and yields as a request does."""
    ann = User.objects.create_user("bob")
    with scope(user=ann):
        Note.objects.create(owner=ann, title="old")
    stand_still(cluster)
    by_somebody_else(cluster, "new")
    with scope(user=ann), use_primary():
        assert Note.objects.get().title == "new"
    with scope(user=ann):
        assert Note.objects.get().title == "old"


# The controls ------------------------------------------------------------------------------------


def never_yield(patch: Patch) -> None:
    init = Config.__post_init__

    def make(self: Config) -> None:
        init(self)
        self.__dict__["yields"] = False

    patch.setattr(Config, "__post_init__", make)
    patch.setitem(get_config().__dict__, "yields", False)


def ask_no_budget(patch: Patch) -> None:
    patch.setattr(Budget, "grant", lambda self, share: False)


def yield_to_any_replica(patch: Patch) -> None:
    choose = candidates.choose_yielding
    patch.setattr(
        candidates, "choose_yielding", lambda ranked, written, lag: choose(ranked, NOWHERE, lag)
    )


def take_writes_for_seen(patch: Patch) -> None:
    record: Callable[..., Record] = finishing._record
    patch.setattr(
        finishing,
        "_record",
        lambda position, config, **more: record(position, config, is_seen=True),
    )


def take_what_was_dropped_for_nothing(patch: Patch) -> None:
    script = scripts.MERGE.replace("(old or ARGV[#ARGV] == '1')", "old")
    assert script != scripts.MERGE
    patch.setattr(scripts, "MERGE", script)
    renew_store()


def yield_whatever_was_read_before(patch: Patch) -> None:
    init = Search.__init__

    def yielding(self: Search, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        self._target = self._target._replace(written=NOWHERE)

    patch.setattr(Search, "__init__", yielding)


def forget_where_it_was_seen(patch: Patch) -> None:
    patch.setattr(finishing, "locate_seen", lambda *args: NOWHERE)


CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
    *(
        (never_yield, test_what_was_seen_yields_where_the_share_is_spent, {"way": way})
        for way in WAYS.values()
    ),
    (ask_no_budget, test_within_the_share_the_primary_serves, {}),
    (ask_no_budget, test_the_share_is_one_of_all_decisions, {}),
    (never_yield, test_yielding_lowers_nothing_that_is_stored, {}),
    *(
        (take_out, test_what_was_written_never_yields, {"device": device})
        for take_out in (yield_to_any_replica, take_writes_for_seen)
        for device in ("the same", "another")
    ),
    (never_yield, test_a_write_of_before_does_not_hinder, {}),
    (yield_to_any_replica, test_what_binds_everybody_never_yields, {}),
    (take_what_was_dropped_for_nothing, test_a_dropped_record_counts_as_written, {}),
    (take_writes_for_seen, test_who_was_missed_has_written_up_to_then, {}),
    *(
        (
            take_writes_for_seen,
            test_a_new_session_stands_for_what_was_written_under_the_old_one,
            {"engine": engine},
        )
        for engine in ("signed_cookies", "cache")
    ),
    (yield_whatever_was_read_before, test_a_request_does_not_go_back_in_time, {}),
    (never_yield, test_a_request_whose_user_is_found_late_stays_on_its_replica, {}),
    (
        forget_where_it_was_seen,
        test_what_was_seen_where_a_reader_yielded_to_another_replica_is_not_taken_back,
        {},
    ),
    (never_yield, test_who_may_yield_is_not_refused, {"share": 0.5}),
    (never_yield, test_the_share_is_for_those_who_are_known, {}),
]


@pytest.mark.hangs
@pytest.mark.parametrize(
    "control", CONTROLS, ids=[f"{c[0].__name__}-{n}" for n, c in enumerate(CONTROLS)]
)
def test_the_test_of_a_rule_fails_without_the_rule(
    control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    """A test that cannot fail would prove nothing."""
    fail_without(*control, request)
