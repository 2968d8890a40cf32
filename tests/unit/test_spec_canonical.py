"""Canonical JSON, revisions and state versions, durations."""

import pickle
import re
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from dormouse_core import workerfile
from dormouse_core.errors import InvalidArgument
from dormouse_core.spec import (
    Duration,
    FunctionSpec,
    durations,
    parse_manifest,
    revision_of,
    spec_from_json,
    spec_to_json,
    state_bytes,
    state_version_of,
)
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_testing.manifests import Data, onnx, python, stateful
from hypothesis import given, settings
from hypothesis import strategies as st


def spec(data: Data) -> FunctionSpec:
    return parse_manifest(data).spec


WHOLE = stateful({"initial": {"shape": [2, 1, 128]}}, ttl="90m", maxBytes=10**12, accepts=["a"])


@pytest.mark.parametrize("data", [onnx(), WHOLE, python(workers={"resources": {"limits": {"cpu": 1.5}}, "envFrom": [{"a": None}]})])
def test_json_keeps_the_spec(data: Data) -> None:
    assert spec_from_json(spec_to_json(spec(data))) == spec(data) or "envFrom" in data["spec"].get("workers", {})
    assert spec_to_json(spec_from_json(spec_to_json(spec(data)))) == spec_to_json(spec(data))


def test_json_is_canonical() -> None:
    text = spec_to_json(spec(onnx()))
    assert text == spec_to_json(spec(onnx(minReplicas=0, timeouts={"hold": "300s", "step": "60000ms"}, replicas=None)))
    assert text.startswith(b'{"askedReplicas":1,"batching":{"maxQueueDelay":"0ms"},"maxConcurrency":256,')
    assert b"null" not in text
    assert b" " not in text


def test_a_newer_part_may_have_written_more() -> None:
    data = msgspec.json.decode(spec_to_json(spec(WHOLE)))
    data["fromTheFuture"] = data["sessions"]["fromTheFuture"] = {"a": 1}
    assert spec_from_json(msgspec.json.encode(data)) == spec(WHOLE)


@pytest.mark.parametrize(
    "more",
    [
        {"replicas": 0},
        {"minReplicas": 1},
        {"maxReplicas": 3},
        {"askedReplicas": 3},
        {"scaleMetric": "rps"},
        {"scaleTarget": 3},
        {"scaleToZeroAfter": "5s"},
        {"timeouts": {"step": "1m"}},
        {"batching": {}},
        {"workers": {"env": []}},
    ],
)
def test_scaling_and_spelling_do_not_change_the_revision(more: dict[str, Any]) -> None:
    assert revision_of(spec(onnx(**more))) == revision_of(spec(onnx()))


@pytest.mark.parametrize(
    "more",
    [
        {"model": {"uri": "file://other.onnx"}},
        {"model": {"uri": "file://vad.onnx", "sha256": "0" * 64}},
        {"batching": {"maxBatchSize": 1}},
        {"workers": {"image": "other"}},
        {"workers": {"env": [{"name": "A", "value": "1"}]}},
        {"sessions": {"states": [{"input": "a", "output": "b", "shape": [-1], "batchAxis": 0}]}},
    ],
)
def test_what_runs_changes_the_revision(more: dict[str, Any]) -> None:
    assert revision_of(spec(onnx(**more))) != revision_of(spec(onnx()))


def test_revisions_are_told_apart_by_presence_alone() -> None:
    assert revision_of(spec(python(sessions={}))) != revision_of(spec(python()))
    assert len(revision_of(spec(python()))) == 12


def test_a_field_with_its_default_is_not_in_the_revision() -> None:
    """So that a release that adds a field restarts nobody. These digests may change only with a reason to restart every worker."""
    assert revision_of(spec(onnx())) == "db5ce4aff62d"
    assert revision_of(spec(WHOLE)) == "2feca53e8dfd"


