"""Manifests that are wrong, and the sentences that say so: each names the field, what was found and what is allowed."""

import json
import pathlib
from typing import Any

import pytest
from dormouse_core import limits
from dormouse_core.spec import Duration, InferenceFunction, Initial, InvalidManifest, Timeouts, parse_manifest
from dormouse_testing.manifests import Data, manifest, onnx, stateful

SPEC_FIELDS = (
    "runtime, model, handler, sessions, batching, replicas, minReplicas, maxReplicas, askedReplicas, scaleMetric, "
    "scaleTarget, maxConcurrency, scaleToZeroAfter, retryStateless, timeouts and workers are allowed"
)
WORKERS_FIELDS = (
    "image, resources, env, envFrom, nodeSelector, tolerations, affinity, topologySpreadConstraints, labels, annotations, "
    "imagePullSecrets, serviceAccountName, priorityClassName, runtimeClassName, schedulerName, securityContext and volumes are allowed"
)
DURATION = 'a duration such as "250ms", "60s", "10m" or "1h30m" is allowed'
LABEL = "a DNS label (a-z, 0-9 and -, a letter or digit at both ends) is allowed"
URI = "a URI without spaces that begins with https://, s3://, gs://, hf://, pvc://, configmap:// or file:// is allowed"


def problems(text: Any) -> tuple[str, ...]:
    with pytest.raises(InvalidManifest) as refused:
        parse_manifest(text)
    return refused.value.problems


def named(metadata: Any) -> Data:
    return {**onnx(), "metadata": metadata}


