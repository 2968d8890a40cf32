"""What Envoy is told of limits: whose calls have a timer, how large its heap is, and that shared connections stand what one caller does."""

import json
from typing import Any

import pytest
from dormouse_core import limits, shedding
from dormouse_gateway.envoy import bootstrap, resources
from dormouse_gateway.envoy import process as envoy
from dormouse_gateway.paths import INFER, UNARY
from dormouse_gateway.serving.methods import Methods
from dormouse_gateway.settings import GatewaySettings
from dormouse_proto import envoy as protos
from dormouse_testing.clock import ManualClock
from dormouse_worker.process.bootstrap import bootstrap as workers_bootstrap
from google.protobuf import json_format

GIB = limits.GIB


def routes(made: resources.Resource) -> list[dict[str, Any]]:
    message = protos.message(resources.SCOPE.removeprefix(resources.TYPE)).FromString(made.body)
    content = json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=protos._pool())
    found: list[dict[str, Any]] = content["route_configuration"]["virtual_hosts"][0]["routes"]
    return found


def idle(path: str, *present: str) -> float:
    """Seconds of the idle timeout of the entry's route for a call, 0: none."""
    for route in routes(resources.entry(GatewaySettings())):
        match = route["match"]
        fits = match.get("path") == path if "path" in match else path.startswith(match["prefix"])
        if fits and {each["name"] for each in match.get("headers", [])} <= set(present):
            return float(route["route"]["idle_timeout"].removesuffix("s"))
    raise AssertionError(path)


@pytest.mark.parametrize("path", UNARY)
def test_an_unfinished_unary_message_has_a_timer_and_a_whole_one_none(path: str) -> None:
    assert idle(path) == limits.MESSAGE_STALL_SECONDS
    assert idle(path, "dormouse-heavy") == limits.MESSAGE_STALL_SECONDS
    assert idle(path, "dormouse-whole") == 0
    assert idle(path, "dormouse-whole", "dormouse-heavy") > 86_400


@pytest.mark.parametrize("path", ["/inference.GRPCInferenceService/ModelStreamInfer", "/grpc.health.v1.Health/Watch", "/unknown"])
def test_a_stream_has_none_unless_it_holds_much(path: str) -> None:
    assert idle(path) == 0
    assert idle(path, "dormouse-heavy") > 86_400


def test_a_functions_route_ends_the_timer_of_the_entrys() -> None:
    route = resources.Route("default", "f", "u", ("127.0.0.1:1",))
    assert [each["route"]["idle_timeout"] for each in routes(resources.scope(route, GatewaySettings(), ()))] == ["0s"]


def test_the_unary_methods_are_those_that_are_answered() -> None:
    methods = Methods(None, None, ManualClock(), None)  # type: ignore[arg-type]
    assert set(UNARY) == {INFER, *methods._answers}


def test_a_shared_connection_stands_more_resets_than_it_carries_calls() -> None:
    (options,) = bootstrap.http2().values()
    http2 = options["explicit_http_config"]["http2_protocol_options"]
    for frames in (http2["max_outbound_frames"], http2["max_outbound_control_frames"]):
        assert frames >= 5 * http2["max_concurrent_streams"]


def test_a_connection_may_have_as_many_calls_held_as_the_relay_holds_of_a_function() -> None:
    manager = bootstrap.bootstrap(GatewaySettings())["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["http2_protocol_options"]["max_concurrent_streams"] == 10_000
    assert limits.CONNECTION_CALLS >= limits.HELD_CALLS


def test_the_heap_follows_the_memory_that_there_is() -> None:
    assert envoy.heap_bytes(GIB, 64 * GIB) == 0.75 * GIB == limits.ENVOY_HEAP_FRACTION * GIB
    assert envoy.heap_bytes(None, 8 * GIB) == 2 * GIB == limits.ENVOY_HEAP_MACHINE_FRACTION * 8 * GIB
    assert envoy.heap_bytes(64 * GIB, 8 * GIB) == 2 * GIB, "a limit that is none"
    assert envoy.heap_bytes(None, 640 * GIB) == limits.ENVOY_HEAP_BYTES
    assert envoy.sized(GatewaySettings(max_heap_bytes=5)).max_heap_bytes == 5
    assert envoy.sized(GatewaySettings()).max_heap_bytes > 0


def test_what_is_shed_comes_before_what_is_refused() -> None:
    actions = bootstrap.overload(GatewaySettings())["actions"]
    timers, resets, refusals = (trigger for action in actions for trigger in action["triggers"])
    ends = [timers["scaled"]["saturation_threshold"], limits.RESET_ALL_HEAP_FRACTION, refusals["threshold"]["value"]]
    assert resets == {"name": shedding.MONITOR, "scaled": {"scaling_threshold": 0.0, "saturation_threshold": 1.0}}
    assert [action["name"].rpartition(".")[2] for action in actions] == [
        "reduce_timeouts",
        "reset_high_memory_stream",
        "stop_accepting_requests",
    ]
    assert ends == sorted(ends)
    assert f"{limits.PRESSED_STALL_SECONDS}s" in json.dumps(actions[0])


def test_an_envoy_that_may_watch_no_file_resets_by_its_heap() -> None:
    """It would abort at its start where the kernel lets its user watch no more."""
    made = bootstrap.overload(GatewaySettings(), told=False)
    assert shedding.MONITOR not in json.dumps(made)
    (resets,) = (trigger for action in made["actions"] if "reset" in action["name"] for trigger in action["triggers"])
    assert resets["scaled"] == {"scaling_threshold": limits.RESET_HEAP_FRACTION, "saturation_threshold": limits.RESET_ALL_HEAP_FRACTION}
    assert "overload_manager" not in workers_bootstrap("127.0.0.1:1", "/a", told=False)
    assert shedding.MONITOR in json.dumps(workers_bootstrap("127.0.0.1:1", "/a"))
