"""Negative controls: with a rule taken out, the test of that rule fails."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connections

from django_replica_router import (
    connecting,
    keys,
    mending,
    middleware,
    observers,
    policy,
    postgres,
    reads,
    search,
    stores,
    writes,
)
from django_replica_router.backends import mixin
from django_replica_router.conf import get_config
from django_replica_router.context import ClusterScope, Scope
from django_replica_router.cursors import WatchedCursor
from django_replica_router.errors import StoreError
from django_replica_router.identity import RequestIdentity
from django_replica_router.policy import Reason, ReplicaState
from django_replica_router.redis_client import RedisServer
from django_replica_router.routers import ReplicaRouter
from django_replica_router.search import Search
from django_replica_router.stores import RedisStore
from django_replica_router.tokens import NOWHERE, Floor, Position, Record
from django_replica_router.writes import store_for_everybody
from testproject.cluster import Cluster
from tests import (
    test_backend,
    test_eviction,
    test_faults,
    test_monotonic,
    test_reads,
    test_store_lives,
    test_stores,
    test_writes,
)
from tests.conftest import believe_every_connection, skip_where_pooled
from tests.test_backend import OWN, engine, only_writes, touching_view  # noqa: F401 - fixtures
from tests.test_eviction import dropping, redis  # noqa: F401 - fixtures
from tests.test_reads import browser, note  # noqa: F401 - fixtures
from tests.test_store_lives import saved  # noqa: F401 - fixture
from tests.test_stores import danish_server  # noqa: F401 - fixture
from tests.test_writes import signed_in  # noqa: F401 - fixture

pytestmark = pytest.mark.usefixtures("test_site")

Patch = pytest.MonkeyPatch


def without(**facts: Any) -> Callable[[Patch], None]:
    """Take out rules of the policy by hiding from it the facts that they look at."""

    def take_out(patch: Patch) -> None:
        original = policy.decide_at_once
        patch.setattr(reads, "decide_at_once", lambda s: original(s._replace(**facts)))

    take_out.__name__ = "without_" + "_".join(facts)
    return take_out


def compare_nothing(patch: Patch) -> None:
    def may_serve(replica: Any, floor: Any, max_lag: Any) -> bool:
        return replica.state is ReplicaState.STREAMING

    patch.setattr(policy, "may_serve", may_serve)


def ignore_lag(patch: Patch) -> None:
    original = policy.may_serve
    patch.setattr(
        policy, "may_serve", lambda replica, floor, max_lag: original(replica, floor, float("inf"))
    )


def take_position_too_early(patch: Patch) -> None:
    patch.setattr(postgres, "_token", lambda row: Position(1, 1))


def store_for_no_user(patch: Patch) -> None:
    patch.setattr(writes, "_writers", lambda *args: ())
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
    patch.setattr(reads, "_identifies_unknown_reader", lambda *args: False)


def trust_an_empty_store(patch: Patch) -> None:
    patch.setattr(reads, "record_of_everybody", lambda *args: Record())


def find_everybody_by_any_key(patch: Patch) -> None:
    patch.setattr(keys, "remembered_digest", lambda *args: "")
    store_for_everybody("default", get_config(), None)


def trust_any_replica(patch: Patch) -> None:
    original = Search.__init__

    def init(self: Search, *args: Any, keeps_replica: bool) -> None:
        original(self, *args, keeps_replica=False)

    patch.setattr(Search, "__init__", init)


def forget_what_was_seen(patch: Patch) -> None:
    patch.setattr(reads, "_UNSEEN", frozenset(Reason))


def take_store_errors_for_no_token(patch: Patch) -> None:
    original = reads.load_floor

    def load_floor(*args: Any) -> Floor:
        try:
            return original(*args)
        except StoreError:
            return Floor()

    patch.setattr(reads, "load_floor", load_floor)


def forget_late_users(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "users", lambda self: ())


def forget_choices(patch: Patch) -> None:
    original = reads._decide_by_token

    def decide(primary: str, model: Any, scope: Any, *args: Any) -> Any:
        scope.cluster(primary).choices.clear()
        return original(primary, model, scope, *args)

    patch.setattr(reads, "_decide_by_token", decide)
    patch.setattr(reads, "_is_kept", lambda *args: False)


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
    patch.setattr(reads, "floor_reason", lambda floor, timeline: None)


def merge_by_plain_set(patch: Patch) -> None:
    def merge(self: Any, records: Any, lives: Any) -> None:
        for key, record in records.items():
            self._client.set(self._cache.make_key(key), record.encode())

    patch.setattr(stores.RedisStore, "_merge", merge)


def compare_by_the_locale(patch: Patch) -> None:
    script = re.sub(r"is_above\((\w+), (\w+)\) then", r"\1 > \2 then", stores._MERGE_SCRIPT)
    patch.setattr(stores, "_MERGE_SCRIPT", script)


def observe_no_statement(patch: Patch) -> None:
    patch.setattr(observers, "might_write", lambda sql: False)


def mend_nothing(patch: Patch) -> None:
    patch.setattr(
        observers,
        "_on_replica",
        lambda primary, alias, execute, sql, params, many, context: execute(
            sql, params, many, context
        ),
    )


def bind_no_transaction(patch: Patch) -> None:
    patch.setattr(observers, "bind_transaction", lambda connection, primary: None)


def pin_nobody(patch: Patch) -> None:
    original = writes._record

    def record(position: Position | None, config: Any) -> Record:
        return original(position or Position(0, 0), config)

    patch.setattr(writes, "_record", record)


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


def trust_given_connections(patch: Patch) -> None:
    patch.setattr(connecting, "_is_watched", lambda *args: True)
    patch.setattr(connecting, "_first_sight", lambda raw: None)


def let_unverified_keys_own(patch: Patch) -> None:
    patch.setattr(RequestIdentity, "owner", lambda self: next(iter(self.users()[-1:]), ""))


def ask_for_the_position_too_early(patch: Patch) -> None:
    before_commit, _, after = postgres._COMMIT_SQL.partition("COMMIT;")
    begin, _, position = after.partition("SELECT pg_current_wal")
    position = "SELECT pg_current_wal" + position.partition(";")[0]
    patch.setattr(postgres, "_COMMIT_SQL", f"{before_commit}{position};COMMIT;{begin}COMMIT")
    patch.setattr(postgres, "_POSITION_IN_COMMIT", 1)


def ignore_the_transactions_number(patch: Patch) -> None:
    original = postgres.commit
    patch.setattr(postgres, "commit", lambda raw: original(raw)._replace(wrote=None))


def ignore_cursors(patch: Patch) -> None:
    patch.setattr(WatchedCursor, "_noting", lambda self: nullcontext())


def ignore_number_and_cursors(patch: Patch) -> None:
    ignore_the_transactions_number(patch)
    ignore_cursors(patch)


def take_a_rollback_for_a_commit(patch: Patch) -> None:
    patch.setattr(postgres, "has_failed", lambda raw: False)
    patch.setattr(
        mixin.TokenMixin, "_rollback", lambda self: super(mixin.TokenMixin, self)._rollback()
    )


def take_a_loss_for_a_refusal(patch: Patch) -> None:
    patch.setattr(postgres, "was_refused", lambda raw, error: True)


def forget_when_the_position_was_told(patch: Patch) -> None:
    patch.setattr(ClusterScope, "note_statement", lambda self: None)


def forget_writes_without_a_position(patch: Patch) -> None:
    original = writes._known

    def known(primary: str, state: ClusterScope, *args: Any) -> Position | None:
        if state.checkpoint is not None:
            moment = state.checkpoint.moment._replace(write=state.last_write)
            state.checkpoint = state.checkpoint._replace(moment=moment)
        return original(primary, state, *args)

    patch.setattr(writes, "_known", known)


def forget_what_no_transaction_wrote(patch: Patch) -> None:
    def note_end(
        alias: str, state: ClusterScope, raw: Any, checkpoint: Any = None, *, wrote: bool | None
    ) -> None:
        state.settle(raw, checkpoint, wrote=wrote)

    patch.setattr(mixin, "note_end", note_end)


def keep_the_first_position(patch: Patch) -> None:
    original = ClusterScope.settle

    def settle(self: ClusterScope, raw: Any, checkpoint: Any = None, **kwargs: Any) -> bool:
        return original(self, raw, self.checkpoint or checkpoint, **kwargs)

    patch.setattr(ClusterScope, "settle", settle)


def hand_nothing_over(patch: Patch) -> None:
    patch.setattr(Scope, "inherit_writes", lambda self, inner: None)


def begin_without_the_outer(patch: Patch) -> None:
    patch.setattr(Scope, "follow", lambda self, outer: None)


def trust_raw_statements(patch: Patch) -> None:
    patch.setattr(observers, "might_commit", lambda sql: False)


def take_any_error_for_a_refusal_to_tell(patch: Patch) -> None:
    patch.setattr(postgres, "_is_committed", lambda *args: True)


def take_every_error_for_a_failed_commit(patch: Patch) -> None:
    patch.setattr(postgres, "_is_committed", lambda *args: False)


def forget_what_the_primary_showed_instead(patch: Patch) -> None:
    for module in (observers, mending):
        patch.setattr(module, "note_shown", lambda primary: None)


def hold_nothing_back(patch: Patch) -> None:
    patch.setattr(writes, "_hold", lambda *args: None)


def open_blindly(patch: Patch) -> None:
    patch.setattr(observers, "_primary_behind", lambda connection: None)


def believe_every_silence(patch: Patch) -> None:
    patch.setattr(reads, "may_be_forgotten", lambda state, config: False)


def believe_a_server_that_does_not_tell(patch: Patch) -> None:
    patch.setattr(RedisServer, "drops_keys", lambda self: False)


def believe_whatever_server(patch: Patch) -> None:
    patch.setattr(RedisStore, "life", lambda self: "")


def compare_no_lives(patch: Patch) -> None:
    patch.setattr(RedisServer, "check_life", lambda self, found, expected: None)


def make_records_that_say_nothing(patch: Patch) -> None:
    patch.setattr(writes, "locate", lambda primary, mark: NOWHERE)


def follow_blindly(patch: Patch) -> None:
    patch.setattr(reads, "_follow", lambda primary, choice, *args: choice)
    open_blindly(patch)


def believe_every_life(patch: Patch) -> None:
    patch.setattr(search, "_is_in_life", lambda alias, life, monitor: True)


CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
    (compare_nothing, test_reads.test_login_works_under_lag, {}),
    (compare_nothing, test_reads.test_a_session_value_is_read_back_under_lag, {}),
    (compare_nothing, test_reads.test_a_second_device_sees_the_write, {}),
    (take_position_too_early, test_reads.test_a_second_device_sees_the_write, {}),
    (store_for_no_user, test_reads.test_a_second_device_sees_the_write, {}),
    (link_no_owner, test_reads.test_signing_out_a_second_device_works_under_lag, {}),
    (link_no_owner, test_reads.test_a_second_device_sees_the_users_own_row, {}),
    (ignore_early_session, test_reads.test_login_works_under_lag, {}),
    (ignore_early_session, test_reads.test_a_session_value_is_read_back_under_lag, {}),
    (ignore_early_session, test_reads.test_logout_ends_the_session_under_lag, {}),
    (ignore_early_session, test_reads.test_a_logout_by_get_ends_the_session_under_lag, {}),
    (ignore_early_session, test_reads.test_an_api_client_sees_its_write, {}),
    (
        trust_unknown_sessions,
        test_reads.test_a_credential_that_was_just_handed_out_is_found_under_lag,
        {},
    ),
    (
        take_store_errors_for_no_token,
        test_reads.test_without_a_cache_the_site_works_from_the_primary,
        {},
    ),
    (trust_an_empty_store, test_reads.test_an_emptied_store_begins_to_remember_anew, {}),
    (
        find_everybody_by_any_key,
        test_reads.test_a_new_secret_key_begins_to_remember_anew,
        {},
    ),
    (
        trust_any_replica,
        test_monotonic.test_leaving_the_usual_replica_does_not_go_back_in_time,
        {},
    ),
    (
        forget_what_was_seen,
        test_monotonic.test_what_the_primary_showed_is_not_taken_back,
        {"way": test_monotonic.WAYS["use_primary"]},
    ),
    (
        forget_what_the_primary_showed_instead,
        test_monotonic.test_what_the_primary_showed_after_a_fault_is_not_taken_back,
        {},
    ),
    (
        hold_nothing_back,
        test_monotonic.test_what_was_shown_while_the_cache_hung_is_not_taken_back_on_another_device,
        {},
    ),
    (
        believe_every_silence,
        test_eviction.test_a_write_is_seen_though_its_token_was_dropped,
        {},
    ),
    (
        believe_every_silence,
        test_eviction.test_a_write_is_seen_on_another_device_though_its_token_was_dropped,
        {},
    ),
    (
        believe_every_silence,
        test_eviction.test_a_write_is_seen_though_the_server_needed_its_room,
        {},
    ),
    (
        believe_every_silence,
        test_eviction.test_a_write_of_a_session_without_a_user_is_seen_though_its_token_was_dropped,
        {},
    ),
    (
        believe_every_silence,
        test_eviction.test_a_task_sees_what_its_user_wrote_though_the_token_was_dropped,
        {},
    ),
    (
        believe_a_server_that_does_not_tell,
        test_eviction.test_a_server_that_does_not_tell_is_not_believed,
        {},
    ),
    (
        believe_whatever_server,
        test_store_lives.test_what_a_restart_of_the_cache_has_lost_is_seen,
        {"is_new": True},
    ),
    (
        compare_no_lives,
        test_store_lives.test_what_a_restart_of_the_cache_has_lost_is_seen,
        {"is_new": False},
    ),
    (
        compare_no_lives,
        test_store_lives.test_another_server_is_noticed_where_a_record_leads_on_to_another,
        {},
    ),
    (
        make_records_that_say_nothing,
        test_eviction.test_a_record_that_is_made_anew_says_no_less_than_the_dropped_one,
        {},
    ),
    (
        begin_without_the_outer,
        test_reads.test_a_scope_inside_another_sees_what_that_has_written,
        {"block": nullcontext, "is_same": True},
    ),
    (forget_late_users, test_reads.test_the_token_counts_where_the_user_is_found_late, {}),
    (without(primary_in_atomic=False), test_reads.test_inside_atomic_the_primary_serves, {}),
    (
        without(wrote=False),
        test_reads.test_after_its_first_write_a_request_sees_what_others_have_written_since,
        {},
    ),
    (without(unsafe=False), test_reads.test_no_update_of_somebody_else_is_lost, {}),
    (
        without(unsafe=False),
        test_reads.test_validation_of_uniqueness_in_a_form_post_sees_the_primary,
        {},
    ),
    (
        without(primary_only=False),
        test_reads.test_models_listed_as_primary_only_are_read_from_the_primary,
        {},
    ),
    (
        without(primary_only=False),
        test_reads.test_the_table_of_the_database_cache_is_primary_only,
        {},
    ),
    (without(forced_primary=False), test_reads.test_use_primary_reads_from_the_primary, {}),
    (ignore_lag, test_reads.test_a_replica_that_lags_too_far_serves_nobody, {}),
    (ignore_lag, test_reads.test_a_replica_whose_receiver_died_lags, {}),
    (ignore_lag, test_reads.test_max_lag_of_a_block_is_obeyed, {}),
    (never_wait, test_reads.test_waiting_serves_from_a_replica_that_catches_up, {}),
    (
        forget_choices,
        test_reads.test_a_replica_that_does_not_catch_up_leaves_the_request_to_the_primary,
        {},
    ),
    (renew_budget, test_reads.test_the_wait_budget_is_one_for_the_whole_request, {}),
    (ignore_timelines, test_reads.test_a_token_of_a_later_timeline_is_served_by_the_primary, {}),
    (name_no_primary, test_reads.test_an_instance_from_a_replica_is_saved_to_the_primary, {}),
    (
        relate_nothing,
        test_reads.test_objects_of_different_servers_of_a_cluster_may_be_related,
        {},
    ),
    (
        ask_no_other_router,
        test_reads.test_a_model_that_another_router_keeps_elsewhere_stays_there,
        {"first": "package"},
    ),
    (
        believe_every_connection,
        test_faults.test_a_connection_that_was_opened_anew_is_seen_through,
        {},
    ),
    (
        believe_every_connection,
        test_faults.test_a_promoted_replica_is_left_with_its_next_answer,
        {},
    ),
    (
        believe_every_life,
        test_faults.test_a_replica_that_is_started_anew_while_it_is_chosen_serves_nobody,
        {},
    ),
    (
        open_blindly,
        test_faults.test_a_connection_that_cannot_be_opened_anew_is_never_seen,
        {"read": test_faults.READS["get"]},
    ),
    (
        follow_blindly,
        test_faults.test_a_connection_that_another_thread_cannot_open_is_never_seen,
        {},
    ),
    (connect_blindly, test_reads.test_without_a_live_replica_the_site_works_from_the_primary, {}),
    (
        trust_given_connections,
        test_faults.test_a_connection_that_the_code_has_opened_is_watched_as_well,
        {},
    ),
    (
        let_unverified_keys_own,
        test_reads.test_a_made_up_key_of_the_site_makes_no_session_real,
        {},
    ),
    (mend_nothing, test_reads.test_writes_that_django_sends_to_a_replica_reach_the_primary, {}),
    (mend_nothing, test_reads.test_a_select_that_writes_reaches_the_primary, {}),
    (bind_no_transaction, test_reads.test_a_deletion_sent_to_a_replica_is_one_transaction, {}),
    (
        observe_no_statement,
        test_writes.test_every_way_of_writing_makes_a_token,
        {"way": test_writes.WAYS["update"], "method": "get"},
    ),
    (
        observe_no_statement,
        test_writes.test_every_way_of_writing_makes_a_token,
        {"way": test_writes.WAYS["writing function"], "method": "get"},
    ),
    *(
        (
            ignore_cursors,
            test_writes.test_every_way_of_writing_makes_a_token,
            {"way": way, "method": "get"},
        )
        for way in (test_writes.copy, test_writes.procedure, test_writes.stream)
    ),
    (merge_by_plain_set, test_writes.test_a_token_never_falls, {}),
    (
        compare_by_the_locale,
        test_stores.test_no_token_falls_whatever_the_locale_of_the_server,
        {},
    ),
    (pin_nobody, test_writes.test_a_write_whose_position_cannot_be_read_pins_its_user, {}),
    (pin_nobody, test_writes.test_a_connection_lost_at_commit_pins_its_user, {}),
    (pin_nobody, test_writes.test_an_answer_lost_in_autocommit_pins_its_user, {}),
    (finish_nothing, test_writes.test_a_stream_stores_its_token_at_its_end, {}),
    (
        finish_nothing,
        test_writes.test_the_token_stands_before_the_response_leaves_though_the_view_raised,
        {},
    ),
]

# With the package's own database backend.
BACKEND_CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
    (
        ask_for_the_position_too_early,
        test_backend.test_the_token_is_behind_the_commit,
        {"mode": "on"},
    ),
    (
        ignore_the_transactions_number,
        test_backend.test_a_transaction_that_wrote_nothing_leaves_the_user_free,
        {"way": test_backend.matched_nothing},
    ),
    (
        ignore_the_transactions_number,
        test_backend.test_a_write_that_no_statement_tells_of_is_noticed,
        {},
    ),
    *(
        (
            take_a_rollback_for_a_commit,
            test_backend.test_a_transaction_that_wrote_nothing_leaves_the_user_free,
            {"way": way},
        )
        for way in test_backend.NO_WRITES.values()
        if way is not test_backend.matched_nothing
    ),
    *(
        (
            forget_what_no_transaction_wrote,
            test_backend.test_what_such_a_transaction_has_shown_is_remembered,
            {"way": way},
        )
        for way in test_backend.NO_WRITES.values()
    ),
    (
        take_a_loss_for_a_refusal,
        test_backend.test_a_connection_lost_at_commit_pins_though_no_write_was_noticed,
        {},
    ),
    (take_a_loss_for_a_refusal, test_backend.test_a_commit_that_was_interrupted_pins, {}),
    (
        forget_when_the_position_was_told,
        test_backend.test_what_the_primary_showed_after_the_commit_is_not_taken_back,
        {},
    ),
    (
        forget_writes_without_a_position,
        test_backend.test_a_write_after_the_commit_is_behind_the_token,
        {},
    ),
    (forget_writes_without_a_position, test_backend.test_hooks_and_atomic_requests, {}),
    (
        ignore_the_transactions_number,
        test_backend.test_the_request_itself_reads_what_no_statement_tells_of,
        {},
    ),
    (
        ignore_the_transactions_number,
        test_backend.test_what_goes_past_the_statements_is_noticed,
        {"way": test_backend.by_driver},
    ),
    *(
        (
            ignore_number_and_cursors,
            test_backend.test_what_goes_past_the_statements_is_noticed,
            {"way": way},
        )
        for way in (test_backend.by_copy, test_backend.by_procedure)
    ),
    (
        keep_the_first_position,
        test_backend.test_of_transactions_that_overlap_the_last_one_counts,
        {},
    ),
    (hand_nothing_over, test_backend.test_a_scope_inside_another_hands_its_write_over, {}),
    (
        trust_raw_statements,
        test_backend.test_a_transaction_that_the_code_ends_itself_stays_a_write,
        {},
    ),
    (
        take_any_error_for_a_refusal_to_tell,
        test_backend.test_an_error_in_front_of_the_commit_is_an_error,
        {},
    ),
    (
        take_every_error_for_a_failed_commit,
        test_backend.test_a_position_that_is_refused_fails_no_commit,
        {},
    ),
]


def name_of(control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]) -> str:
    """Return a readable id."""
    take_out, test, arguments = control
    way = f"-{arguments['way'].__name__}" if "way" in arguments else ""
    return f"{take_out.__name__}-{test.__name__.removeprefix('test_')}{way}"


@pytest.mark.parametrize("control", CONTROLS, ids=name_of)
def test_the_test_of_a_rule_fails_without_the_rule(
    control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]],
    request: pytest.FixtureRequest,
) -> None:
    """A test that cannot fail would prove nothing."""
    fail_without(*control, request)


@pytest.mark.parametrize("control", BACKEND_CONTROLS, ids=name_of)
def test_the_test_of_a_rule_of_the_backend_fails_without_the_rule(
    control: tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]],
    request: pytest.FixtureRequest,
    cluster: Cluster,
) -> None:
    """Nor would one of the database backend."""
    with engine(OWN):
        fail_without(*control, request)


def fail_without(
    take_out: Callable[[Patch], None],
    test: Callable[..., None],
    arguments: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    """Run a test with a rule taken out, and fail where it passes."""
    skip_where_pooled(getattr(test, "pytestmark", ()))
    names = [name for name in inspect.signature(test).parameters if name not in arguments]
    arguments = arguments | {name: request.getfixturevalue(name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        take_out(patch)
        try:
            test(**arguments)
        except (AttributeError, NameError, TypeError):
            raise  # the rule was not taken out: its replacement does not fit any more
        except (Exception, pytest.fail.Exception):
            return
    pytest.fail(f"{test.__name__} passes although the rule is taken out")
