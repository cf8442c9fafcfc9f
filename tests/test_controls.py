"""Negative controls: with a rule taken out, the rule's own test fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from testproject.cluster import Cluster
from tests import (
    cqrs,
    test_autocommit_limits,
    test_autocommit_positions,
    test_backend,
    test_backend_faults,
    test_cqrs,
    test_cqrs_writes,
    test_eviction,
    test_faults,
    test_faults_of_servers,
    test_metrics,
    test_monotonic,
    test_reads,
    test_reads_on_the_primary,
    test_reads_without_replicas,
    test_refusals,
    test_store_lives,
    test_stores,
    test_waiting,
    test_writes,
    test_writes_in_streams,
    test_writes_lost,
    written,
)
from tests.backend import OWN, engine, only_writes, touching_view  # noqa: F401 - fixtures
from tests.conftest import believe_every_connection
from tests.controls import (
    Patch,
    ask_no_other_router,
    begin_without_the_outer,
    believe_a_server_that_does_not_tell,
    believe_every_life,
    believe_every_silence,
    believe_whatever_server,
    compare_by_the_locale,
    compare_no_lives,
    compare_nothing,
    compare_nothing_at_once,
    connect_blindly,
    fail_without,
    find_everybody_by_any_key,
    finish_nothing,
    follow_blindly,
    forget_choices,
    forget_late_users,
    forget_other_lags,
    forget_what_no_transaction_wrote,
    forget_what_the_primary_showed_instead,
    forget_what_was_seen,
    forget_when_the_position_was_told,
    forget_writes_without_a_position,
    go_by_the_floor_that_was_loaded,
    go_by_the_rows_of_a_change,
    hand_nothing_over,
    hold_nothing_back,
    ignore_cursors,
    ignore_early_session,
    ignore_lag,
    ignore_number_and_cursors,
    ignore_the_number_of_a_change,
    ignore_the_transactions_number,
    ignore_timelines,
    judge_queries_by_their_text,
    keep_the_first_position,
    lead_and_mend_nothing,
    lead_no_transaction,
    leave_a_refused_transaction,
    leave_lost_connections,
    let_queries_write,
    let_unverified_keys_own,
    link_no_owner,
    make_records_that_say_nothing,
    mend_nothing,
    mend_queries_as_well,
    merge_by_plain_set,
    name_no_primary,
    name_of,
    never_wait,
    observe_no_statement,
    open_blindly,
    pin_nobody,
    read_tables_of_primary_anywhere,
    relate_nothing,
    renew_budget,
    replace_lost_connections_of_a_dead_primary,
    send_queries_of_commands_to_replicas,
    store_for_no_user,
    take_a_loss_for_a_refusal,
    take_a_loss_for_a_refusal_of_a_statement,
    take_a_rollback_for_a_commit,
    take_any_error_for_a_refusal_to_tell,
    take_every_error_for_a_failed_commit,
    take_position_too_early,
    take_store_errors_for_no_token,
    take_the_end_of_a_wait_for_success,
    take_the_session_for_the_querys,
    take_unknown_lag_for_none,
    trust_an_empty_store,
    trust_any_replica,
    trust_given_connections,
    trust_raw_statements,
    trust_unknown_sessions,
    wait_for_a_look_at_the_next,
    without,
)
from tests.reading import browser, note  # noqa: F401 - fixtures
from tests.test_autocommit_positions import ask_for_the_position_too_early
from tests.test_eviction import dropping, redis  # noqa: F401 - fixtures
from tests.test_metrics import reader, registry  # noqa: F401 - fixtures
from tests.test_refusals import site  # noqa: F401 - fixtures
from tests.test_store_lives import saved  # noqa: F401 - fixtures
from tests.test_stores import danish_server  # noqa: F401 - fixtures
from tests.test_waiting import events, waiting  # noqa: F401 - fixtures
from tests.written import signed_in  # noqa: F401 - fixtures

pytestmark = pytest.mark.usefixtures("test_site")


CONTROLS: list[tuple[Callable[[Patch], None], Callable[..., None], dict[str, Any]]] = [
    (
        take_the_end_of_a_wait_for_success,
        test_waiting.test_a_replica_that_does_not_get_there_leaves_the_reader_to_the_primary,
        {},
    ),
    (compare_nothing, test_reads.test_login_works_under_lag, {}),
    (compare_nothing, test_reads.test_a_session_value_is_read_back_under_lag, {}),
    (compare_nothing, test_reads.test_a_second_device_sees_the_write, {}),
    (compare_nothing_at_once, test_reads.test_a_second_device_sees_the_write, {}),
    (take_unknown_lag_for_none, test_metrics.test_of_a_stopped_replica_no_lag_is_told, {}),
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
        test_reads_without_replicas.test_without_a_cache_the_site_works_from_the_primary,
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
        leave_lost_connections,
        test_monotonic.test_a_connection_to_the_primary_that_was_lost_afterwards_pins_nobody,
        {"is_write": False},
    ),
    (
        replace_lost_connections_of_a_dead_primary,
        test_monotonic.test_a_primary_that_is_known_to_be_down_is_not_connected_to_at_the_end,
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
        test_reads_on_the_primary.test_a_scope_inside_another_sees_what_that_has_written,
        {"block": nullcontext, "is_same": True},
    ),
    (forget_late_users, test_reads.test_the_token_counts_where_the_user_is_found_late, {}),
    (
        go_by_the_floor_that_was_loaded,
        test_reads.test_the_token_counts_under_each_lag_where_the_user_is_found_late,
        {},
    ),
    (
        forget_other_lags,
        test_reads.test_no_lag_leads_back_to_a_replica_that_another_lag_has_left,
        {},
    ),
    (
        without(primary_in_atomic=False),
        test_reads_on_the_primary.test_inside_atomic_the_primary_serves,
        {},
    ),
    (
        without(wrote=False),
        test_reads_on_the_primary.test_after_its_first_write_a_request_sees_what_others_have_written_since,
        {},
    ),
    (without(unsafe=False), test_reads_on_the_primary.test_no_update_of_somebody_else_is_lost, {}),
    (
        without(unsafe=False),
        test_reads_on_the_primary.test_validation_of_uniqueness_in_a_form_post_sees_the_primary,
        {},
    ),
    (
        read_tables_of_primary_anywhere,
        test_reads_on_the_primary.test_models_listed_as_primary_only_are_read_from_the_primary,
        {},
    ),
    (
        without(primary_only=False),
        test_reads_on_the_primary.test_the_table_of_the_database_cache_is_primary_only,
        {},
    ),
    (
        without(forced_primary=False),
        test_reads_on_the_primary.test_use_primary_reads_from_the_primary,
        {},
    ),
    (ignore_lag, test_reads_without_replicas.test_a_replica_that_lags_too_far_serves_nobody, {}),
    (ignore_lag, test_reads_without_replicas.test_a_replica_whose_receiver_died_lags, {}),
    (ignore_lag, test_reads_without_replicas.test_max_lag_of_a_block_is_obeyed, {}),
    (
        never_wait,
        test_reads_without_replicas.test_waiting_serves_from_a_replica_that_catches_up,
        {},
    ),
    (
        forget_choices,
        test_reads_without_replicas.test_a_replica_that_does_not_catch_up_leaves_the_request_to_the_primary,
        {},
    ),
    (
        renew_budget,
        test_reads_without_replicas.test_the_wait_budget_is_one_for_the_whole_request,
        {},
    ),
    (
        ignore_timelines,
        test_reads_without_replicas.test_a_token_of_a_later_timeline_is_served_by_the_primary,
        {},
    ),
    (
        name_no_primary,
        test_reads_on_the_primary.test_an_instance_from_a_replica_is_saved_to_the_primary,
        {},
    ),
    (
        relate_nothing,
        test_reads_on_the_primary.test_objects_of_different_servers_of_a_cluster_may_be_related,
        {},
    ),
    (
        ask_no_other_router,
        test_reads_on_the_primary.test_a_model_that_another_router_keeps_elsewhere_stays_there,
        {"first": "package"},
    ),
    (
        believe_every_connection,
        test_faults.test_a_connection_that_was_opened_anew_is_seen_through,
        {},
    ),
    (
        believe_every_connection,
        test_faults_of_servers.test_a_promoted_replica_is_left_with_its_next_answer,
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
    (
        connect_blindly,
        test_reads_without_replicas.test_without_a_live_replica_the_site_works_from_the_primary,
        {},
    ),
    (
        trust_given_connections,
        test_faults_of_servers.test_a_connection_that_the_code_has_opened_is_watched_as_well,
        {},
    ),
    (
        let_unverified_keys_own,
        test_reads.test_a_made_up_key_of_the_site_makes_no_session_real,
        {},
    ),
    *(
        (
            take_out,
            test_refusals.test_a_replica_that_refuses_is_tried_a_handful_of_times,
            {"number": 2},
        )
        for take_out in (test_refusals.try_always, test_refusals.close_by_looks)
    ),
    (wait_for_a_look_at_the_next, test_refusals.test_a_signed_in_reader_of_the_replica_goes_on, {}),
    (
        lead_and_mend_nothing,
        test_reads_without_replicas.test_writes_that_django_sends_to_a_replica_reach_the_primary,
        {},
    ),
    (mend_nothing, test_reads_without_replicas.test_a_select_that_writes_reaches_the_primary, {}),
    (
        lead_no_transaction,
        test_reads_without_replicas.test_a_deletion_sent_to_a_replica_is_one_transaction,
        {},
    ),
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
        for way in (test_writes.copy, written.procedure, test_writes.stream)
    ),
    (merge_by_plain_set, test_writes.test_a_token_never_falls, {}),
    (
        compare_by_the_locale,
        test_stores.test_no_token_falls_whatever_the_locale_of_the_server,
        {},
    ),
    (pin_nobody, test_writes_lost.test_a_write_whose_position_cannot_be_read_pins_its_user, {}),
    (pin_nobody, test_writes_lost.test_a_connection_lost_at_commit_pins_its_user, {}),
    (pin_nobody, test_writes_lost.test_an_answer_lost_in_autocommit_pins_its_user, {}),
    (finish_nothing, test_writes_in_streams.test_a_stream_stores_its_token_at_its_end, {}),
    (
        finish_nothing,
        test_writes_in_streams.test_the_token_stands_before_the_response_leaves_though_the_view_raised,
        {},
    ),
]

CONTROLS += [
    (
        let_queries_write,
        test_cqrs_writes.test_a_write_in_a_query_reaches_no_server,
        {"way": test_cqrs_writes.WAYS["update"], "around": nullcontext},
    ),
    (
        let_queries_write,
        test_cqrs_writes.test_a_statement_that_says_that_it_writes_reaches_no_server,
        {"statement": "NOTIFY someone", "alias": "default"},
    ),
    *(
        (
            judge_queries_by_their_text,
            test_cqrs_writes.test_what_the_text_does_not_tell_is_refused_by_the_server,
            {"way": way, "place": place},
        )
        for way in test_cqrs_writes.HIDDEN
        for place in ("primary", "primary in a transaction")
    ),
    (
        mend_queries_as_well,
        test_cqrs_writes.test_where_the_package_has_chosen_the_replica_the_primary_is_not_asked,
        {"way": cqrs.by_text},
    ),
    (
        send_queries_of_commands_to_replicas,
        test_cqrs.test_a_query_in_a_command_reads_where_that_does,
        {"atomic": False},
    ),
    (
        leave_a_refused_transaction,
        test_cqrs_writes.test_a_refusal_leaves_the_transaction_of_a_command_as_it_was,
        {"way": cqrs.by_text},
    ),
    (
        take_the_session_for_the_querys,
        test_cqrs.test_the_session_of_a_request_is_none_of_the_querys,
        {"atomic_requests": False},
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
        test_backend_faults.test_a_connection_lost_at_commit_pins_though_no_write_was_noticed,
        {},
    ),
    (take_a_loss_for_a_refusal, test_backend_faults.test_a_commit_that_was_interrupted_pins, {}),
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
    (keep_the_first_position, test_backend.test_hooks_and_atomic_requests, {}),
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
        ignore_the_number_of_a_change,
        test_autocommit_positions.test_a_write_that_matched_nothing_is_none,
        {"statement": test_autocommit_positions.NOTHING["update"]},
    ),
    (
        go_by_the_rows_of_a_change,
        test_autocommit_positions.test_a_write_of_which_no_row_tells_is_noticed,
        {},
    ),
    (
        forget_when_the_position_was_told,
        test_autocommit_positions.test_what_an_error_has_shown_is_behind_the_token,
        {},
    ),
    (
        take_a_loss_for_a_refusal_of_a_statement,
        test_autocommit_limits.test_a_write_that_was_interrupted_pins,
        {},
    ),
    (
        take_any_error_for_a_refusal_to_tell,
        test_backend_faults.test_an_error_in_front_of_the_commit_is_an_error,
        {},
    ),
    (
        take_every_error_for_a_failed_commit,
        test_backend_faults.test_a_position_that_is_refused_fails_no_commit,
        {},
    ),
]


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
