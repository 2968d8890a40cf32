"""Limits that are checked where a manifest is read: what is at the limit is taken, and one more is refused with the field and the limit."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from dormouse_core import limits
from dormouse_core.spec import InvalidManifest, parse_manifest
from dormouse_testing.manifests import onnx, stateful


def named(name: str) -> Any:
    return onnx() | {"metadata": {"name": name}}


def within(namespace: str) -> Any:
    return onnx() | {"metadata": {"name": "vad", "namespace": namespace}}


def states(count: int) -> Any:
    return stateful(*({"input": f"i{n}", "output": f"o{n}"} for n in range(count)))


def bytes_of(size: int) -> str:
    """A manifest of exactly so many bytes."""
    text = json.dumps(onnx())
    return text + " " * (size - len(text))


def aliases(count: int) -> str:
    """YAML whose node of `count` values refers to one of 100 many times."""
    whole = (count - 1 - 101) // 101
    rest = count - 1 - 101 * (whole + 1)
    lines = ["- &a [" + ", ".join("1" * 100) + "]", *["- *a"] * whole, *["- 1"] * rest]
    body = "\n".join(f"    {line}" for line in lines)
    return f"apiVersion: dormouse.dev/v1alpha1\nkind: InferenceFunction\nmetadata:\n  name: vad\nspec:\n  runtime: onnx\n  x:\n{body}\n"


CASES: list[tuple[str, Callable[[int], Any], int, str]] = [
    ("name", lambda n: named("a" * n), limits.FUNCTION_NAME_CHARACTERS, "metadata.name"),
    ("namespace", lambda n: within("a" * n), limits.NAMESPACE_CHARACTERS, "metadata.namespace"),
    ("shards", lambda n: stateful(shards=n), limits.SHARDS_MAX, "spec.sessions.shards"),
    ("maxCount", lambda n: stateful(maxCount=n), limits.SESSIONS_MAX, "spec.sessions.maxCount"),
    ("states", states, limits.STATES_MAX, "spec.sessions.states"),
    ("dimensions", lambda n: stateful({"shape": [1] * n, "batchAxis": None}), limits.TENSOR_DIMENSIONS, "spec.sessions.states[0].shape"),
    ("state bytes", lambda n: stateful({"shape": [n], "batchAxis": None}), limits.STATE_BYTES, "spec.sessions.states"),
    ("replicas", lambda n: onnx(replicas=n), limits.REPLICAS_MAX, "spec.replicas"),
    ("minReplicas", lambda n: onnx(minReplicas=n, maxReplicas=1000), limits.REPLICAS_MAX, "spec.minReplicas"),
    ("maxReplicas", lambda n: onnx(maxReplicas=n), limits.REPLICAS_MAX, "spec.maxReplicas"),
    ("maxConcurrency", lambda n: onnx(maxConcurrency=n), limits.CONCURRENCY_MAX, "spec.maxConcurrency"),
    ("maxBatchSize", lambda n: onnx(batching={"maxBatchSize": n}), limits.BATCH_SIZE_MAX, "spec.batching.maxBatchSize"),
    ("manifest", bytes_of, limits.MANIFEST_BYTES, "manifest"),
]


@pytest.mark.parametrize(("make", "most", "field"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_at_the_limit_it_is_taken_and_beyond_it_is_refused_with_the_field(make: Callable[[int], Any], most: int, field: str) -> None:
    parse_manifest(make(most))
    with pytest.raises(InvalidManifest) as refused:
        parse_manifest(make(most + 1))
    assert str(refused.value).startswith(f"{field}: "), refused.value
    assert str(most) in str(refused.value)


def test_values_behind_aliases_are_counted_as_they_would_be_written_out() -> None:
    """What is at the limit is refused for its unknown field alone. Around the list there are 14 values."""
    with pytest.raises(InvalidManifest, match=r"spec\.x: unknown field"):
        parse_manifest(aliases(limits.MANIFEST_NODES - 14))
    with pytest.raises(InvalidManifest, match=f"more than {limits.MANIFEST_NODES} values found once aliases are written out"):
        parse_manifest(aliases(limits.MANIFEST_NODES - 13))