FIELDS: list[tuple[Data, str]] = [
    (onnx(runtime="onx"), 'spec.runtime: "onx" found, onnx or python is allowed'),
    (manifest({"model": {"uri": "file://a"}}), "spec.runtime: not found, it is required"),
    (onnx(modle={}), f"spec.modle: unknown field, {SPEC_FIELDS}; did you mean model?"),
    (
        onnx(model={"uri": "ftp://a"}),
        f'spec.model.uri: "ftp://a" found, {URI}',
    ),
    (
        onnx(model={"uri": "http://a"}),
        f'spec.model.uri: "http://a" found, {URI}',
    ),
    (
        onnx(model={"uri": "file://a\n"}),
        f'spec.model.uri: "file://a\\n" found, {URI}',
    ),
    (onnx(model={"uri": "file://" + "a" * 2048}), "spec.model.uri: 2055 characters found, at most 2048 are allowed"),
    (
        onnx(model={"uri": "file://a\0"}),
        f'spec.model.uri: "file://a\\u0000" found, {URI}',
    ),
    (
        onnx(workers={"env": [{"name": "A", "value": "\0"}]}),
        'spec.workers.env[0].value: "\\u0000" found, text that matches ^[^\\x00]*$ is allowed',
    ),
    (onnx(model={}), "spec.model.uri: not found, it is required"),
    (onnx(model="a.onnx"), 'spec.model: "a.onnx" found, an object with uri and sha256 is allowed'),
    (onnx(model={"uri": "file://a", "sha256": "AB"}), 'spec.model.sha256: "AB" found, 64 characters of 0-9 and a-f is allowed'),
    (onnx(model={"uri": "file://a", "sha256": 123}), "spec.model.sha256: 123 found, text is allowed (put it in quotes)"),
    (
        onnx(handler="chat.Chat"),
        'spec.handler: "chat.Chat" found, "module:Class" is allowed',
    ),
    (onnx(replicas=-1), "spec.replicas: -1 found, a whole number from 0 to 1000 is allowed"),
    (onnx(replicas="auto"), 'spec.replicas: "auto" found, a whole number from 0 to 1000 is allowed'),
    (onnx(replicas=True), "spec.replicas: true found, a whole number from 0 to 1000 is allowed"),
    (onnx(replicas=1.5), "spec.replicas: 1.5 found, a whole number from 0 to 1000 is allowed"),
    (onnx(retryStateless="yes"), 'spec.retryStateless: "yes" found, true or false is allowed'),
    (onnx(scaleMetric="cpu"), 'spec.scaleMetric: "cpu" found, concurrency, rps or sessions is allowed'),
    (onnx(batching={"maxBatchSize": 0}), "spec.batching.maxBatchSize: 0 found, a whole number from 1 to 1024 is allowed"),
    (
        onnx(batching={"maxQueueDelay": 5}),
        'spec.batching.maxQueueDelay: 5 found, a duration with its unit such as "250ms", "60s", "10m" or "1h30m" is allowed',
    ),
    (onnx(timeouts={"step": "1d"}), f'spec.timeouts.step: "1d" found, {DURATION}'),
    (onnx(timeouts={"step": "1.5s"}), f'spec.timeouts.step: "1.5s" found, {DURATION}'),
    (onnx(timeouts={"step": "-1s"}), f'spec.timeouts.step: "-1s" found, {DURATION}'),
    (onnx(timeouts={"step": "25h"}), 'spec.timeouts.step: "25h" found, 1ms to 24h is allowed'),
    (onnx(timeouts=[]), "spec.timeouts: an empty list found, an object with step, hold and hang is allowed"),
    (
        onnx(sessions=[]),
        "spec.sessions: an empty list found, an object with states, controls, stateVersion, accepts, durability, reclaimPolicy, shards, "
        "evictAfter, ttl, maxCount and maxBytes is allowed",
    ),
    (stateful(shards=5000), "spec.sessions.shards: 5000 found, a whole number from 1 to 4096 is allowed"),
    (stateful(durability="Sometimes"), 'spec.sessions.durability: "Sometimes" found, Buffered, Committed or Memory is allowed'),
    (
        stateful(accepts=["a", "b", "a"]),
        'spec.sessions.accepts[2]: "a" found, but spec.sessions.accepts[0] has it already; each is allowed once',
    ),
    (stateful({"initial": "ones"}), 'spec.sessions.states[0].initial: "ones" found, zeros or an object with shape or file is allowed'),
    (
        stateful({"initial": {"shpae": [1]}}),
        "spec.sessions.states[0].initial.shpae: unknown field, shape and file are allowed; did you mean shape?",
    ),
    (stateful({"shape": [1] * 17}), "spec.sessions.states[0].shape: 17 items found, at most 16 are allowed"),
    (stateful({"shape": [1, -2]}), "spec.sessions.states[0].shape[1]: -2 found, a whole number from -1 to 2147483647 is allowed"),
    (
        stateful({}, {"output": "b"}),
        'spec.sessions.states[1].input: "state" found, but spec.sessions.states[0] has it already; each is allowed once',
    ),
    (onnx(workers={"hostNetwork": True}), f"spec.workers.hostNetwork: unknown field, {WORKERS_FIELDS}"),
    (
        onnx(workers={"securityContext": {"privileged": True}}),
        "spec.workers.securityContext.privileged: unknown field, runAsUser, runAsGroup, fsGroup, supplementalGroups and "
        "fsGroupChangePolicy are allowed",
    ),
    (
        onnx(workers={"securityContext": {"runAsUser": 0}}),
        "spec.workers.securityContext.runAsUser: 0 found, a whole number from 1 to 2147483647 is allowed",
    ),
    (onnx(workers={"hostNetwork": True}), f"spec.workers.hostNetwork: unknown field, {WORKERS_FIELDS}"),
    (
        onnx(workers={"volumes": [{"name": "v", "mountPath": "/v", "hostPath": {"path": "/"}}]}),
        "spec.workers.volumes[0].hostPath: unknown field, name, mountPath, readOnly, persistentVolumeClaim, secret, configMap and emptyDir "
        "are allowed",
    ),
    (onnx(workers={"labels": {"a": 1}}), 'spec.workers.labels["a"]: 1 found, text is allowed (put it in quotes)'),
    (onnx(workers={"env": {"A": "b"}}), "spec.workers.env: an object found, a list is allowed"),
    (onnx(workers={"affinity": {"a": float("inf")}}), 'spec.workers.affinity["a"]: Infinity found, a finite number is allowed'),
    (
        onnx(workers={"resources": {"limits": {"cpu": {1}}}}),
        'spec.workers.resources.limits["cpu"]: set found, what JSON can say is allowed (put it in quotes)',
    ),
    (named({}), "metadata.name: not found, it is required"),
    (named({"name": "Vad"}), f'metadata.name: "Vad" found, {LABEL}'),
    (named({"name": "a.b"}), f'metadata.name: "a.b" found, {LABEL}'),
    (named({"name": "a\n"}), f'metadata.name: "a\\n" found, {LABEL}'),
    (named({"name": "a" * 53}), "metadata.name: 53 characters found, 1 to 52 are allowed"),
    (named({"name": "a", "namespace": "b" * 64}), "metadata.namespace: 64 characters found, 1 to 63 are allowed"),
    (named({"name": 7}), "metadata.name: 7 found, text is allowed (put it in quotes)"),
    (
        named({"name": "a", "nmespace": "b"}),
        "metadata.nmespace: unknown field, name, namespace, labels and annotations are allowed; did you mean namespace?",
    ),
    (named([]), "metadata: an empty list found, an object with name, namespace, labels and annotations is allowed"),
    ({**onnx(), "apiVersion": "v1"}, 'apiVersion: "v1" found, dormouse.dev/v1alpha1 is allowed'),
    ({**onnx(), "kind": "Deployment"}, 'kind: "Deployment" found, InferenceFunction is allowed'),
    ({**onnx(), "sepc": {}}, "sepc: unknown field, apiVersion, kind, metadata and spec are allowed"),
    ({**onnx(), "spec": 3}, f"spec: 3 found, an object with {SPEC_FIELDS.replace('are', 'is')}"),
]


