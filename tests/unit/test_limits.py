"""The table of limits: whole, consistent with itself and with what is below, and each row held where it says."""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dormouse_core import limits
from dormouse_worker.serving.worker import TAKER

ROOT = Path(__file__).resolve().parents[2]
UNITS = {"KIB", "MIB", "GIB"}
NAMES = [row.name for _, rows in limits.TABLE for row in rows]
BELOW = {"CLIENT_MESSAGE_BYTES", "ENVOY_CIRCUIT_BREAKER", "ETCD_REQUEST_BYTES"}
"""What others set, which only tests hold us against."""
PARTS = {name for name in NAMES if name.startswith("BATCHING_TOLERANCE_")} | {"RECORD_OVERHEAD_BYTES"}
"""What another constant of the table is made of: `BATCHING_TOLERANCES`, `STATE_BYTES`."""

SHOWN = {
    # Refused at creation.
    **dict.fromkeys(
        (
            "FUNCTION_NAME_CHARACTERS", "NAMESPACE_CHARACTERS", "SHARDS_MAX", "STATES_MAX", "TENSOR_DIMENSIONS", "SESSIONS_MAX",
            "REPLICAS_MAX", "CONCURRENCY_MAX", "BATCH_SIZE_MAX", "MANIFEST_BYTES", "STATE_BYTES",
        ),
        "unit/test_limits_at_creation.py::test_at_the_limit_it_is_taken_and_beyond_it_is_refused_with_the_field",
    ),
    "MANIFEST_NODES": "unit/test_limits_at_creation.py::test_values_behind_aliases_are_counted_as_they_would_be_written_out",
    "CONTENT_LIST_BYTES": "unit/test_editions.py::test_a_list_at_its_limit_is_kept_and_one_beyond_is_not",
    # Credentials of the chart's etcd.
    "CERTIFICATE_DAYS": "unit/test_certificates.py::test_a_certificate_is_replaced_in_time_when_its_names_change_and_when_asked_for",
    **dict.fromkeys(
        ("AUTHORITY_DAYS", "AUTHORITY_RENEWAL_DAYS"),
        "unit/test_certificates.py::test_another_authority_is_made_years_before_the_end_or_when_asked_for",
    ),
    "AUTHORITY_TRUSTED_DAYS": "unit/test_certificates.py::test_another_authority_is_trusted_first_and_issues_later_and_the_one_before_goes",
    "PASSWORD_DAYS": "unit/test_passwords.py::test_the_next_step",
    "CREDENTIAL_SPREAD_SECONDS": "unit/test_passwords.py::test_the_next_step",
    # Calls.
    **dict.fromkeys(
        ("SESSION_ID_CHARACTERS", "TENANT_CHARACTERS", "IDEMPOTENCY_KEY_CHARACTERS"),
        "unit/test_limits_of_calls.py::test_names_at_their_limit_and_beyond",
    ),
    "MESSAGE_BYTES": "integration/test_gateway_path.py::test_large_messages",
    "MESSAGE_BYTES_MAX": "unit/test_limits_of_calls.py::test_a_worker_holds_a_call_to_what_the_gateway_says_and_to_the_highest_setting",
    "MESSAGE_OVERHEAD_BYTES": "integration/test_gateway_path.py::test_large_messages",
    **dict.fromkeys(
        ("MESSAGE_FIELDS", "MESSAGE_DIMENSIONS", "MESSAGE_ELEMENTS", "MESSAGE_INTEGERS"),
        "unit/test_wire.py::test_what_is_at_a_limit_passes_and_one_more_does_not",
    ),
    "METADATA_BYTES": "integration/test_gateway_metadata.py::test_beyond_the_limit_that_call_alone_is_refused",
    "METADATA_ENTRY_BYTES": "integration/test_gateway_metadata.py::test_beyond_the_limit_that_call_alone_is_refused",
    **dict.fromkeys(
        ("METADATA_HARD_BYTES", "METADATA_HARD_ENTRIES"),
        "integration/test_gateway_metadata.py::test_what_is_too_large_to_be_read_harms_nobody_either",
    ),
    "METADATA_HEAVY_BYTES": "hostile/test_memory.py::test_calls_with_much_metadata_are_ended_when_memory_is_short",
    "HPACK_TABLE_BYTES": "hostile/test_memory.py::test_headers_that_repeat_one_hold_nothing",
    "CONNECTION_CALLS": "unit/test_envoy_limits.py::test_a_connection_may_have_as_many_calls_held_as_the_relay_holds_of_a_function",
    "MESSAGE_STALL_SECONDS": "hostile/test_memory.py::test_a_message_without_progress_is_ended_with_a_code_and_a_text",
    "MESSAGE_LARGE_BYTES": "hostile/test_unfinished.py::test_every_message_arrives_as_it_was_however_its_bytes_come",
    "UNFINISHED_BYTES": "hostile/test_unfinished.py::test_from_many_connections_the_oldest_are_ended",
    "UNFINISHED_CONNECTION_BYTES": "hostile/test_unfinished.py::test_messages_of_streams_that_never_end_have_a_share_and_nobody_waits",
    "STREAM_WINDOW_BYTES": "hostile/test_unfinished.py::test_messages_of_streams_that_never_end_have_a_share_and_nobody_waits",
    "PRESSED_STALL_SECONDS": "hostile/test_memory.py::test_bodies_that_never_end_are_ended_and_nobody_else_is",
    **dict.fromkeys(
        ("ENVOY_HEAP_FRACTION", "ENVOY_HEAP_MACHINE_FRACTION", "ENVOY_HEAP_BYTES"),
        "unit/test_envoy_limits.py::test_the_heap_follows_the_memory_that_there_is",
    ),
    **dict.fromkeys(
        ("UNREAD_SECONDS", "PRESSED_UNREAD_SECONDS"),
        "hostile/test_unread.py::test_replies_that_nobody_reads_are_dropped_where_memory_is_short",
    ),
    **dict.fromkeys(
        ("RESET_HEAP_FRACTION", "RESET_ALL_HEAP_FRACTION", "RESET_BYTES"),
        "hostile/test_unread.py::test_streams_that_nobody_reads_are_reset_until_there_is_room",
    ),
    "CLIENT_MESSAGE_BYTES": "integration/test_bad_input.py::test_large_replies",
    "ENVOY_CIRCUIT_BREAKER": "integration/test_gateway_crowd.py::test_negative_control_with_envoys_own_limits_they_would_be_refused",
    "STREAM_MESSAGES": "unit/test_streams.py::test_a_window_of_messages_and_of_bytes",
    "STREAM_BYTES": "unit/test_streams.py::test_a_window_of_messages_and_of_bytes",
    "STREAMED_BYTES": "unit/test_worker_streamed.py::test_what_a_step_says_is_limited",
    **dict.fromkeys(
        ("CONNECTION_STREAMS", "CONNECTION_WATCHES", "CONNECTION_REFLECTIONS"),
        "unit/test_quotas.py::test_a_connection_has_its_share_and_takes_no_others",
    ),
    **dict.fromkeys(
        ("OPENING_SECONDS", "CONNECTION_OPENED_STREAMS"),
        "integration/test_router_lua.py::test_who_opens_few_streams_is_let_in_while_others_open_without_end",
    ),
    "HELD_STREAMS": "unit/test_shares.py::test_at_the_limit_who_has_named_a_function_stays_and_the_most_silent_loses",
    "KEPT_FRACTION": "unit/test_shares.py::test_of_two_each_gets_half_and_of_many_the_last_its_part",
    "CONNECTION_HELD_FRACTION": "unit/test_quotas.py::test_of_what_is_held_a_connection_has_its_share",
    "WAITING_FUNCTIONS": "unit/test_relay.py::test_waiting_calls_of_a_namespace_leave_room_for_others",
    "HELD_CALLS": "unit/test_relay.py::test_unless_told_otherwise_ten_thousand_calls_and_a_gibibyte_are_held",
    "HELD_BYTES": "unit/test_relay.py::test_unless_told_otherwise_ten_thousand_calls_and_a_gibibyte_are_held",
    # Calls of steps.
    "ALARMS": "unit/test_alarms.py::test_as_many_alarms_as_the_limit_says_and_no_more",
    **dict.fromkeys(
        ("ALARM_NAME_CHARACTERS", "ALARM_REQUEST_BYTES", "ALARM_AHEAD_DAYS"),
        "unit/test_alarms.py::test_an_alarm_at_its_limits_is_taken_and_beyond_them_refused",
    ),
    "ALARM_AGAIN_SECONDS": "unit/test_alarms.py::test_the_step_of_an_alarm_consumes_it_and_may_set_it_again_a_second_later_at_the_soonest",
    **dict.fromkeys(
        ("ALARM_RETRY_SECONDS", "ALARM_TRIES"),
        "unit/test_alarms.py::test_a_step_that_fails_is_tried_again_later_each_time_and_given_up_in_the_end",
    ),
    "ALARM_ERROR_CHARACTERS": "unit/test_alarms.py::test_an_error_is_kept_up_to_its_limit",
    "ALARM_ROOM_BYTES": "unit/test_session_alarms.py::test_a_record_keeps_room_for_what_is_noted_of_its_alarms_whatever_their_errors",
    "ALARM_BLOCKED_SECONDS": "unit/test_session_alarms.py::test_a_broken_record_keeps_its_alarms_key_and_the_function_asleep_for_a_while",
    "ALARMS_TOGETHER": "unit/test_session_alarms.py::test_no_more_run_side_by_side_than_the_limit_says",
    "CALL_DEPTH": "unit/test_childcalls.py::test_a_path_at_its_limit_is_taken_and_one_deeper_is_refused",
    "SESSION_CALLS": "unit/test_childcalls.py::test_a_session_is_called_as_often_in_a_step_as_it_remembers",
    "WAITING_STEPS": "unit/test_slots.py::test_steps_that_wait_have_a_limit_and_each_level_its_own",
    # The store.
    "RECORD_BYTES": "unit/test_session_loops.py::test_a_record_over_1_mib_is_refused_after_the_step_and_not_committed",
    "RECORD_OVERHEAD_BYTES": "unit/test_limits_of_sessions.py::test_no_record_is_larger_than_its_bound",
    "TXN_BYTES": "unit/test_session_loops.py::test_a_group_closes_before_it_has_too_many_compares_or_bytes",
    "TXN_OPS": "unit/test_session_loops.py::test_a_group_closes_before_it_has_too_many_compares_or_bytes",
    "FAILOVER_SHARDS": "unit/test_transactions.py::test_the_largest_failover_fits_into_one_transaction",
    "STORE_FULL_FRACTION": "unit/test_limits_of_sessions.py::test_how_full_the_store_may_be",
    "STORE_SHARED_FRACTION": "unit/test_counting.py::test_who_has_more_than_his_share_stops_first",
    "STORE_STOP_FRACTION": "unit/test_counting.py::test_who_has_more_than_his_share_stops_first",
    "STORE_ROOM_FRACTION": "unit/test_limits_of_sessions.py::test_how_full_the_store_may_be",
    "STORE_FIGURE_SECONDS": "unit/test_limits_of_sessions.py::test_how_full_the_store_may_be",
    "COMPACT_SECONDS": "unit/test_limits_of_sessions.py::test_history_is_dropped_each_time_that_is_stated",
    "COMPACT_FRACTION": "unit/test_storage.py::test_one_busy_session_never_fills_the_store",
    "HISTORY_SECONDS": "unit/test_storage.py::test_history_is_kept_for_a_while_where_there_is_room",
    "BACKSTOP_BYTES": "unit/test_limits_of_sessions.py::test_what_etcd_keeps_by_itself",
    "DEFRAGMENT_FRACTION": "unit/test_storage.py::test_a_file_near_the_quota_is_made_smaller_before_the_alarm",
    "DEFRAGMENT_BYTES": "unit/test_storage.py::test_a_member_whose_standstill_would_end_leases_is_left_alone_while_there_is_room",
    "ROOM_FRACTION": "unit/test_limits_of_sessions.py::test_below_which_size_nospace_is_taken_back",
    "ETCD_REQUEST_BYTES": "integration/test_store.py::test_what_the_store_refuses_is_definite",
    "ETCD_TXN_OPS": "integration/test_store.py::test_128_of_each_fit",
    "ETCD_QUOTA_BYTES": "unit/test_cli.py::test_sizes_of_the_store_and_of_messages",
    "ETCD_QUOTA_BYTES_MAX": "unit/test_cli.py::test_sizes_of_the_store_and_of_messages",
    # Sessions.
    "KEPT_KEYS": "unit/test_steps.py::test_a_key_at_or_below_the_horizon_is_not_run",
    "KEPT_REPLY_BYTES": "unit/test_steps.py::test_a_reply_over_16_kib_is_not_kept_and_takes_no_other_with_it",
    "KEPT_REPLY_MEMORY_BYTES": "unit/test_limits_of_sessions.py::test_large_replies_in_memory",
    "KEY_MAKERS": "unit/test_steps.py::test_no_call_ever_runs_twice_whatever_the_order",
    "MARKED_KEYS": "unit/test_marks.py::test_a_call_that_many_younger_ones_overtook_runs_once_as_long_as_the_session_has_marks_of_them",
    "KEY_MARK_SECONDS": "unit/test_marks.py::test_marks_are_dropped_after_a_while_so_that_a_session_that_is_seldom_called_has_none",
    "CLOCK_AHEAD_SECONDS": "unit/test_callkeys.py::test_a_minute_ahead_is_allowed",
    **dict.fromkeys(
        ("REMOVAL_WAIT_SECONDS", "REMOVAL_WAIT_MARGIN_SECONDS"),
        "unit/test_removal.py::test_the_wait_is_longer_than_a_call_may_be_held_unless_the_installation_says_otherwise",
    ),
    **dict.fromkeys(
        ("REPLY_MEMORY_FRACTION", "REPLY_MEMORY_BYTES"),
        "unit/test_counting.py::test_sessions_take_a_part_of_the_containers_limit_or_of_the_machines_memory",
    ),
    **dict.fromkeys(
        ("SESSION_MEMORY_FRACTION", "SESSION_MEMORY_UNLIMITED_FRACTION"),
        "unit/test_counting.py::test_sessions_take_a_part_of_the_containers_limit_or_of_the_machines_memory",
    ),
    "SESSION_OVERHEAD_BYTES": "unit/test_removal.py::test_memory_is_bounded_by_bytes_and_the_longest_idle_leave_first",
    # Liveness and time.
    "LEASE_SECONDS": "integration/test_worker_held.py::test_a_stopped_process_loses_its_lease_in_its_time",
    "LEASE_KEEPALIVE_SECONDS": "unit/test_leases.py::test_two_renewals_of_three_may_be_lost",
    "CLOCK_SKEW_SECONDS": "unit/test_clocks.py::test_how_far_a_clock_may_be_off",
    "CLOCK_TRUST_SECONDS": "unit/test_clocks.py::test_without_a_leader_a_measure_is_good_for_its_time",
    "PROBE_SECONDS": "unit/test_worker_hanging.py::test_an_interpreter_is_asked_each_second_and_killed_at_the_third_silence",
    "PROBE_MISSES": "unit/test_worker_hanging.py::test_a_step_that_may_run_is_no_hang",
    "HANDOFF_DEADLINE_SECONDS": "unit/test_coordination.py::test_the_deadline_runs_from_the_stop",
    "SUCCESSOR_SECONDS": "unit/test_lifecycle.py::test_until_its_provider_says_that_a_draining_worker_goes_it_is_not_known_that_none_comes",
    **dict.fromkeys(
        ("REPLACED", "REPLACED_A_NODE", "REPLACE_TURN_SECONDS"),
        "unit/test_replacing.py::test_few_are_replaced_together_on_each_node_and_in_all_and_all_are_in_their_order",
    ),
    "REPLACE_BEGIN_SECONDS": (
        "unit/test_replacing.py::test_who_does_not_ask_when_its_turn_has_come_loses_it_and_who_has_nothing_to_write_ends_it"
    ),
    "GIVE_WAY_SECONDS": "unit/test_giving.py::test_after_a_while_one_that_serves_goes_and_no_more",
    "GIVE_WAY_NODE_SECONDS": "unit/test_giving.py::test_where_no_node_has_room_one_may_come_first_and_others_that_wait_come_first",
    "PLACE_SECONDS": "unit/test_giving.py::test_one_that_finds_no_place_though_one_was_given_or_takes_too_long_goes_too",
    "HANDOFF_QUIET_SECONDS": "unit/test_session_faults.py::test_a_shard_is_served_on_for_steps_of_over_100_ms_alone",
    **dict.fromkeys(
        ("UNREACHABLE_SECONDS", "UNREACHABLE_FAILOVER_SECONDS"),
        "unit/test_coordination.py::test_an_owner_that_gateways_do_not_reach_is_planned_away_and_fails_over_late",
    ),
    "CLEAR_SECONDS": "unit/test_clearing.py::test_what_does_not_end_in_its_time_is_not_waited_for",
    "CLEARED_SECONDS": "unit/test_clearing.py::test_who_does_not_come_is_not_waited_for",
    "CLEAR_ASKS": "unit/test_relay.py::test_where_what_runs_is_long_an_innocent_call_is_answered_all_the_same",
    "NODE_SILENT_SECONDS": "unit/test_nodeloss.py::test_a_node_whose_ready_worker_is_silent_and_has_no_lease_is_lost_after_two_seconds",
    "NODE_UNTAKEN_SECONDS": "unit/test_nodeloss.py::test_a_node_that_takes_no_pod_is_lost_after_five_seconds_and_no_longer_once_it_does",
    "NODE_FORGOTTEN_SECONDS": (
        "unit/test_nodeloss.py::test_a_lost_node_is_remembered_until_it_is_heard_or_nothing_is_seen_of_it_for_a_minute"
    ),
    "LOST_WORKERS": "unit/test_relay.py::test_where_workers_cannot_be_cleared_a_call_takes_eight",
    "TERMINATION_GRACE_SECONDS": "unit/test_kubernetes_pods.py::test_a_pod_of_any_valid_function_is_restricted_or_is_refused_by_us",
    "STARTS": "unit/test_starts.py::test_however_many_nodes_there_are_there_is_a_bound_in_all",
    **dict.fromkeys(
        ("STARTS_A_NODE", "STARTS_A_NODE_CALLED"),
        "unit/test_starts.py::test_one_machine_has_the_room_of_a_node",
    ),
    "START_TURN_SECONDS": "unit/test_starts.py::test_who_serves_failed_goes_has_no_place_or_takes_too_long_starts_no_more",
    "START_ORDER_SECONDS": "unit/test_starts.py::test_who_asks_no_more_keeps_nobody_waiting",
    # Usage.
    "USAGE_EACH_DAYS": "unit/test_usage_kept.py::test_of_days_that_are_long_past_the_first_of_each_month_is_kept",
    "USAGE_SERIES_TENANTS": "unit/test_usage_series.py::test_callers_who_make_up_tenants_make_no_scrape_longer",
    "USAGE_TENANTS": "unit/test_usages.py::test_no_sum_changes_where_there_are_more_tenants_than_are_named",
    **dict.fromkeys(
        ("USAGE_SECONDS", "USAGE_IDLE_SECONDS"),
        "unit/test_usage_kept.py::test_what_a_worker_counts_is_written_after_five_seconds_and_its_own_time_each_minute",
    ),
    "USAGE_DAYS": "unit/test_usage_kept.py::test_a_deleted_functions_usage_is_kept_for_its_time",
    # Batching.
    "BATCH_SIZE": "unit/test_worker_joining.py::test_by_default_the_experiment_decides",
    "BATCHING_SECONDS": "unit/test_worker_joining.py::test_the_experiment_has_the_time_that_is_stated",
    "BATCHING_BYTES": "unit/test_worker_independence.py::test_at_its_bound_of_memory_it_is_made_and_beyond_it_is_not",
    "FORMS_KEPT": "unit/test_lifecycle.py::test_an_entry_keeps_some_forms_and_workers_find_the_others",
    "FORM_CHARACTERS": "unit/test_lifecycle.py::test_an_entry_keeps_some_forms_and_workers_find_the_others",
    **dict.fromkeys(
        ("BATCHING_TOLERANCE_FP64", "BATCHING_TOLERANCE_FP32", "BATCHING_TOLERANCE_FP16", "BATCHING_TOLERANCE_BF16"),
        "unit/test_worker_independence.py::test_what_is_rounded_by_less_than_the_tolerance_is_joined_and_by_more_is_not",
    ),
}  # fmt: skip
"""The test that shows what each row says."""


