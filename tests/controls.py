"""Rules of the package, each to be taken out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections, transaction

from django_replica_router import middleware, policy
from django_replica_router.backends import mixin
from django_replica_router.conf import get_config
from django_replica_router.connections import (
    commits,
    leading,
    mending,
    on_primary,
    on_replica,
    read_only,
)
from django_replica_router.connections import connection as connection_class
from django_replica_router.connections.cursors import WatchedCursor
from django_replica_router.cqrs import Query
from django_replica_router.errors import StoreError
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.recording import finishing, floors, writes
from django_replica_router.recording.writes import store_for_everybody
from django_replica_router.replicas import attempts, connecting
from django_replica_router.replicas.attributes import Around
from django_replica_router.replicas.health import Health
from django_replica_router.routers import ReplicaRouter
from django_replica_router.routing import choosing, deciding, reads, search
from django_replica_router.routing.candidates import Candidates
from django_replica_router.routing.search import Search
from django_replica_router.scopes import keys
from django_replica_router.scopes.cluster import ClusterScope
from django_replica_router.scopes.identity import RequestIdentity
from django_replica_router.scopes.scope import Frame, Scope, current_scope
from django_replica_router.sql import standby, states, wal
from django_replica_router.status import metrics
from django_replica_router.stores import scripts
from django_replica_router.stores import store as stores
from django_replica_router.stores.redis import RedisServer
from django_replica_router.stores.store import RedisStore
from django_replica_router.values.tokens import NOWHERE, Floor, Position, Record
from tests.conftest import skip_where_pooled

Patch = pytest.MonkeyPatch


def without(**facts: Any) -> Callable[[Patch], None]:
    """Take out rules of the policy by hiding from it the facts that they look at."""

    def take_out(patch: Patch) -> None:
        original = policy.decide_at_once
        patch.setattr(reads, "decide_at_once", lambda s: original(s._replace(**facts)))

    take_out.__name__ = "without_" + "_".join(facts)
    return take_out


def read_tables_of_primary_anywhere(patch: Patch) -> None:
    without(primary_only=False)(patch)
    describe = on_replica.describe
    for name in ("describe", "describe_text"):
        patch.setattr(on_replica, name, lambda sql, tables: describe(sql, frozenset()))


def compare_nothing(patch: Patch) -> None:
    def may_serve(replica: Any, floor: Any, max_lag: Any) -> bool:
        return replica.state is ReplicaState.STREAMING

    patch.setattr(policy, "may_serve", may_serve)


def compare_nothing_at_once(patch: Patch) -> None:
    patch.setattr(Health, "may_serve", lambda *args: True)


def ignore_lag(patch: Patch) -> None:
    original = policy.may_serve
    patch.setattr(
        policy, "may_serve", lambda replica, floor, max_lag: original(replica, floor, float("inf"))
    )


def take_the_end_of_a_wait_for_success(patch: Patch) -> None:
    original = standby.wait_for_replay

    def wait(connection: Any, lsn: int, seconds: float) -> Any:
        return original(connection, lsn, seconds)._replace(replayed=lsn)

    patch.setattr(standby, "wait_for_replay", wait)


def take_position_too_early(patch: Patch) -> None:
    patch.setattr(wal, "parse_position", lambda row: Position(1, 1))


def store_for_no_user(patch: Patch) -> None:
    patch.setattr(finishing, "_writers", lambda *args: ())
    link_no_owner(patch)


def link_no_owner(patch: Patch) -> None:
    original = Record.decode

    def decode(value: object) -> Record | None:
        record = original(value)
        return record and record._replace(owner="")

    patch.setattr(Record, "decode", decode)
    patch.setattr(RequestIdentity, "_session_user", lambda self: None)


def ignore_early_session(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "session", lambda self: None)
    patch.setattr(RequestIdentity, "credential", lambda self: None)


def trust_unknown_sessions(patch: Patch) -> None:
    patch.setattr(deciding, "identifies_unknown_reader", lambda *args: False)


def trust_an_empty_store(patch: Patch) -> None:
    patch.setattr(choosing, "record_of_everybody", lambda *args: Record())


def find_everybody_by_any_key(patch: Patch) -> None:
    patch.setattr(keys, "remembered_digest", lambda *args: "")
    store_for_everybody("default", get_config(), None)


def trust_any_replica(patch: Patch) -> None:
    original = Search.__init__

    def init(self: Search, *args: Any, keeps_replica: bool, **options: Any) -> None:
        original(self, *args, keeps_replica=False, **options)

    patch.setattr(Search, "__init__", init)


def forget_what_was_seen(patch: Patch) -> None:
    patch.setattr(reads, "_UNSEEN", frozenset(Reason))


def leave_lost_connections(patch: Patch) -> None:
    patch.setattr(writes, "_replace_lost", lambda *args: None)


def replace_lost_connections_of_a_dead_primary(patch: Patch) -> None:
    patch.setattr(writes, "_replace_lost", lambda primary, connection: connection.close())


def take_store_errors_for_no_token(patch: Patch) -> None:
    original = deciding.load_floor

    def load_floor(*args: Any) -> Floor:
        try:
            return original(*args)
        except StoreError:
            return Floor()

    patch.setattr(deciding, "load_floor", load_floor)


def forget_late_users(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "users", lambda self: ())


def go_by_the_floor_that_was_loaded(patch: Patch) -> None:
    original = deciding.holds

    def holds(choice: Any, scope: Any, state: Any) -> bool:
        choice.floor = state.reader.floor
        return original(choice, scope, state)

    for module in (deciding, leading):
        patch.setattr(module, "holds", holds)


def forget_other_lags(patch: Patch) -> None:
    patch.setattr(choosing, "_has_met_another", lambda case: False)


def forget_choices(patch: Patch) -> None:
    original = reads.decide_by_token

    def decide(primary: str, connection: Any, model: Any, scope: Any, *args: Any) -> Any:
        scope.cluster(primary).route.choices.clear()
        return original(primary, connection, model, scope, *args)

    patch.setattr(reads, "decide_by_token", decide)
    patch.setattr(reads, "_shortcut_to", lambda *args: None)


def renew_budget(patch: Patch) -> None:
    original = Search._wait

    def wait(self: Search) -> Any:
        result = original(self)
        self.wait_left = 0.2
        return result

    patch.setattr(Search, "_wait", wait)


def never_wait(patch: Patch) -> None:
    patch.setattr(Search, "_wait", lambda self: None)


def ignore_timelines(patch: Patch) -> None:
    patch.setattr(choosing, "floor_reason", lambda floor, timeline: None)


def merge_by_plain_set(patch: Patch) -> None:
    def merge(self: Any, records: Any, lives: Any) -> None:
        for key, record in records.items():
            self._client.set(self._cache.make_key(key), record.encode())

    patch.setattr(stores.RedisStore, "_merge", merge)


def compare_by_the_locale(patch: Patch) -> None:
    script = re.sub(r"is_above\((\w+), (\w+)\) then", r"\1 > \2 then", scripts.MERGE)
    patch.setattr(scripts, "MERGE", script)


def observe_no_statement(patch: Patch) -> None:
    patch.setattr(on_primary, "might_write", lambda sql: False)


def mend_nothing(patch: Patch) -> None:
    for kind in (on_replica.OnReplica, on_replica.OnPooledReplica):
        patch.setattr(kind, "run", Around.run)


def lead_no_transaction(patch: Patch) -> None:
    patch.setattr(transaction, "get_connection", lambda using=None: connections[using or "default"])


def lead_and_mend_nothing(patch: Patch) -> None:
    patch.setattr(leading, "_find_server", lambda alias, *args, **kwargs: alias)
    mend_nothing(patch)


def pin_nobody(patch: Patch) -> None:
    original = finishing._record

    def record(position: Position | None, config: Any) -> Record:
        return original(position or Position(0, 0), config)

    patch.setattr(finishing, "_record", record)


def finish_nothing(patch: Patch) -> None:
    patch.setattr(middleware, "finish_scope", lambda *args: None)


def name_no_primary(patch: Patch) -> None:
    patch.setattr(ReplicaRouter, "db_for_write", lambda self, model, **hints: None)


def relate_nothing(patch: Patch) -> None:
    patch.setattr(ReplicaRouter, "allow_relation", lambda self, *args, **hints: None)


def ask_no_other_router(patch: Patch) -> None:
    patch.setattr(ReplicaRouter, "_others", lambda self: [])


def connect_blindly(patch: Patch) -> None:
    patch.setattr(search, "connect_to_replica", lambda alias, monitor, timeout: connections[alias])
    mend_nothing(patch)


def wait_for_a_look_at_the_next(patch: Patch) -> None:
    known = Candidates.known
    patch.setattr(
        Candidates, "known", lambda self: [r for r in known(self) if r.alias not in self.refused]
    )


def trust_given_connections(patch: Patch) -> None:
    patch.setattr(connecting, "_is_watched", lambda *args: True)
    patch.setattr(attempts, "_first_sight", lambda raw, expected: None)


def let_unverified_keys_own(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "owner", lambda self: next(iter(self.users()[-1:]), ""))


def ignore_the_transactions_number(patch: Patch) -> None:
    original = commits.commit
    patch.setattr(commits, "commit", lambda raw: original(raw)._replace(wrote=None))


def ignore_the_number_of_a_change(patch: Patch) -> None:
    original = commits._read_answer
    patch.setattr(commits, "_read_answer", lambda *args: original(*args)._replace(wrote=None))


def go_by_the_rows_of_a_change(patch: Patch) -> None:
    original = commits._read_answer
    patch.setattr(commits, "_read_answer", lambda *args: original(*args)._replace(wrote=False))


def take_a_loss_for_a_refusal_of_a_statement(patch: Patch) -> None:
    patch.setattr(on_primary, "_note_failed", lambda *args: None)


def ignore_cursors(patch: Patch) -> None:
    patch.setattr(WatchedCursor, "_noting", lambda self, sql: nullcontext())


def ignore_number_and_cursors(patch: Patch) -> None:
    ignore_the_transactions_number(patch)
    ignore_cursors(patch)


def take_a_rollback_for_a_commit(patch: Patch) -> None:
    patch.setattr(states, "has_failed", lambda raw: False)
    patch.setattr(
        mixin.TokenMixin, "_rollback", lambda self: super(mixin.TokenMixin, self)._rollback()
    )


def take_a_loss_for_a_refusal(patch: Patch) -> None:
    patch.setattr(states, "was_refused", lambda raw, error: True)


def forget_when_the_position_was_told(patch: Patch) -> None:
    patch.setattr(ClusterScope, "note_statement", lambda self: None)


def forget_writes_without_a_position(patch: Patch) -> None:
    original = finishing.known_position

    def known(primary: str, state: ClusterScope, *args: Any) -> Position | None:
        if state.checkpoint is not None:
            moment = state.checkpoint.moment._replace(write=state.last_write)
            state.checkpoint = state.checkpoint._replace(moment=moment)
        return original(primary, state, *args)

    patch.setattr(finishing, "known_position", known)


def forget_what_no_transaction_wrote(patch: Patch) -> None:
    def note_transaction_end(
        alias: str, state: ClusterScope, raw: Any, checkpoint: Any = None, *, wrote: bool | None
    ) -> None:
        state.end_transaction(raw, checkpoint, wrote=wrote)

    patch.setattr(mixin, "note_transaction_end", note_transaction_end)


def keep_the_first_position(patch: Patch) -> None:
    original = ClusterScope._take

    def take(self: ClusterScope, checkpoint: Any, *, wrote: bool) -> None:
        original(self, self.checkpoint or checkpoint, wrote=wrote)

    patch.setattr(ClusterScope, "_take", take)


def hand_nothing_over(patch: Patch) -> None:
    patch.setattr(Scope, "inherit_writes", lambda self, inner: None)


def begin_without_the_outer(patch: Patch) -> None:
    patch.setattr(Scope, "follow", lambda self, outer: None)


def trust_raw_statements(patch: Patch) -> None:
    patch.setattr(on_primary, "might_commit", lambda sql: False)


def take_any_error_for_a_refusal_to_tell(patch: Patch) -> None:
    patch.setattr(commits, "_is_committed", lambda *args: True)


def take_every_error_for_a_failed_commit(patch: Patch) -> None:
    patch.setattr(commits, "_is_committed", lambda *args: False)


def forget_what_the_primary_showed_instead(patch: Patch) -> None:
    for module in (on_primary, connection_class, mending):
        patch.setattr(module, "note_shown", lambda primary: None)


def hold_nothing_back(patch: Patch) -> None:
    patch.setattr(finishing, "_hold", lambda *args: None)


def open_blindly(patch: Patch) -> None:
    patch.setattr(connection_class, "_primary_behind", lambda connection: None)


def believe_every_silence(patch: Patch) -> None:
    patch.setattr(floors, "may_be_forgotten", lambda *args: False)


def believe_a_server_that_does_not_tell(patch: Patch) -> None:
    patch.setattr(RedisServer, "drops_keys", lambda self: False)


def believe_whatever_server(patch: Patch) -> None:
    patch.setattr(RedisStore, "life", lambda self: "")


def compare_no_lives(patch: Patch) -> None:
    patch.setattr(RedisServer, "check_life", lambda self, found, expected: None)


def make_records_that_say_nothing(patch: Patch) -> None:
    for module in (finishing, writes):
        patch.setattr(module, "locate", lambda primary, mark: NOWHERE)


def follow_blindly(patch: Patch) -> None:
    patch.setattr(deciding, "_follow", lambda primary, choice, *args: choice)
    open_blindly(patch)


def believe_every_life(patch: Patch) -> None:
    patch.setattr(search, "_is_in_life", lambda alias, life, monitor: True)


def name_of(control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]) -> str:
    """Return a readable id."""
    take_out, test, arguments = control
    way = f"-{arguments['way'].__name__}" if "way" in arguments else ""
    way += f"-{arguments['place']}" if "place" in arguments else ""
    return f"{take_out.__name__}-{test.__name__.removeprefix('test_')}{way}"


def take_unknown_lag_for_none(patch: Patch) -> None:
    """Tell that a replica is not behind where nobody knows."""
    original = metrics._gauges_of

    def tell(primary: str, server: Any) -> Any:
        lag, behind = server.seconds_behind or 0.0, server.bytes_behind or 0
        return original(primary, server._replace(seconds_behind=lag, bytes_behind=behind))

    patch.setattr(metrics, "_gauges_of", tell)


def fail_without(
    take_out: Callable[[Patch], None],
    test: Callable[..., None],
    arguments: dict[str, Any],
    request: pytest.FixtureRequest,
    by: type[Exception] = Exception,
) -> None:
    """Run a test with a rule taken out, and fail where it passes, or fails by another error."""
    skip_where_pooled(getattr(test, "pytestmark", ()))
    names = [name for name in inspect.signature(test).parameters if name not in arguments]
    arguments = arguments | {name: request.getfixturevalue(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        take_out(patch)
        try:
            test(**arguments)
        except (AttributeError, NameError, TypeError):
            raise  # the rule was not taken out: its replacement does not fit any more
        except (by, pytest.fail.Exception):
            return
    pytest.fail(f"{test.__name__} passes although the rule is taken out")


def let_queries_write(patch: Patch) -> None:
    for module in (on_primary, on_replica):
        patch.setattr(module, "guard", lambda frame, cursor, execute, sql: (frame, execute))


def judge_queries_by_their_text(patch: Patch) -> None:
    patch.setattr(read_only, "_can_write", lambda connection: False)


def mend_queries_as_well(patch: Patch) -> None:
    patch.setattr(mending, "get_frame", lambda: SimpleNamespace(query="", scope=current_scope()))


def send_queries_of_commands_to_replicas(patch: Patch) -> None:
    def frame(self: Any, scope: Any, outer: Frame, owns_scope: bool) -> Frame:
        return Frame(scope, self._override, outer, owns_scope, query=self._name)

    patch.setattr(Query, "_frame", frame)


def leave_a_refused_transaction(patch: Patch) -> None:
    patch.setattr(read_only, "_rolling_back", lambda raw: nullcontext())


def take_the_session_for_the_querys(patch: Patch) -> None:
    patch.setattr(read_only, "_is_of_session", lambda effect: False)
