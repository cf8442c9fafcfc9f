"""Blocks of requests that come another way in or know several primaries, and the negative controls of all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest
from django.test import AsyncClient

from django_replica_router import policy, scope
from django_replica_router.connections import cursors, leading, on_primary
from django_replica_router.recording import stale_saves, writes
from django_replica_router.replicas.registry import stop_monitors
from django_replica_router.routing import reads
from django_replica_router.transactions import atomic_requests, postponing
from django_replica_router.transactions import blocks as transactions
from testproject.cluster import Cluster
from testproject.notes.models import Note, Tag
from tests import site, test_atomic_blocks, test_atomic_reads, test_atomic_requests
from tests.atomic_requests import (  # noqa: F401 - fixtures
    ABOVE,
    BLOCKS,
    TAKING,
    UNNOTICED,
    BlockAround,
    BlockBefore,
    BlockInstead,
    Control,
    Patch,
    atomic,
    closed,
    edited,
    in_block,
    own_block,
    reconnecting,
    run,
    show,
    title,
)
from tests.backend import DJANGO
from tests.conftest import stand_still, wait_until, wait_until_known
from tests.controls import fail_without
from tests.site import avisit, sign_in

# ruff: noqa: F811 - fixtures are arguments of the same name

pytestmark = pytest.mark.usefixtures("atomic")


# Other ways in


def test_sync_views_under_asgi_read_from_a_replica(edited: Note) -> None:
    """The block is opened in the thread of the view."""
    view = in_block(lambda: [title(), own_block(title), title()])
    assert run(lambda: avisit(AsyncClient(), view, url="/run/")) == ["first", "NEW", "first"]


def test_async_views_are_django_s_own_business(edited: Note, monkeypatch: Patch) -> None:
    """It refuses them, unless they are marked."""

    async def action(request: HttpRequest) -> str:
        assert not connection.in_atomic_block
        return (await Note.objects.aget()).title

    with pytest.raises(RuntimeError, match="You cannot use ATOMIC_REQUESTS with async views"):
        run(lambda: avisit(AsyncClient(), action))
    monkeypatch.setattr(site.arun, "_non_atomic_requests", {"default"}, raising=False)
    assert run(lambda: avisit(AsyncClient(), action)) == "first"


def test_a_replica_s_own_setting_opens_no_block(
    ann: User, note: Note, cluster: Cluster, monkeypatch: Patch
) -> None:
    """It is copied from the primary's dict as a rule, and would keep every read there."""
    for alias in ("replica1", "replica2"):
        monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
    browser = sign_in(ann)
    wait_until_known(cluster)
    stand_still(cluster)
    show(lambda: Note.objects.update(title="mine") and None, browser, method="post")

    def action() -> list[Any]:
        blocks = [connections[alias].in_atomic_block for alias in ("replica1", "replica2")]
        return [title(), *blocks]

    assert show(action, browser) == ["mine", False, False]


# Several primaries


@pytest.fixture
def archive(cluster: Cluster, settings: Any, monkeypatch: Patch) -> Iterator[None]:
    """Another primary with a replica of its own, where tags are kept. (The same servers by other names.)"""
    for alias, origin in (("archive", "default"), ("archived", "replica2")):
        connections.settings[alias] = {**connections.settings[origin], "ATOMIC_REQUESTS": False}
    connections.settings["archive"]["ATOMIC_REQUESTS"] = True
    clusters = {"default": ["replica1"], "archive": ["archived"]}
    settings.REPLICA_ROUTER = {**settings.REPLICA_ROUTER, "CLUSTERS": clusters}
    monkeypatch.setattr(router, "routers", [*router.routers, TagsInArchive()])
    yield
    stop_monitors()
    for alias in ("archive", "archived"):
        connections[alias].close()
        del connections[alias], connections.settings[alias]


class TagsInArchive:
    """Has tags in another database."""

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return "archive" if model is Tag else None

    db_for_write = db_for_read


@pytest.mark.usefixtures("archive")
def test_each_primary_has_a_block_of_its_own(note: Note) -> None:
    """What is done in one keeps no read in the other."""

    def where() -> list[str]:
        with scope():
            return [Note.objects.all().db, Tag.objects.all().db]

    free = ["replica1", "archived"]
    wait_until(lambda: where() == free, "both clusters to be known")

    def action() -> list[Any]:
        found = [Note.objects.all().db, Tag.objects.all().db]
        assert len(connections["archive"].atomic_blocks) == 1
        Note.objects.select_for_update().get()
        found += [Note.objects.all().db, Tag.objects.all().db]
        with transaction.atomic(using="archive"):
            found.append(Tag.objects.all().db)
        return found

    assert show(action) == [*free, "default", "archived", "archive"]


# Negative controls


def keep_in_every_block(patch: Patch) -> None:
    """Take out that the handler's block is told from others."""
    patch.setattr(atomic_requests, "_note_block", lambda connection: None)