def test_a_state_version_is_of_names_datatypes_and_shapes() -> None:
    layout = [("a", "FP32", [2, -1]), ("b", "INT64", [-1])]
    assert state_version_of(layout) == state_version_of(reversed(layout))
    assert len(state_version_of(layout)) == 12
    for other in (
        [("a", "FP16", [2, -1]), layout[1]],
        [("c", "FP32", [2, -1]), layout[1]],
        [("a", "FP32", [3, -1]), layout[1]],
        layout[:1],
    ):
        assert state_version_of(other) != state_version_of(layout)


def test_state_bytes_count_one_session() -> None:
    assert state_bytes([([2, -1, 128], 1, 4), ([-1, 3, -1], 0, 8)]) == 2 * 128 * 4 + 3 * 8
    assert state_bytes([([], None, 4)]) == 4


# ----------------------------------------------------------------------------------------------------------------------- durations


@settings(deadline=None)
@given(st.integers(0, 10**15))
def test_a_duration_is_the_text_that_it_writes(milliseconds: int) -> None:
    hours, rest = divmod(milliseconds, 3_600_000)
    first = Duration(f"{hours}h{rest}ms")
    assert first.milliseconds == milliseconds
    assert Duration(str(first)) == first
    assert str(Duration(str(first))) == str(first)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 999_999), st.sampled_from(["h", "m", "s", "ms"])), min_size=1, max_size=3))
def test_the_parts_of_a_duration_add_up(parts: list[tuple[int, str]]) -> None:
    units = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
    assert Duration("".join(f"{n}{unit}" for n, unit in parts)).milliseconds == sum(n * units[unit] for n, unit in parts)


@settings(deadline=None)
@given(st.text(alphabet="0123456789hms. -+d\n", max_size=12))
def test_the_pattern_of_the_schema_is_what_is_read(text: str) -> None:
    if re.fullmatch(durations.PATTERN, text, re.ASCII):
        assert Duration(text).milliseconds >= 0
    else:
        with pytest.raises(ValueError, match="is allowed"):
            Duration(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("60s", "1m"),
        ("90s", "90s"),
        ("1h30m", "90m"),
        ("0s", "0ms"),
        ("1500ms", "1500ms"),
        ("24h", "24h"),
        ("999999999h1ms", "999999999h1ms"),
    ],
)
def test_a_duration_has_one_text(text: str, shown: str) -> None:
    assert str(Duration(text)) == shown


@pytest.mark.parametrize("text", ["", "5", "1d", "1.5s", "-1s", " 1s", "1s ", "1s\n", "1 s", "1S", "1234567890s", "1s" * 17, "١s"])
def test_these_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is allowed"):
        Duration(text)


def test_durations_compare_hash_and_stay() -> None:
    assert Duration("60s") == Duration("1m") != Duration("61s")
    assert Duration("59s") < Duration("1m") <= Duration("60s")
    assert len({Duration("60s"), Duration("1m")}) == 1
    assert Duration("1s") != 1
    assert (Duration("1500ms").seconds, Duration("1ms").microseconds) == (1.5, 1000)
    assert pickle.loads(pickle.dumps(Duration("90s"))) == Duration("90s")
    with pytest.raises(AttributeError):
        Duration("1s").milliseconds = 3


# ---------------------------------------------------------------------------------------------------------------- the worker's file


def test_the_workers_file_is_read_as_it_was_written() -> None:
    file = WorkerFile(
        installation="default",
        namespace="speech",
        name="vad",
        uid="u",
        revision="r",
        spec=spec(WHOLE),
        store=StoreAccess(endpoints=["127.0.0.1:2379"], user="a", password="b"),
        model_root="/models",
    )
    assert workerfile.load(workerfile.dump(file)) == file
    assert msgspec.json.decode(workerfile.dump(file))["modelRoot"] == "/models"
    assert file.function.path == "speech/vad/u"
    assert file.keys.root == "/dormouse/default/"


@pytest.mark.parametrize("text", [b"", b"{}", b'{"spec": {"runtime": "x"}}', b"\xff"])
def test_another_file_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="worker's spec file: "):
        workerfile.load(text)


def test_a_worker_loads_no_yaml() -> None:
    """Its first caller waits for every import."""
    told = "import sys, dormouse_core.workerfile, dormouse_core.handlers; print('yaml' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "False\n"
