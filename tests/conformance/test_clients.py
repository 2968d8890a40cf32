"""Unmodified clients, each in an environment of its own, against one machine and against a cluster: what they call, and what they must be
told. README.md has the table."""

import functools
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import unavailable
from dormouse_testing import fronts

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "programs"
BIN = ROOT / ".cache" / "bin"
CLIENTS = {
    "tritonclient": [ROOT / ".venv-client/bin/python", PROGRAMS / "triton.py"],
    "tritonclient.aio": [ROOT / ".venv-client/bin/python", PROGRAMS / "triton_aio.py"],
    "kserve": [ROOT / ".venv-kserve/bin/python", PROGRAMS / "kserve_client.py"],
    "grpcio": [ROOT / ".venv-client/bin/python", PROGRAMS / "plain.py"],
    "go": [BIN / "conformance-go"],
}
INVALID, NOT_FOUND, REFUSED, LATE = "InvalidArgument", "NotFound", "Unimplemented", "DeadlineExceeded"
AWAY, TOO_MUCH = "Unavailable", "ResourceExhausted"
SEQUENCE = "inference request for sequence {} to model 'sequence' must specify the START flag on the first request of the sequence"
ADMINISTRATION = "refused; functions are not administered through the callers' port"
STOPPED = "function default/stopped is stopped: spec.replicas is 0"
HELD = "no worker of default/stuck could serve the call within the hold limit of 1s: no worker is ready"
LONG = "sequence_id: a string of 129 characters found, 1 to 128 characters are allowed"
NOBODY = "function default/none not found (looked up from metadata dormouse-function, then authority, then model_name)"
A, B, C = {"a": [[3, -1]]}, {"b": [[3, -1]]}, {"c": [[True, False]]}

RESULTS: dict[str, Any] = {
    "server live": True,
    "server ready": True,
    "model ready": True,
    "server metadata": "dormouse",
    "model metadata": [["x", "FP32", [-1, 4]]],
    "model config": 32,
    "infer": [[2, 4, 6, 8]],
    "infer gzip": [[2, 4, 6, 8]],
    "infer deflate": [[2, 4, 6, 8]],
    "infer async": [[2, 4, 6, 8]],
    "statistics": ["double", True, True],
    "index": ["READY"],
    "outputs all": A | B | C,
    "outputs chosen": C | A,
    "FP16": ["FP16", True],
    "BF16": ["BF16", True],
    "BYTES": True,
    "empty": [0],
    "sequence start": [5, 1, 0, 1],  # the state, START, END and READY as the model was given them, and then CORRID
    "sequence go on": [6, 0, 0, 1],
    "sequence gzip": [7, 0, 0, 1],
    "50 sequences at once": True,
    "session by header": [[3]],
    "stream": ["an id", 2],
    "stream gzip": ["an id", 2],
    "stream deflate": ["an id", 2],
    "stream sequence": [["a", 5], ["b", 6], ["c", 7]],
    "stream of 50 sequences": True,
    "stream error": [SEQUENCE.format(1), "next", 2],
    "stream unknown model": [NOBODY],
    "stream stopped function": [STOPPED],
    "stream hold expired": [HELD],
    "stream session id too long": [LONG],
    "stream stopped": True,
}
REFUSALS: dict[str, tuple[str, str]] = {
    "index of all": (INVALID, "functions are not listed to callers"),
    "outputs unknown": (INVALID, "'nope' is not an output"),
    "sequence unknown": (INVALID, SEQUENCE),
    "sequence of a text where numbers are wanted": (INVALID, "the model's 'CORRID' takes numbers"),
    "stateful without a session": (INVALID, "must specify a non-zero or non-empty correlation ID"),
    "unknown model": (NOT_FOUND, NOBODY),
    "wrong shape": (INVALID, "[1,5] found, [-1,4] is expected"),
    "timeout": (LATE, ""),
    "load": (REFUSED, ADMINISTRATION),
    "unload": (REFUSED, ADMINISTRATION),
    "shared memory": (REFUSED, ADMINISTRATION),
    "trace settings": (REFUSED, ADMINISTRATION),
    "log settings": (REFUSED, ADMINISTRATION),
    "session id too long": (INVALID, LONG),
    "stopped": (AWAY, STOPPED),
    "hold expired": (AWAY, HELD),
    "too large": (TOO_MUCH, "the message is larger than the gateway's limit of 16777216 bytes (maxMessageBytes)"),
    "stream error as status": (INVALID, SEQUENCE.format(1)),
    "stream unknown model as status": (NOT_FOUND, NOBODY),
    "stream stopped function as status": (AWAY, STOPPED),
    "stream timeout": (LATE, ""),
    "stream too large": (TOO_MUCH, "larger than max"),
}
IDS = {"tritonclient": 7, "tritonclient.aio": 77, "kserve": 777, "go": 7777, "grpcio": 8888}
BASIC = ["server live", "server ready", "model ready", "infer", "sequence start", "sequence go on", "sequence end", "sequence unknown",
         "unknown model"]  # fmt: skip
GATEWAYS = ["session id too long", "stopped", "hold expired", "too large"]  # errors that the gateway makes itself, to unary calls
STREAMS = ["stream", "stream sequence", "stream error", "stream error as status", "stream timeout"]
ERRORS = ["stream unknown model", "stream unknown model as status", "stream stopped function", "stream stopped function as status",
          "stream hold expired", "stream session id too long", "stream too large"]  # fmt: skip