@pytest.mark.parametrize(("data", "message"), FIELDS, ids=[message[:60] for _, message in FIELDS])
def test_a_wrong_field_is_told(data: Data, message: str) -> None:
    assert problems(data) == (message,)


HEAD = "apiVersion: dormouse.dev/v1alpha1\nkind: InferenceFunction\nmetadata: {name: vad}\n"
GOOD = HEAD + "spec: {runtime: onnx, model: {uri: 'file://vad.onnx'}}\n"

TEXTS: list[tuple[str | bytes, str]] = [
    ("", "manifest: no documents found, one InferenceFunction is allowed"),
    ("# nothing\n---\n", "manifest: no documents found, one InferenceFunction is allowed"),
    (GOOD + "---\n" + GOOD, "manifest: 2 documents found, one InferenceFunction is allowed"),
    ("- a\n", "manifest: a list of 1 found, an object with apiVersion, kind, metadata and spec is allowed"),
    ("just text", 'manifest: "just text" found, an object with apiVersion, kind, metadata and spec is allowed'),
    (
        HEAD + "spec: {runtime: [onnx\n",
        "manifest: line 5, column 1: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)",
    ),
    (
        HEAD + "spec:\n  runtime: onnx\n  runtime: python\n",
        'manifest: line 6, column 3: the key "runtime" found again, it is in line 5 already',
    ),
    (
        HEAD + "spec:\n\truntime: onnx\n",
        "manifest: line 5, column 1: found character '\\t' that cannot start any token (while scanning for the next token)",
    ),
    (json.dumps(onnx())[:-1] + ', "kind": "X"}', 'manifest: the key "kind" found more than once in one object, once is allowed'),
    (HEAD + "spec: &spec {runtime: *spec}\n", "manifest: line 4, column 7: an alias of something that holds it"),
    (
        HEAD + "spec: !!python/object/apply:os.system [id]\n",
        "manifest: line 4, column 7: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    (HEAD + "spec: {? [a] : b}\n", "manifest: line 4, column 10: found unhashable key (while constructing a mapping)"),
    (
        json.dumps({**onnx(), "sp\ud800": 1}),
        "manifest: half of a surrogate pair found (\\ud800 to \\udfff), whole characters are allowed",
    ),
    ('a: "\\ud800"', "manifest: half of a surrogate pair found (\\ud800 to \\udfff), whole characters are allowed"),
    (b"\xff\xfe", "manifest: the byte 0xff at 0 found, UTF-8 is allowed"),
    ("a" * (limits.MANIFEST_BYTES + 1), "manifest: 262145 bytes found, at most 262144 are allowed"),
]


@pytest.mark.parametrize(("text", "message"), TEXTS, ids=[message[:60] for _, message in TEXTS])
def test_a_wrong_text_is_told_with_its_line(text: str | bytes, message: str) -> None:
    assert problems(text) == (message,)


def test_aliases_that_multiply_are_refused_before_they_are_written_out() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (message,) = problems("\n".join(lines))
    assert message.startswith("manifest: line 5, column 5: more than 20000 values found once aliases are written out")


def test_a_deep_nesting_is_refused() -> None:
    (message,) = problems("[" * 100_000)
    assert "nesting" in message
    (message,) = problems('{"a":' * 20_000)
    assert "nesting" in message
    deep: Any = {}
    for _ in range(40):
        deep = {"a": deep}
    (message,) = problems(onnx(workers={"affinity": deep}))
    assert message.endswith("a nesting of more than 32 found, at most 32 is allowed")


def test_every_fault_is_told_at_once_and_the_message_is_bounded() -> None:
    many = problems({**onnx(replicas=-1, scaleMetric="cpu", timeouts={"step": "x"}), "kind": "Pod", "metadata": {}})
    fields = [message.split(":")[0] for message in many]
    assert fields == [
        "kind",
        "metadata.name",
        "spec.replicas",
        "spec.scaleMetric",
        "spec.timeouts.step",
    ]
    with pytest.raises(InvalidManifest) as refused:
        parse_manifest(onnx(workers={"labels": {f"k{n}": n for n in range(60)}}))
    assert len(refused.value.problems) == 60
    assert refused.value.message.splitlines()[20:] == ["and 40 more"]


def test_rules_are_told_together() -> None:
    assert len(problems(stateful({}, {"input": "other"}, durability="Memory"))) == 2


def test_an_empty_sessions_is_not_taken_for_a_stateless_function() -> None:
    wanted = "spec.sessions: null found, an object is allowed; leave the field out for a stateless function"
    assert problems(GOOD.replace("spec: {", "spec: {sessions: , ")) == (wanted,)


def test_null_is_as_absent() -> None:
    data = onnx()
    data["spec"] |= {"replicas": None, "timeouts": None, "workers": {"image": None}, "batching": {"maxBatchSize": None}}
    assert parse_manifest(data) == parse_manifest(onnx())


def test_the_smallest_manifest_has_the_defaults_of_the_design() -> None:
    function = parse_manifest(GOOD)
    spec = function.spec
    assert (function.metadata.name, function.metadata.namespace) == ("vad", "default")
    assert (spec.replicas, spec.min_replicas, spec.max_replicas) == (None, 0, 10)
    assert (spec.scale_metric, spec.scale_target, spec.max_concurrency) == ("concurrency", 16, 256)
    assert spec.scale_to_zero_after == Duration("60s")
    assert spec.retry_stateless
    assert spec.timeouts == Timeouts(step=Duration("60s"), hold=Duration("300s"))
    assert (spec.batching.max_batch_size, spec.batching.axes, spec.batching.max_queue_delay.seconds) == (None, None, 0)
    assert spec.sessions is None


def test_a_stateful_function_is_read_in_full() -> None:
    function = parse_manifest(
        """
        apiVersion: dormouse.dev/v1alpha1
        kind: InferenceFunction
        metadata: {name: vad, namespace: speech, labels: {team: voice}}
        spec:
          runtime: onnx
          model: {uri: "hf://org/vad/vad.onnx"}
          sessions:
            states: [{input: cache, output: cacheN, shape: [-1, 32, -1, 1], batchAxis: 0, initial: {shape: [1, 32, 0, 1]}}]
            ttl: 1h30m
          workers:
            resources: {limits: {cpu: 2, memory: 1Gi}}
            env: [{name: A, value: "1"}]
        """
    )
    sessions = function.spec.sessions
    assert sessions is not None
    assert function.metadata.namespace == "speech"
    assert sessions.states[0].initial == Initial(shape=[1, 32, 0, 1])
    assert (sessions.ttl.seconds, sessions.evict_after.seconds, sessions.shards, sessions.max_count) == (5400, 600, 64, 1_000_000)
    assert function.spec.workers.resources.limits == {"cpu": 2, "memory": "1Gi"}


def test_the_namespace_of_the_command_is_the_default() -> None:
    assert parse_manifest(GOOD, namespace="speech").metadata.namespace == "speech"
    assert parse_manifest(GOOD.replace("{name: vad}", "{name: vad, namespace: a}"), namespace="speech").metadata.namespace == "a"


def test_json_and_bytes_and_data_say_the_same() -> None:
    wanted = parse_manifest(onnx())
    text = json.dumps(onnx(), indent="\t")
    assert parse_manifest(text) == parse_manifest(text.encode()) == parse_manifest(GOOD) == wanted
    assert isinstance(wanted, InferenceFunction)


def test_what_kubectl_writes_can_be_applied_again() -> None:
    data = {**onnx(), "status": {"phase": "Ready"}}
    data["metadata"] |= {
        "uid": "u",
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [],
        "generation": 3,
    }
    assert parse_manifest(data) == parse_manifest(onnx())


def test_yaml_reads_dates_as_the_text_that_was_written() -> None:
    text = GOOD.replace("{name: vad}", "{name: vad, annotations: {since: 2026-01-01}}")
    assert parse_manifest(text).metadata.annotations == {"since": "2026-01-01"}


def test_yaml_aliases_and_merges_work() -> None:
    text = HEAD + "spec:\n  runtime: onnx\n  model: &model {uri: 'file://a'}\n  workers: {labels: &l {a: b}, annotations: {<<: *l, c: d}}\n"
    assert parse_manifest(text).spec.workers.annotations == {"a": "b", "c": "d"}


EXAMPLES = [path for path in sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.yaml")) if path.name != "kustomization.yaml"]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_the_examples_are_read(path: pathlib.Path) -> None:
    assert parse_manifest(path.read_text(encoding="utf-8")).metadata.name == path.stem