def test_every_constant_is_in_the_table_once() -> None:
    constants = {name for name, value in vars(limits).items() if name.isupper() and isinstance(value, int | float)} - UNITS
    assert sorted(NAMES) == sorted(constants)


def test_every_row_says_where_from_and_who_checks() -> None:
    for _, rows in limits.TABLE:
        for row in rows:
            assert row.what, row
            assert row.source, row
            assert row.check, row
            assert limits.shown(row), row


def test_every_row_names_a_test_that_is_there() -> None:
    assert sorted(SHOWN) == sorted(NAMES)
    for shown in set(SHOWN.values()):
        path, _, name = shown.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / path).read_text(), shown


Module = tuple[str, ast.Module]


def modules() -> Iterator[Module]:
    """Ours but for the table itself."""
    for part in ("core", "kit", "worker", "gateway", "operator", "cli"):
        for path in (ROOT / part).rglob("*.py"):
            if path != Path(limits.__file__):
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def used(found: Iterable[Module]) -> set[str]:
    """The names of `limits` that are imported and read. A variable that happens to be called `limits` is not the module."""
    names: set[str] = set()
    for _, tree in found:
        nodes = list(ast.walk(tree))
        imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        ours = {alias.name for node in imports if node.module == "dormouse_core.limits" for alias in node.names}
        names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)} & ours
        if any(alias.name == "limits" for node in imports if node.module == "dormouse_core" for alias in node.names):
            names |= {n.attr for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "limits"}
    return names


