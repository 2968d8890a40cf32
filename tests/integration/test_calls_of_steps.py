"""Steps that call other functions (`ctx.call`), on one machine: real gateway, workers and store."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse.client import Answer, Client
from dormouse_core import headernames
from dormouse_core.errors import Code, DormouseError
from dormouse_testing.calling_system import calling_system, spec, told
from dormouse_testing.streams_system import kill_an_owner, owners, pid_of
from dormouse_testing.system import System, manifest
from dormouse_testing.up import missing
from dormouse_testing.workers import request_of

X = np.ones((1, 1), np.float32)
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    with calling_system(tmp_path_factory.mktemp("calls")) as started:
        yield started


@pytest.fixture(scope="module")
def client(system: System) -> Iterator[Client]:
    with Client(system.address) as made:
        yield made


def ask(client: Client, function: str, what: str, **more: Any) -> Answer:
    """`what`: function|session|x|seconds, or a way through ping and pong; see `calling_system`."""
    given = {"x": X, "what": np.array([what.encode()], dtype=object)}
    return client.infer(function, given, timeout=more.pop("timeout", 30.0), **more)


def timed(key: str) -> str:
    """A caller's key as a step that calls functions with sessions has it: it says when it was made, whenever it is sent."""
    return f"{time.time_ns() // 1000:016d}-{key}"


def total(client: Client, session: str, **more: Any) -> tuple[float, int]:
    """What the ledger's session holds, and its steps, that of this question among them."""
    answer = client.infer("ledger", {"x": np.zeros((1, 1), np.float32)}, session=session, timeout=30.0, **more)
    return float(answer.outputs["y"][0, 0]), answer.step


def refused(call: Callable[[], object]) -> DormouseError:
    with pytest.raises(DormouseError) as error:
        call()
    return error.value


def calls_of(system: System) -> str:
    """The gateway's socket for workers."""
    return f"unix:{system.folder}/.dormouse/s/calls.sock"


# --------------------------------------------------------------------------------------------------------------------- exactly once


def test_a_child_step_runs_once_though_the_parents_worker_dies_between_the_childs_commit_and_its_own(
    system: System, client: Client
) -> None:
    ask(client, "shop", "ledger|once|1|", session="once")
    hold = system.folder / "handlers" / ".hold"
    hold.touch()
    try:
        with ThreadPoolExecutor(1) as pool:
            before = told(system).count("shop once 2")
            answer = pool.submit(ask, client, "shop", "ledger|once|10|", session="once")
            system.until(lambda: "shop once 2 called" in told(system))
            kill_an_owner(system, "shop")
            hold.unlink()
            assert answer.result(60).outputs["y"] == [[1 + 11]], "the ledger's answers: 1, then 11"
        assert told(system).count("shop once 2") == before + 2, "the step ran again"
        assert told(system).count("ledger /once 2 10") == 1, "and its call was answered with what the ledger kept"
        assert total(client, "once") == (11, 3)
    finally:
        hold.unlink(missing_ok=True)


def test_a_caller_that_sends_its_step_again_under_its_key_makes_no_second_child_step(system: System, client: Client) -> None:
    """Also where the step itself failed, so that it runs again."""
    again, fails = timed("again"), timed("fails")
    for _ in range(2):
        ask(client, "shop", "ledger|again|3|", session="again", idempotency_key=again)
        assert refused(lambda: ask(client, "shop", "ledger|fails|3|none", session="fails", idempotency_key=fails)).code == Code.INTERNAL
    assert total(client, "again") == (3, 2)
    assert total(client, "fails") == (0, 1)


def test_a_step_under_a_key_that_says_no_time_makes_no_child_step(system: System, client: Client) -> None:
    """Sent again it would have another time: a session that forgot the call would run it again."""
    for function, session in (("shop", "timeless"), ("kiosk", None)):
        error = refused(lambda: ask(client, function, "ledger|timeless|3|", session=session, idempotency_key="click-1"))  # noqa: B023
        assert error.code == Code.FAILED_PRECONDITION
        assert "default/ledger has sessions, and the key under which this step was asked for says no time: 'click-1' found" in error.message
    assert total(client, "timeless") == (0, 1)


def test_two_users_of_a_function_without_sessions_who_number_their_calls_share_none(system: System, client: Client) -> None:
    key = timed("1")
    for x in (2, 2, 5):
        ask(client, "kiosk", f"ledger|numbered|{x}|", idempotency_key=key)
    assert total(client, "numbered") == (14, 5), "two calls of each of the two"