OTHERS = {"50 sequences at once", *ERRORS} - {"stream unknown model", "stream too large"}
ASKED = {
    "tritonclient": ["sequence end", *(call for call in (RESULTS | REFUSALS) if call not in OTHERS)],
    "tritonclient.aio": [
        *BASIC,
        "model metadata",
        "infer gzip",
        "infer deflate",
        "statistics",
        "BYTES",
        "50 sequences at once",
        "timeout",
        *STREAMS,
        "stream gzip",
        "stream of 50 sequences",
    ],
    "kserve": [*BASIC, "FP16", "BYTES", "outputs all", "session by header", "wrong shape"],
    "grpcio": ["infer", "unknown model", *GATEWAYS, *STREAMS, *ERRORS],
    "go": [*BASIC, "infer gzip", "session by header", "stateful without a session", "wrong shape", "timeout", *GATEWAYS, *STREAMS, *ERRORS],
}


@functools.cache
def said(client: str, address: str, *more: str) -> dict[str, dict[str, Any]]:
    command = [str(word) for word in CLIENTS[client]]
    if not Path(command[0]).exists():
        unavailable(f"{client} is not here: make conformance (grpcurl and the Go client need a go on PATH)")
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*command, address, *more], capture_output=True, text=True, timeout=300, env=environment)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stderr[-3000:]
    return {answer["call"]: answer for answer in answers}


@pytest.mark.parametrize(("client", "call"), [(client, call) for client, calls in ASKED.items() for call in calls])
def test_client(gateway: str, client: str, call: str) -> None:
    judge(client, call, said(client, gateway)[call])


@pytest.mark.slow
@pytest.mark.parametrize("front", ["envoy", "nginx"])
def test_tritonclient_is_told_the_same_behind_a_proxy(gateway: str, front: str) -> None:
    """Of Gateway API or Ingress, configured as docs/fitting-in.md says."""
    if front == "nginx" and (reason := fronts.missing_nginx()):
        unavailable(reason)
    with getattr(fronts, front)(gateway) as address:
        answers = said("tritonclient", address, f"behind-{front}")
    for call in ASKED["tritonclient"]:
        judge("tritonclient", call, answers[call])


def judge(client: str, call: str, answer: dict[str, Any]) -> None:
    if call in REFUSALS:
        code, text = REFUSALS[call]
        assert "error" in answer, answer
        assert answer["code"].removeprefix("StatusCode.").replace("_", "").lower() == code.lower()
        assert text.format(IDS[client]) in answer["error"]
        return
    if call == "sequence end":
        expected: Any = [8 if client == "tritonclient" else 7, 0, 1, 1, IDS[client]]
    else:
        expected = RESULTS[call]
        if call.startswith("sequence "):
            expected = [*expected, IDS[client]]
    assert answer.get("result") == expected, answer


def test_every_call_is_judged(gateway: str) -> None:
    """A call that a program makes and no row expects would pass unseen."""
    for client, calls in ASKED.items():
        if Path(CLIENTS[client][0]).exists():
            assert said(client, gateway).keys() == set(calls), client


# ------------------------------------------------------------------------------------------------------------------------- grpcurl


def grpcurl(gateway: str, *words: str, data: Any = None) -> subprocess.CompletedProcess[str]:
    program = BIN / "grpcurl"
    if not program.exists():
        unavailable("grpcurl is not here: make conformance, with a go on PATH")
    given = ["-d", json.dumps(data)] if data is not None else []
    return subprocess.run([str(program), "-plaintext", *given, *words[:-1], gateway, words[-1]], capture_output=True, text=True, timeout=60)


def test_grpcurl_lists_and_describes(gateway: str) -> None:
    found = grpcurl(gateway, "list")
    assert found.stdout.split() == ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "inference.GRPCInferenceService"]
    program = [str(BIN / "grpcurl"), "-plaintext", gateway, "describe", "inference.ModelInferRequest"]
    described = subprocess.run(program, capture_output=True, text=True, timeout=60).stdout
    assert "repeated bytes raw_input_contents = 7;" in described


def test_grpcurl_calls_by_reflection_alone(gateway: str) -> None:
    """No .proto file at hand: the messages come from the gateway."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "contents": {"fp32Contents": [1, 2, 3, 4]}}
    found = grpcurl(gateway, "inference.GRPCInferenceService/ModelInfer", data={"modelName": "double", "inputs": [tensor]})
    assert json.loads(found.stdout)["outputs"][0]["shape"] == ["1", "4"], found.stderr
    stepped = {
        "modelName": "counter",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "contents": {"fp32Contents": [1]}}],
    }
    found = grpcurl(gateway, "-H", "dormouse-session: grpcurl", "-v", "inference.GRPCInferenceService/ModelInfer", data=stepped)
    assert "dormouse-step: 1" in found.stdout


@pytest.mark.parametrize(
    ("method", "data", "expected"),
    [
        ("grpc.health.v1.Health/Check", {}, {"status": "SERVING"}),
        ("grpc.health.v1.Health/Check", {"service": "default/double"}, {"status": "SERVING"}),
        ("inference.GRPCInferenceService/ServerLive", {}, {"live": True}),
        ("inference.GRPCInferenceService/ModelReady", {"name": "double"}, {"ready": True}),
    ],
)
def test_grpcurl_asks(gateway: str, method: str, data: Any, expected: Any) -> None:
    assert json.loads(grpcurl(gateway, method, data=data).stdout) == expected


def test_grpcurl_is_told_in_words(gateway: str) -> None:
    found = grpcurl(gateway, "inference.GRPCInferenceService/ModelMetadata", data={"name": "none"})
    assert "Code: NotFound" in found.stderr
    assert "function default/none not found" in found.stderr