def renamed(found: Iterable[Module]) -> set[tuple[str, str]]:
    """(path, name) of each name of the table that a module gives to a constant of its own."""
    return {
        (path, node.id)
        for path, tree in found
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in NAMES
    }


def test_a_limit_is_used_where_it_is_held() -> None:
    """A number that stands in the table and again in the code is two numbers once one of them is changed."""
    found = used(modules())
    assert set(NAMES) - found == BELOW | PARTS
    assert "BATCHING_TOLERANCES" in found


@pytest.mark.parametrize("name", sorted(BELOW))
def test_what_others_set_is_used_by_the_test_that_shows_it(name: str) -> None:
    path = ROOT / "tests" / SHOWN[name].partition("::")[0]
    assert name in used([(str(path), ast.parse(path.read_text()))])


def test_a_name_of_the_table_means_one_thing() -> None:
    assert renamed(modules()) == set()


def test_negative_control_an_import_alone_is_no_use_and_another_meaning_is_found() -> None:
    def found(text: str) -> list[Module]:
        return [("x.py", ast.parse(text))]

    assert used(found("from dormouse_core.limits import HELD_BYTES, TXN_OPS\nx = TXN_OPS")) == {"TXN_OPS"}
    assert used(found("from dormouse_core import limits\nx = limits.TXN_OPS")) == {"TXN_OPS"}
    assert used(found("def f(limits): return limits.TXN_OPS")) == set()
    assert renamed(found("HELD_BYTES: int = 1 << 20")) == {("x.py", "HELD_BYTES")}