def test_a_child_whose_owner_dies_and_an_agent_that_dies_cost_no_answer_and_double_nothing(system: System, client: Client) -> None:
    ask(client, "shop", "ledger|deaths|1|", session="deaths")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, client, "shop", "ledger|deaths|10|0.5", session="deaths", timeout=60.0)
        system.until(lambda: "ledger /deaths 2 10" in told(system))
        kill_an_owner(system, "ledger")
        assert answer.result(90).outputs["y"] == [[12]]
        answer = pool.submit(ask, client, "shop", "ledger|deaths|100|0.5", session="deaths", timeout=60.0)
        system.until(lambda: "ledger /deaths 3 100" in told(system))
        os.kill(pid_of(system, "dormouse_gateway"), signal.SIGKILL)
        assert answer.result(90).outputs["y"] == [[12 + 111]]
    assert total(client, "deaths") == (111, 4)


def test_an_async_step_calls_side_by_side_and_each_call_counts_once(system: System, client: Client) -> None:
    began = time.monotonic()
    assert ask(client, "kiosk", "ledger|side|2|0.3").outputs["y"] == [[2 + 4]]
    assert time.monotonic() - began < 30
    assert total(client, "side") == (4, 3)
    key = timed("kiosk-7")
    for _ in range(2):
        assert ask(client, "kiosk", "ledger|keyed|2|", idempotency_key=key).outputs["y"] == [[2 + 4]]
    assert total(client, "keyed") == (4, 3), "a step without a session has its caller's key, or the gateway's"


def test_a_call_carries_its_steps_tenant(system: System, client: Client) -> None:
    ask(client, "kiosk", "ledger|whose|2|", tenant="acme")
    assert total(client, "whose", tenant="acme") == (4, 3)
    assert total(client, "whose") == (0, 1)


# --------------------------------------------------------------------------------------------------------------------- clear errors


@pytest.mark.parametrize(
    ("function", "what", "code", "says"),
    [
        ("shop", "nobody|a|1|", Code.NOT_FOUND, "call of default/nobody: function default/nobody not found"),
        ("shop", "Not a name|a|1|", Code.INVALID_ARGUMENT, "call: function: 'Not a name' found, name or namespace/name is allowed"),
        ("shop", "other/ledger|a|1|", Code.PERMISSION_DENIED, "calls functions of its own namespace"),
        ("shop", "shop|a|1|", Code.INVALID_ARGUMENT, "call: function: 'default/shop' found, which is the one that calls"),
        ("shop", "ledger||1|", Code.INVALID_ARGUMENT, "call of default/ledger: inference request to model 'ledger' must specify"),
        ("shop", "ledger|a|wide|", Code.INVALID_ARGUMENT, "call of default/ledger: inputs['x'].shape: [1,2] found"),
        ("shop", "ledger|a|int|", Code.INVALID_ARGUMENT, "call of default/ledger: inputs['x'].datatype: 'INT32' found"),
        ("shop", "ledger|a|other|", Code.INVALID_ARGUMENT, "call of default/ledger: inputs: 'z' is not an input"),
        ("ping", "pong;ping;;", Code.INVALID_ARGUMENT, "default/ping -> default/pong -> default/ping"),
        ("ping", "ledger;", Code.INVALID_ARGUMENT, "call of default/ledger: inference request to model 'ledger' must specify"),
        ("shop", "ledger|a|1|none", Code.INTERNAL, "call of default/ledger: ValueError"),
    ],
)
def test_a_wrong_call_is_refused_at_once_and_names_what_is_wrong(
    system: System, client: Client, function: str, what: str, code: Code, says: str
) -> None:
    began = time.monotonic()
    error = refused(lambda: ask(client, function, what, session="wrong"))
    assert (error.code, says in error.message) == (code, True), error.message
    assert time.monotonic() - began < 10, "no deadline ends it"


def test_a_called_function_that_sleeps_and_starts_slowly_is_waited_for_and_asked_once(system: System, client: Client) -> None:
    system.command("apply", "-f", "-", stdin=manifest("slow", **spec("Slow", scaleToZeroAfter="1s")))
    system.wait("slow", lambda status: status["phase"] == "Asleep")
    assert ask(client, "shop", "slow|slept|3|", session="slept", timeout=60.0).outputs["y"] == [[3]]
    assert [line for line in told(system) if "slow" in line or "/slept" in line] == ["slow starts", "ledger /slept 1 3"]