def keep_in_no_block(patch: Patch) -> None:
    """Take out that any block keeps reads."""
    for module in (reads, leading):
        patch.setattr(module, "keeps_reads", lambda connection: False)


def keep_in_inner_blocks(patch: Patch) -> None:
    """Take every block that is alone for the handler's."""
    for module in (reads, leading):
        patch.setattr(module, "keeps_reads", lambda connection: len(connection.atomic_blocks) > 1)


def take_all_blocks_for_one(patch: Patch) -> None:
    """Take out that the handler's block must be the only one."""

    def note_block(connection: Any) -> None:
        transactions.idle_blocks(connection)[:] = connection.atomic_blocks

    patch.setattr(atomic_requests, "_note_block", note_block)


def believe_every_block(patch: Patch) -> None:
    """Take out that a block must be known."""
    patch.setattr(transactions, "_NONE", ())
    cast(Any, connections["default"]).idle_blocks.clear()


def idle_for_ever(patch: Patch) -> None:
    """Take out that something in the block keeps its reads."""
    for module in (on_primary, writes, cursors):
        patch.setattr(module, "end_idling", lambda connection: None)


def remember_idle_blocks(patch: Patch) -> None:
    """Take out that a shortcut learns of the end, and nothing else looks."""
    patch.setattr(leading, "keeps_reads", lambda connection: False)
    patch.setattr(reads, "idle_blocks", lambda connection: list(connection.atomic_blocks))


def promise_nothing(patch: Patch) -> None:
    """Take out the isolation level."""
    patch.setattr(atomic_requests, "_is_read_committed", lambda connection: True)


def know_the_servers_level(patch: Patch) -> None:
    """Take out the question for it."""
    patch.setattr(atomic_requests, "_default_level", lambda alias, raw: "read committed")


def see_no_settings(patch: Patch) -> None:
    """Take out that the code may have set the level of a session."""
    patch.setattr(atomic_requests, "sets_isolation", lambda connection: False)


def compare_no_positions(patch: Patch) -> None:
    """Take out that a replica must have what its reader has written."""

    def may_serve(replica: Any, floor: Any, max_lag: Any) -> bool:
        return replica.state is policy.ReplicaState.STREAMING

    patch.setattr(policy, "may_serve", may_serve)


def with_the_rule_of_before(*modules: Any) -> Callable[[Patch], None]:
    """Return what has modules take the handler's block for any other."""

    def take_out(patch: Patch) -> None:
        for module in modules:
            patch.setattr(module, "keeps_reads", lambda connection: connection.in_atomic_block)

    take_out.__name__ = "before_in_" + "_".join(m.__name__.rpartition(".")[2] for m in modules)
    return take_out


def open_where_named(patch: Patch) -> None:
    """Take out that a transaction by the alias of an object is the primary's."""
    patch.setattr(transaction, "get_connection", lambda using=None: connections[using or "default"])


def ask_at_rest_only(patch: Patch) -> None:
    """Take out that a position can be asked for in a transaction that has written nothing."""
    original = writes.wal.read_token
    patch.setattr(writes.wal, "read_token", lambda raw, in_transaction: original(raw))


def open_blocks_on_replicas(patch: Patch) -> None:
    """Take out that a replica gets no block."""
    topology = SimpleNamespace(clusters=["default"], is_replica=lambda alias: False)
    config = SimpleNamespace(ENABLED=True, topology=topology)
    patch.setattr(atomic_requests, "get_config", lambda: config)


def forget_the_block(patch: Patch) -> None:
    """Take out that a block survives its connection's being opened."""
    patch.setattr(postponing, "_BLOCK", ("in_atomic_block", "atomic_blocks"))


def close_what_was_opened_for_a_moment(patch: Patch) -> None:
    """Take out that a connection that the block needs is not closed by who opens it."""
    opened = BaseDatabaseWrapper.temporary_connection
    patch.setattr(postponing._Postponing, "temporary_connection", opened)


def postpone_nothing(patch: Patch) -> None:
    """Take out that anything is put off."""
    patch.setattr(atomic_requests, "can_be_postponed", lambda connection: False)


