"""What was decided before is followed, and dropped as soon as it may not hold any more."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import Thread, get_ident
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.test import Client, override_settings

from django_replica_router import (
    current_scope,
    routers,
    scope,
    use_primary,
    use_replica,
)
from django_replica_router.routers import ReplicaRouter
from django_replica_router.routing import choosing, reads, usual
from django_replica_router.scopes import scope as context
from django_replica_router.transactions import blocks as transactions
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests.conftest import wait_until_known
from tests.controls import fail_without
from tests.shortcuts import (
    close_connections,
    in_request,
    in_thread,
    is_replica,
    paused,
    refuse,
    route,
    route_by_shortcut,
)
from tests.site import sign_in, visit

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch


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


def test_it_is_not_left_to_the_next_thread_of_that_number(cluster: Cluster) -> None:
    """The operating system gives a number again: the new thread may be in a transaction."""

    def ask_in_transaction() -> str:
        with transaction.atomic():
            return route()

    # Whoever else starts a thread may have got the number, and may keep it: then another one is tried.
    for _ in range(20):
        with scope():
            before, alias = in_thread(route_by_shortcut)
            assert is_replica(alias)
            for _ in range(5):
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


# Negative controls


def without_atomic_replicas(patch: Patch) -> None:
    patch.setattr(routers, "replicas_in_transaction", frozenset())


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


CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
    (without_atomic_replicas, test_a_transaction_on_a_replica_suspends_it, {}),
    (keep_models, test_a_changed_setting_ends_it, {}),
    (keep_models, test_another_router_ends_it, {}),
    (share_among_threads, test_it_is_no_other_threads, {}),
    (tell_threads_by_number, test_it_is_not_left_to_the_next_thread_of_that_number, {}),
    (keep_after_writes, test_a_write_ends_it, {}),
    (keep_among_blocks, test_use_primary_and_use_replica_stand_above_it, {}),
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