def test_the_charts_numbers_are_those_of_the_table() -> None:
    chart = ROOT / "deploy/helm/dormouse"
    text = (chart / "values.yaml").read_text()
    values: Any = yaml.safe_load(text)
    schema = json.loads((chart / "values.schema.json").read_text())["properties"]
    for part, name, default, most in (
        ("gateway", "maxMessageBytes", limits.MESSAGE_BYTES, limits.MESSAGE_BYTES_MAX),
        ("etcd", "quotaBytes", limits.ETCD_QUOTA_BYTES, limits.ETCD_QUOTA_BYTES_MAX),
    ):
        assert values[part][name] == default
        assert schema[part]["properties"][name]["maximum"] == most
        assert re.search(rf"{name}: {default} .*at most {most}\b", text)
    told = [values["gateway"][name] for name in ("maxHeld", "maxHeldBytes", "maxStreams")]
    assert told == [limits.HELD_CALLS, limits.HELD_BYTES, limits.HELD_STREAMS]
    etcd = (chart / "templates/etcd/statefulset.yaml").read_text()
    assert f"(min {limits.COMPACT_SECONDS:g} (div (int64 $etcd.quotaBytes) {limits.BACKSTOP_BYTES}))" in etcd


def test_what_we_send_fits_into_what_is_below() -> None:
    assert limits.STATE_BYTES + limits.RECORD_OVERHEAD_BYTES == limits.RECORD_BYTES
    assert limits.KEPT_REPLY_BYTES < limits.RECORD_OVERHEAD_BYTES
    assert max(limits.RECORD_BYTES, limits.TXN_BYTES) < limits.ETCD_REQUEST_BYTES
    assert limits.TXN_OPS <= limits.ETCD_TXN_OPS
    assert 2 * limits.FAILOVER_SHARDS <= limits.TXN_OPS
    assert limits.MANIFEST_BYTES < limits.ETCD_REQUEST_BYTES
    assert limits.MESSAGE_BYTES <= limits.MESSAGE_BYTES_MAX
    assert limits.LEASE_SECONDS >= 3 * limits.LEASE_KEEPALIVE_SECONDS
    assert 2 * TAKER <= limits.TERMINATION_GRACE_SECONDS, "who waits for a taker in vain still has time to commit"
    assert limits.FUNCTION_NAME_CHARACTERS + len("-0123456789") == 63