CONTROLS: list[Control] = [
    (keep_in_every_block, test_atomic_requests.test_reads_in_the_handlers_block_go_to_replicas, {}),
    (keep_in_every_block, test_atomic_requests.test_a_repeated_decision_takes_the_shortcut, {}),
    (keep_in_every_block, test_sync_views_under_asgi_read_from_a_replica, {}),
    (compare_no_positions, test_atomic_requests.test_own_writes_are_seen, {}),
    (
        idle_for_ever,
        test_atomic_requests.test_a_write_in_the_block_is_seen_in_it,
        {"method": "get"},
    ),
    (
        idle_for_ever,
        test_atomic_requests.test_a_write_in_the_block_is_seen_in_it,
        {"method": "post"},
    ),
    (idle_for_ever, test_atomic_requests.test_a_read_that_fails_fails_the_block_as_ever, {}),
    *(
        (idle_for_ever, test_atomic_requests.test_what_runs_no_statement_of_djangos_counts, given)
        for write, expected in UNNOTICED.values()
        for given in [{"write": write, "expected": expected, "has_scope": False}]
    ),
    *(
        (
            take_out,
            test_atomic_requests.test_what_locks_or_sets_something_keeps_the_rest_on_the_primary,
            {"way": way},
        )
        for take_out in (idle_for_ever, remember_idle_blocks)
        for name, way in TAKING.items()
        if name not in {"advisory lock", "cursor"}  # which count as writes, too
    ),
    *(
        (
            keep_in_no_block,
            test_atomic_blocks.test_a_block_of_the_codes_own_keeps_reads,
            {"block": block},
        )
        for block in BLOCKS.values()
    ),
    (
        keep_in_inner_blocks,
        test_atomic_blocks.test_a_view_without_the_handlers_block_may_open_one,
        {},
    ),
    *(
        (
            take_out,
            test_atomic_blocks.test_a_block_of_a_middleware_keeps_reads,
            {"middleware": middleware},
        )
        for middleware, take_out in (
            (BlockAround, take_all_blocks_for_one),
            (BlockBefore, take_all_blocks_for_one),
            (BlockInstead, keep_in_inner_blocks),
        )
    ),
    (take_all_blocks_for_one, test_atomic_blocks.test_a_test_case_keeps_reads, {}),
    (
        take_all_blocks_for_one,
        test_atomic_blocks.test_a_site_without_autocommit_is_in_a_transaction_of_its_own,
        {},
    ),
    (believe_every_block, test_atomic_blocks.test_a_block_that_nobody_knows_keeps_reads, {}),
    *(
        (
            promise_nothing,
            test_atomic_blocks.test_a_higher_isolation_level_keeps_reads,
            {"level": v},
        )
        for v in ABOVE
    ),
    (
        know_the_servers_level,
        test_atomic_blocks.test_a_higher_isolation_level_of_the_server_keeps_reads,
        {},
    ),
    (
        see_no_settings,
        test_atomic_blocks.test_a_higher_isolation_level_of_the_session_keeps_reads,
        {},
    ),
    (
        see_no_settings,
        test_atomic_requests.test_a_connection_that_is_prepared_for_snapshots_keeps_reads,
        {},
    ),
    (know_the_servers_level, test_atomic_blocks.test_an_unknown_level_is_a_higher_one, {}),
    (keep_in_no_block, test_atomic_reads.test_queries_past_the_router_are_led, {}),
    (
        open_where_named,
        test_atomic_reads.test_a_deletion_sent_to_a_replica_is_a_part_of_the_block,
        {},
    ),
    (
        with_the_rule_of_before(stale_saves),
        test_atomic_reads.test_a_view_that_saves_what_it_read_is_learned,
        {},
    ),
    (
        with_the_rule_of_before(writes),
        test_atomic_reads.test_a_scope_inside_a_view_remembers_what_it_has_seen,
        {},
    ),
    (
        with_the_rule_of_before(writes),
        test_atomic_reads.test_an_empty_store_is_told_from_inside_the_block,
        {"reads_before": False},
    ),
    (
        ask_at_rest_only,
        test_atomic_reads.test_an_empty_store_is_told_from_inside_the_block,
        {"reads_before": True},
    ),
    (open_blocks_on_replicas, test_a_replica_s_own_setting_opens_no_block, {}),
    (forget_the_block, test_atomic_requests.test_a_transaction_that_begins_late_is_the_blocks, {}),
    (
        close_what_was_opened_for_a_moment,
        test_atomic_requests.test_what_a_block_may_do_without_a_connection,
        {},
    ),
    (
        postpone_nothing,
        test_atomic_requests.test_a_health_check_is_made_where_it_is_needed,
        {"is_broken": False},
    ),
    (
        postpone_nothing,
        test_atomic_requests.test_a_connection_is_opened_where_it_is_needed,
        {"backend": DJANGO},
    ),
]


def name_of(number: int) -> str:
    """Return what a control takes out, and of which test."""
    take_out, test, _ = CONTROLS[number]
    return f"{number}-{take_out.__name__}-{test.__name__.removeprefix('test_')}"


@pytest.mark.parametrize("control", CONTROLS, ids=map(name_of, range(len(CONTROLS))))
def test_the_test_of_a_rule_fails_without_the_rule(
    control: Control, request: pytest.FixtureRequest
) -> None:
    """A test that cannot fail would prove nothing."""
    take_out, test, arguments = control
    for mark in getattr(test, "pytestmark", ()):
        if mark.name == "usefixtures":
            for name in mark.args:
                request.getfixturevalue(name)
    fail_without(take_out, test, arguments, request)