def test_a_called_function_that_cannot_be_served_or_is_stopped_is_told_at_once(system: System, client: Client) -> None:
    system.command("apply", "-f", "-", stdin=manifest("broken", **spec("Nobody")))
    system.wait("broken", lambda status: status["phase"] == "Failed")
    system.command("apply", "-f", "-", stdin=manifest("stopped", **spec("Ledger", replicas=0)))
    system.wait("stopped", lambda status: status["phase"] == "Stopped")
    for function, code, says in (
        (
            "broken",
            Code.FAILED_PRECONDITION,
            "call of default/broken: function default/broken cannot be served: spec.handler: 'handlers:Nobody'",
        ),
        ("stopped", Code.UNAVAILABLE, "call of default/stopped: function default/stopped is stopped: spec.replicas is 0"),
    ):
        began = time.monotonic()
        error = refused(lambda: ask(client, "shop", f"{function}|a|1|", session="wrong"))  # noqa: B023
        assert (error.code, error.message[: len(says)]) == (code, says), error.message
        assert time.monotonic() - began < 10, "no deadline ends it"


def test_a_called_function_that_is_deleted_ends_what_runs_and_refuses_what_waits_for_it(system: System, client: Client) -> None:
    """What waits is told so, and its step is as if it had not been."""
    system.command("apply", "-f", "-", stdin=manifest("doomed", **spec("Slow", scaleToZeroAfter="1s")))
    system.wait("doomed", lambda status: status["phase"] == "Asleep")
    with ThreadPoolExecutor(1) as pool:
        starts = told(system).count("slow starts")
        waits = pool.submit(lambda: refused(lambda: ask(client, "shop", "doomed|waits|1|", session="doomed", timeout=60.0)))
        system.until(lambda: told(system).count("slow starts") > starts)
        system.command("delete", "doomed")
        error = waits.result(60)
        assert (error.code, "call of default/doomed" in error.message) == (Code.NOT_FOUND, True), error.message
        assert ask(client, "shop", "ledger|doomed|7|", session="doomed").step == 1, "of the step whose call failed nothing was kept"

        system.command("apply", "-f", "-", stdin=manifest("doomed", **spec("Ledger")))
        system.wait_proved("doomed")
        runs = pool.submit(ask, client, "shop", "doomed|runs|1|2", session="doomed", timeout=60.0)
        system.until(lambda: "ledger /runs 1 1" in told(system))
        system.command("delete", "doomed")
        assert runs.result(60).outputs["y"] == [[7 + 1]]
    error = refused(lambda: ask(client, "shop", "doomed|runs|1|", session="doomed"))
    assert (error.code, "call of default/doomed" in error.message) == (Code.NOT_FOUND, True), error.message


def test_a_deadline_holds_for_the_call_too_and_nothing_is_called_after_it(system: System, client: Client) -> None:
    before = told(system).count("shop late 1")
    error = refused(lambda: ask(client, "shop", "ledger|late|1|20", session="late", timeout=1.0))
    assert error.code == Code.DEADLINE_EXCEEDED
    system.until(lambda: "ledger cancelled" in told(system), 10)
    assert told(system).count("shop late 1") == before + 1
    assert told(system).count("shop late 1 called") == 0


def test_who_goes_away_cancels_the_calls_of_its_step(system: System) -> None:
    before = told(system).count("ledger cancelled")
    with system.client() as direct:
        request = request_of("shop", x=X)
        request.inputs.add(name="what", datatype="BYTES", shape=[1])
        request.raw_input_contents.append((len(b"ledger|left|1|20")).to_bytes(4, "little") + b"ledger|left|1|20")
        call = direct.stub.ModelInfer.future(request, metadata=[(headernames.SESSION, "left")], timeout=60)
        system.until(lambda: "ledger /left 1 1" in told(system))
        call.cancel()
    system.until(lambda: told(system).count("ledger cancelled") == before + 1, 10)


# -------------------------------------------------------------------------------------------------------------------------- crowds


