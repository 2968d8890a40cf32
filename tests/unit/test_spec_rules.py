"""Every rule: a manifest that breaks it, the sentence that says so, and the API server's CEL beside our predicate."""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from dormouse_core.errors import Code, FailedPrecondition
from dormouse_core.spec import InferenceFunction, InvalidManifest, parse_manifest, schema, validate_update
from dormouse_core.spec.broken_rules import broken, nodes
from dormouse_core.spec.canonical import decode_hook
from dormouse_core.spec.rules import RULES, Rule
from dormouse_testing.manifests import Data, onnx, python, stateful
from dormouse_testing.structural import with_defaults

VOLUME = {"name": "v", "mountPath": "/v"}
PLACES = (
    "https://host/path of one file, without a user or password, s3://bucket/path, gs://bucket/path, hf://owner/repository[@revision]/path, "
    "pvc://claim/path, configmap://name/key, configmap://name or file://path is allowed"
)

BROKEN: list[tuple[Data, str]] = [
    (onnx(model=None), "spec.model: nothing found, the runtime onnx requires a model"),
    (onnx(handler="a:B"), 'spec.handler: "a:B" found, only the runtime python takes a handler'),
    (python(handler=None), 'spec.handler: nothing found, the runtime python requires a handler, as "module:Class"'),
    (onnx(sessions={}), "spec.sessions.states: an empty list found, a stateful function of the runtime onnx names at least one state"),
    (
        python(sessions={"states": [{"input": "a", "output": "b", "shape": [-1], "batchAxis": 0}]}),
        "spec.sessions.states: a list of 1 found, none is allowed: a Python handler declares its states in its code "
        "(states = [State(...)])",
    ),
    (onnx(minReplicas=3, maxReplicas=2), "spec.minReplicas: 3 (maxReplicas 2) found, at most maxReplicas is allowed"),
    (onnx(scaleMetric="sessions"), 'spec.scaleMetric: "sessions" found, a function without sessions scales by concurrency or rps'),
    (onnx(model={"uri": "file://a/../b"}), 'spec.model.uri: "file://a/../b" found, a path without ".." is allowed'),
    (onnx(model={"uri": "file://.."}), 'spec.model.uri: "file://.." found, a path without ".." is allowed'),
    (onnx(model={"uri": "https://u:secret@h/m"}), f'spec.model.uri: "https://***@h/m" found, {PLACES}'),
    *(
        (onnx(model={"uri": uri}), f'spec.model.uri: "{uri}" found, {PLACES}')
        for uri in (
            "https:///m.onnx",
            "https://h",
            "https://h/",
            "https://h//",
            "https://h/?m.onnx",
            "s3:///m",
            "gs:///m",
            "hf://owner",
            "hf://owner/",
            "hf:///r",
            "hf://o/@main",
            "hf://o/r@",
            "hf://o/r@/m",
            "pvc:///m",
            "pvc://Claim/m",
            "pvc://-c",
            "pvc://a..b",
            "configmap://a_b/m",
            "configmap:///m",
            "configmap://m/a/b",
            "configmap://m/a%b",
        )
    ),
    (
        stateful(durability="Buffered"),
        'spec.sessions.durability: "Buffered" found, Committed is allowed: Buffered and Memory are not in this release',
    ),
    (
        python(sessions={"controls": {"start": "START"}}),
        "spec.sessions.controls: an object found, none is allowed: a Python handler is told the same by its context "
        "(ctx.start, ctx.end, ctx.session)",
    ),
    (
        stateful(controls={"start": "A", "end": "A"}),
        'spec.sessions.controls: the input "A" more than once found, each input is allowed once, as a control or as a state',
    ),
    (
        stateful(controls={"correlationId": "state"}),
        'spec.sessions.controls: the input "state" more than once found, each input is allowed once, as a control or as a state',
    ),
    (stateful({}, {"input": "other"}), 'spec.sessions.states: the output "stateN" more than once found, each output is allowed once'),
    (
        stateful({"shape": [512, -1, 1024]}, {"shape": [512, -1, 1024], "input": "b", "output": "c"}),
        "spec.sessions.states: a session of at least 1048576 bytes (at one byte an element) found, at most 1015808 bytes are allowed, "
        "for a record in the store",
    ),
    (
        stateful({"shape": [1024, -1, 1024]}),
        "spec.sessions.states: a session of at least 1048576 bytes (at one byte an element) found, at most 1015808 bytes are allowed, "
        "for a record in the store\nspec.sessions.states[0].shape: 1048576 elements found, at most 1015808 elements are allowed, "
        "for a record in the store",
    ),
    (stateful({"batchAxis": 3}), "spec.sessions.states[0].batchAxis: 3 (shape has 3 dimensions) found, an axis of shape is allowed"),
    (
        stateful({"batchAxis": 0}, {"input": "b", "output": "c"}),
        "spec.sessions.states[0].shape: 2 at axis 0 found, -1 or 1 is allowed at batchAxis",
    ),
    (
        stateful({"shape": [2, -1, -1]}),
        'spec.sessions.states[0].initial: "zeros" found, a shape with dimensions that vary needs {shape: [...]} or {file: x.npy}',
    ),
    (stateful({"initial": {}}), "spec.sessions.states[0].initial: neither found, exactly one of shape and file is allowed"),
    (
        stateful({"initial": {"shape": [2, 1, 128], "file": "a.npy"}}),
        "spec.sessions.states[0].initial: both found, exactly one of shape and file is allowed",
    ),
    (
        stateful({"initial": {"shape": [2, 1, 64]}}),
        "spec.sessions.states[0].initial.shape: [2, 1, 64] (shape is [2, -1, 128]) found, the sizes of shape are allowed, with 1 at "
        "batchAxis",
    ),
    (
        stateful({"initial": {"file": "../a.npy"}}),
        'spec.sessions.states[0].initial.file: "../a.npy" found, a path of a .npy file beside the model, without ".." is allowed',
    ),
    (
        onnx(workers={"labels": {"dormouse.dev/x": "y"}}),
        'spec.workers.labels: "dormouse.dev/x" found, no name under dormouse.dev/ is allowed',
    ),
    (
        onnx(workers={"annotations": {"dormouse.dev/x": "y"}}),
        'spec.workers.annotations: "dormouse.dev/x" found, no name under dormouse.dev/ is allowed',
    ),
    (
        onnx(workers={"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "1", "valueFrom": {}}]}),
        "spec.workers.env[1].valueFrom: both found, either value or valueFrom is allowed",
    ),
    *[
        (
            onnx(workers={"env": [{"name": name, "value": "x"}]}),
            f'spec.workers.env[0].name: "{name}" found, neither PYTHONHOME nor a name that begins with DORMOUSE_ is allowed, but '
            "DORMOUSE_LOG_LEVEL",
        )
        for name in ("PYTHONHOME", "DORMOUSE_MODELS", "DORMOUSE_LINK_FD", "DORMOUSE_")
    ],
    (
        onnx(workers={"volumes": [VOLUME]}),
        "spec.workers.volumes[0]: 0 sources found, exactly one of persistentVolumeClaim, secret, configMap and emptyDir is allowed",
    ),
    (
        onnx(workers={"volumes": [{**VOLUME, "emptyDir": {}, "secret": {"secretName": "s"}}]}),
        "spec.workers.volumes[0]: 2 sources found, exactly one of persistentVolumeClaim, secret, configMap and emptyDir is allowed",
    ),
    (
        onnx(workers={"volumes": [{**VOLUME, "name": "dormouse-tmp", "emptyDir": {}}]}),
        'spec.workers.volumes[0].name: "dormouse-tmp" found, none that begins with dormouse- is allowed',
    ),
    *(
        (
            onnx(workers={"volumes": [{**VOLUME, "mountPath": path, "emptyDir": {}}]}),
            f'spec.workers.volumes[0].mountPath: "{path}" found, a folder that is not / and not in one of /etc/dormouse, /mnt/model, '
            "/var/lib/dormouse, /tmp, /dev, /proc, /sys is allowed",
        )
        for path in (
            "/",
            "//",
            "/.",
            "/./",
            "/tmp",
            "/tmp/",
            "//tmp",
            "/./tmp",
            "/tmp/.",
            "/tmp/x",
            "/etc/./dormouse/x",
            "/etc//dormouse",
            "/a/../tmp",
            "/..",
            "/a/..",
            "/dev/shm",
            "/mnt/model",
            "/var/./lib//dormouse",
        )
    ),
]

KEPT: list[Data] = [
    onnx(),
    onnx(replicas=0, minReplicas=2, maxReplicas=2, scaleMetric="rps"),
    onnx(model={"uri": "https://example.org/a..b/model.onnx"}),
    python(),
    python(sessions={}, scaleMetric="sessions", model={"uri": "file://chat"}),
    stateful(),
    stateful({"shape": [1, 1, 128], "batchAxis": 0}, {"input": "b", "output": "c"}),
    stateful({"shape": [-1, 32, -1, 1], "batchAxis": 0, "initial": {"shape": [1, 32, 0, 1]}}),
    stateful({"initial": {"file": "first/state.npy"}}),
    stateful({"shape": [], "batchAxis": None}),
    stateful({"shape": [2, 16], "batchAxis": None}, controls={"start": "START", "end": "END", "ready": "READY", "correlationId": "CORRID"}),
    onnx(
        workers={
            "labels": {"team": "speech"},
            "annotations": {"a/b": "c"},
            "env": [{"name": "A"}, {"name": "B", "valueFrom": {}}, {"name": "DORMOUSE_LOG_LEVEL"}, {"name": "LD_PRELOAD"}],
        }
    ),
    *(
        onnx(model={"uri": uri})
        for uri in (
            "https://h/m",
            "https://h//m",
            "https://h:1/m?a=@b",
            "https://h/a@b",
            "https://h/m/",
            "s3://b",
            "s3://b/m",
            "gs://b//m",
            "hf://o/r",
            "hf://o/r@v1/m.onnx",
            "hf://o/r@a@b",
            "hf://o/r/",
            "pvc://c",
            "pvc://c.d/m/n",
            "pvc://c/",
            "configmap://c",
            "configmap://c/",
            "configmap://c/m.onnx",
            "file://m",
            "file:///m",
        )
    ),
    *(
        onnx(workers={"volumes": [{**VOLUME, "mountPath": path, "emptyDir": {}}]})
        for path in (
            "/data",
            "/tmpfs",
            "/.tmp",
            "/...",
            "/etc",
            "/etc/dormouse2",
            "/x/tmp",
            "/a..b",
            "/..a",
            "/models",
        )
    ),
    onnx(workers={"volumes": [{**VOLUME, "emptyDir": {}}, {**VOLUME, "name": "w", "configMap": {"name": "c"}}]}),
]

CHANGES: list[tuple[Data, Data, str]] = [
    (onnx(), python(), 'spec.runtime: "python" found where it was "onnx", cannot be changed: make another function'),
    (
        python(),
        python(sessions={}),
        "spec.sessions: an object found where it was nothing, a function cannot become stateful or stateless: make another function",
    ),
    (
        python(sessions={}),
        python(),
        "spec.sessions: nothing found where it was an object, a function cannot become stateful or stateless: make another function",
    ),
    (stateful(), stateful(shards=8), "spec.sessions.shards: 8 found where it was 64, cannot be changed: make another function"),
]


def unchecked(data: Data) -> InferenceFunction:
    """The function in `data`, without our rules."""
    whole = {"metadata": data["metadata"], "spec": data["spec"]}
    return msgspec.convert(whole, InferenceFunction, dec_hook=decode_hook)


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_rule_is_told_with_field_found_and_allowed(data: Data, message: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        parse_manifest(data)
    assert refused.value.message == message
    assert refused.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("data", KEPT)
def test_what_keeps_the_rules_is_accepted(data: Data) -> None:
    assert parse_manifest(data).spec.runtime == data["spec"]["runtime"]


def test_every_rule_about_an_object_is_broken_by_some_case() -> None:
    for rule in RULES:
        if rule.changes or rule.field == "metadata.name":  # a name's bounds are its type's; the rule is the API server's way to say so
            continue
        assert any(not rule.holds(node) for data, _ in BROKEN for _, node in nodes(unchecked(data), rule.at)), rule


@pytest.mark.parametrize(("old", "new", "message"), CHANGES, ids=[message for _, _, message in CHANGES])
def test_a_change_of_what_does_not_change_is_refused(old: Data, new: Data, message: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        validate_update(unchecked(old), unchecked(new))
    assert message in refused.value.message.splitlines()


def test_durability_does_not_change() -> None:
    with pytest.raises(FailedPrecondition, match=r'spec\.sessions\.durability: "Memory" found where it was "Committed"'):
        validate_update(unchecked(stateful()), unchecked(stateful(durability="Memory")))


def test_other_changes_are_allowed() -> None:
    validate_update(parse_manifest(stateful()), parse_manifest(stateful({"shape": [2, -1, 64]}, ttl="1h", accepts=["v1"])))
    validate_update(parse_manifest(onnx()), parse_manifest(onnx(replicas=3, model={"uri": "file://other.onnx"})))


# ----------------------------------------------------------------------------------------------------------------------------- CEL

Evaluate = Callable[[str, dict[str, Any]], bool]


@pytest.fixture(scope="module")
def evaluate() -> Evaluate:
    try:
        from cel_expr_python import cel
    except ImportError:
        if os.environ.get("CI") == "true":
            pytest.fail("cel-expr-python is not installed")
        pytest.skip("cel-expr-python is not installed: the rules' CEL texts are not evaluated")
    environment = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})

    def run(text: str, data: dict[str, Any]) -> bool:
        value = environment.compile(text).eval(data=data).value()
        assert isinstance(value, bool), f"{text}: {value}"
        return value

    return run


def stored(data: Data) -> Data:
    """As the API server stores it, so as CEL sees it."""
    return {"metadata": data["metadata"], **with_defaults(schema.root(), {"spec": data["spec"]})}


def plain_nodes(data: Any, at: str) -> list[Any]:
    found = [data]
    for step in at.split(".") if at else ():
        inner = [node[step.removesuffix("[]")] for node in found if step.removesuffix("[]") in node]
        found = [each for item in inner for each in item] if step.endswith("[]") else inner
    return found


def with_cel(changes: bool) -> list[Rule]:
    return [rule for rule in RULES if rule.cel and rule.changes is changes]


def test_cel_and_predicates_agree_on_every_case(evaluate: Evaluate) -> None:
    refused = 0
    for data in [data for data, _ in BROKEN] + KEPT:
        function = unchecked(data)
        for rule in with_cel(changes=False):
            ours = [rule.holds(node) for _, node in nodes(function, rule.at)]
            theirs = [evaluate(rule.cel, {"self": node}) for node in plain_nodes(stored(data), rule.at)]
            assert ours == theirs or (not theirs and all(ours)), (rule.cel, data)  # what is absent there has its defaults here
            refused += theirs.count(False)
    assert refused >= len(with_cel(changes=False)) - 1


@pytest.mark.parametrize("name", ["vad", "a", "a-b", "-a", "a-", "a.b", "Vad", "a" * 52, "a" * 53, ""])
def test_cel_and_predicate_agree_on_names(evaluate: Evaluate, name: str) -> None:
    rule = next(rule for rule in RULES if rule.field == "metadata.name")
    function = parse_manifest(onnx())
    function = msgspec.structs.replace(function, metadata=msgspec.structs.replace(function.metadata, name=name))
    assert rule.holds(function) is evaluate(rule.cel, {"self": {"metadata": {"name": name}}})
    assert bool(broken(function)) is not rule.holds(function)


def test_cel_and_predicates_agree_on_changes(evaluate: Evaluate) -> None:
    refused = set()
    for old, new in [(old, new) for old, new, _ in CHANGES] + [(stateful(), stateful(durability="Memory")), (stateful(), stateful())]:
        for rule in with_cel(changes=True):
            before, after = nodes(unchecked(old), rule.at), nodes(unchecked(new), rule.at)
            ours = [rule.holds(was, now) for (_, was), (_, now) in zip(before, after, strict=False)]
            pairs = zip(plain_nodes(stored(old), rule.at), plain_nodes(stored(new), rule.at), strict=False)
            theirs = [evaluate(rule.cel, {"self": now, "oldSelf": was}) for was, now in pairs]
            assert ours == theirs, (rule.cel, old, new)
            refused |= {rule.cel} if False in ours else set()
    assert refused == {rule.cel for rule in with_cel(changes=True)}


@pytest.mark.parametrize(
    ("text", "fits"),
    [("1ms", True), ("0ms", False), ("24h", True), ("24h1ms", False), ("1h30m", True), ("86400000ms", True), ("1440m1s", False)],
)
def test_cel_and_types_agree_on_the_bounds_of_durations(evaluate: Evaluate, text: str, fits: bool) -> None:
    node = schema.root()["properties"]["spec"]["properties"]["timeouts"]["properties"]["step"]
    (rule,) = node["x-kubernetes-validations"]
    assert evaluate(rule["rule"], {"self": text}) is fits
    if fits:
        parse_manifest(onnx(timeouts={"step": text}))
    else:
        with pytest.raises(InvalidManifest, match="1ms to 24h is allowed"):
            parse_manifest(onnx(timeouts={"step": text}))
