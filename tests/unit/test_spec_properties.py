"""Whatever somebody hands in: a function, or InvalidManifest; and the schema is never stricter than Dormouse itself."""

import copy
from typing import Any

from dormouse_core.spec import InvalidManifest, parse_manifest, schema, spec_from_json, spec_to_json
from dormouse_testing.manifests import Data, onnx, stateful
from dormouse_testing.structural import value_faults, with_defaults
from hypothesis import given, settings
from hypothesis import strategies as st

WORKERS: Data = {
    "image": "a/b",
    "env": [{"name": "A", "value": "1"}],
    "labels": {"a": "b"},
    "resources": {"limits": {"cpu": 1}},
    "volumes": [{"name": "v", "mountPath": "/v", "readOnly": True, "emptyDir": {}}],
    "tolerations": [{"key": "a"}],
}
FULL: Data = stateful({"initial": {"shape": [2, 1, 128]}}, {"input": "b", "output": "c"}, accepts=["a"], ttl="1h", shards=8)
FULL["spec"] |= {"workers": WORKERS, "replicas": 2, "timeouts": {"step": "1s"}, "batching": {"maxBatchSize": 4}, "scaleMetric": "rps"}

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 5000),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["onnx", "python", "60s", "0ms", "25h", "a:B", "file://a", "Committed", "zeros", "a" * 300, "/x", "v\n"]),
    st.lists(st.integers(-2, 3), max_size=3),
    st.dictionaries(st.sampled_from(["a", "name", "shape", "uri"]), st.integers(0, 2) | st.text(max_size=3), max_size=2),
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything inside `data`."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, item in inner for place in [(*path, key), *places(item, (*path, key))]]


@st.composite
def changed(draw: st.DrawFn) -> Data:
    """A good manifest in which one or two things were replaced, removed or added."""
    data = copy.deepcopy(draw(st.sampled_from([FULL, onnx()])))
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from(places(data["spec"])))
        node = data["spec"]
        for key in path:
            node = node[key]
        if isinstance(node, dict) and draw(st.booleans()):
            node.pop(last)
        elif isinstance(node, dict) and draw(st.integers(0, 3)) == 0:
            node[draw(st.text(max_size=5))] = draw(VALUES)
        else:
            node[last] = draw(VALUES)
        if not places(data["spec"]):
            break
    return data


def refused(data: Any) -> bool:
    try:
        function = parse_manifest(data)
    except InvalidManifest as error:
        return bool(error.problems)
    assert spec_from_json(spec_to_json(function.spec)) == function.spec
    return False


@settings(max_examples=400, deadline=None)
@given(changed())
def test_a_changed_manifest_is_read_or_refused_and_the_schema_is_no_stricter(data: Data) -> None:
    stored = with_defaults(schema.root(), {"spec": data["spec"]})
    if value_faults(schema.root(), stored):
        assert refused(data)
    else:
        refused(data)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8))  # fmt: skip
def test_any_spec_is_refused_without_an_accident(spec: Any) -> None:
    assert refused({"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": spec, "spec": spec})


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="{}[]:,-&*!|>?\"'# \n\tab1", max_size=60) | st.binary(max_size=40))
def test_any_text_is_refused_without_an_accident(text: str | bytes) -> None:
    assert refused(text)