def test_steps_that_wait_for_each_others_functions_starve_nobody(system: System, client: Client) -> None:
    """Far more of each than there are threads, and each calls the other's function."""
    count = 40
    with ThreadPoolExecutor(2 * count) as pool:
        ways = ("pong;;", "ping;;")
        waiting = [pool.submit(ask, client, ("ping", "pong")[n % 2], ways[n % 2], timeout=60.0) for n in range(2 * count)]
        assert [each.result(90).outputs["y"] for each in waiting] == [[[1.0]]] * (2 * count)


def test_while_steps_wait_for_their_calls_others_of_the_same_function_run(system: System, client: Client) -> None:
    """More of them than there are threads of a handler have begun before the first has its answer."""
    count = len(os.sched_getaffinity(0)) + 2
    with ThreadPoolExecutor(count) as pool:
        waiting = [pool.submit(ask, client, "shop", f"ledger|wide-{n}|1|2", session=f"wide-{n}", timeout=60.0) for n in range(count)]
        system.until(lambda: sum(line.startswith("shop wide-") for line in told(system)) >= count)
        assert not [line for line in told(system) if line.startswith("shop wide-") and line.endswith("called")]
        assert [each.result(90).outputs["y"] for each in waiting] == [[[1]]] * count


# ------------------------------------------------------------------------------------------------------------------ who may call


def test_at_the_workers_port_nobody_calls_without_a_workers_proof(system: System, client: Client) -> None:
    ask(client, "shop", "ledger|proof|1|", session="proof")
    (worker,) = owners(system, "shop")
    right = {
        headernames.FUNCTION: "default/ledger",
        headernames.SESSION: "proof",
        headernames.PATH: "default/shop",
        headernames.WORKER: f"default/shop/{worker}",
        headernames.PROOF: "0" * 64,
    }
    no, unknown = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE
    wrongs: tuple[tuple[dict[str, str], grpc.StatusCode], ...] = (
        ({}, no),
        ({headernames.PROOF: ""}, no),
        ({headernames.WORKER: ""}, no),
        ({headernames.TENANT: "acme"}, no),
        ({headernames.WORKER: "default/nobody/x"}, unknown),
        ({headernames.WORKER: "default/shop/none"}, unknown),
    )
    with grpc.insecure_channel(calls_of(system)) as channel:
        infer = channel.unary_unary(INFER)
        for wrong, code in wrongs:
            with pytest.raises(grpc.RpcError) as error:
                infer(request_of("", x=X).SerializeToString(), metadata=tuple({**right, **wrong}.items()), timeout=10)
            assert error.value.code() == code, (wrong, error.value)
        for method in ("/inference.GRPCInferenceService/ModelStreamInfer", "/inference.GRPCInferenceService/ModelMetadata"):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(method)(b"", timeout=10)
            assert error.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert total(client, "proof") == (1, 2)


def test_what_a_caller_says_of_paths_and_workers_counts_for_nothing(system: System, client: Client) -> None:
    """At the callers' port it is removed: nobody is let deeper, or kept out, by it."""
    says = {headernames.PATH: "default/ledger,default/shop", headernames.WORKER: "default/shop/x", headernames.PROOF: "1"}
    assert ask(client, "shop", "ledger|said|1|", session="said", metadata=says).outputs["y"] == [[1]]


@pytest.mark.parametrize(
    ("function", "path", "code"),
    [
        ("other/ledger", "default/rogue", Code.PERMISSION_DENIED),
        ("other/ledger", "other/shop,default/rogue", Code.PERMISSION_DENIED),
        ("other/ledger", "other/shop", Code.INVALID_ARGUMENT),
        ("default/ledger", "", Code.INVALID_ARGUMENT),
        ("default/ledger", "default/shop", Code.INVALID_ARGUMENT),
        ("default/ledger", "default/rogue,", Code.INVALID_ARGUMENT),
        ("default/ping", "default/ping,default/rogue", Code.INVALID_ARGUMENT),
        ("default/rogue", "default/rogue", Code.INVALID_ARGUMENT),
        ("", "default/rogue", Code.INVALID_ARGUMENT),
        ("default/ledger", ",".join(["default/rogue"] * 9), Code.INVALID_ARGUMENT),
    ],
)
def test_a_handler_that_goes_past_its_worker_is_held_to_the_same_by_the_gateway(
    system: System, client: Client, function: str, path: str, code: Code
) -> None:
    before = len(told(system))
    error = refused(lambda: ask(client, "rogue", f"{function}|{path}"))
    assert error.code == code, error.message
    assert len(told(system)) == before
