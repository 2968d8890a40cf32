"""The types of an `InferenceFunction`: the one place where its fields, bounds, defaults and descriptions are written.

Three readers need the same truth: the API server (a CustomResourceDefinition), one machine (`dormouse apply`), and people (the reference
page). Written three times it would differ three times. Here a field's `Meta` carries its description and bounds, and its default stands
beside it; `schema` makes the CRD from that, `validation` checks a manifest against it, and `rules` holds what spans several fields.

Reading is strict for manifests (`validation` refuses unknown fields by name) and lenient for what Dormouse itself stored: in an upgrade an
older part must be able to read the spec that a newer one wrote. That is why the structs themselves do not forbid unknown fields.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from dormouse_core import limits
from dormouse_core.spec import durations
from dormouse_core.spec.durations import Duration

GROUP = "dormouse.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceFunction"

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
LABEL = {"allowed": "a DNS label (a-z, 0-9 and -, a letter or digit at both ends)"}
SCHEMES = ("https", "s3", "gs", "hf", "pvc", "configmap", "file")

KubernetesObject = dict[str, Any]
"""A piece of a pod's spec that Dormouse passes on as it is; the API server checks it when the pod is made."""

TensorName = Annotated[str, Meta(min_length=1, max_length=256)]
Dimension = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
StringMap = Annotated[dict[str, Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)]


def _between(low: str, high: str, description: str) -> Meta:
    """A duration's description and bounds; msgspec knows no bounds of custom types, so they travel in `extra`."""
    return Meta(
        description=f"{description} From {low} to {high}.",
        extra_json_schema={"type": "string", "pattern": durations.PATTERN},
        extra={"minimum": Duration(low), "maximum": Duration(high)},
    )


class Model(Struct, frozen=True, kw_only=True, rename="camel"):
    uri: Annotated[
        str,
        Meta(
            pattern=rf"^({'|'.join(SCHEMES)})://[^\x00-\x20\x7f]+$",
            max_length=2048,
            extra={"allowed": f"a URI without spaces that begins with {', '.join(f'{s}://' for s in SCHEMES[:-1])} or {SCHEMES[-1]}://"},
            description="Where the model is. file:// is a path under the model root: on one machine the folder of `dormouse up`, in a "
            "cluster the image's /models. In a cluster also https://, s3://, gs:// or hf://, from where each worker fetches it, and "
            "pvc:// or configmap://, which are mounted.",
        ),
    ]
    sha256: (
        Annotated[
            str,
            Meta(
                pattern="^[0-9a-f]{64}$",
                max_length=64,
                extra={"allowed": "64 characters of 0-9 and a-f"},
                description="SHA-256 of the model, in lower-case hex: of one file its own; of several (weights in further files, the "
                "files with which sessions begin, a folder) that of the list that sha256sum prints of them, in the order of their "
                "names. A model with another digest is not loaded.",
            ),
        ]
        | None
    ) = None


class Initial(Struct, frozen=True, kw_only=True, rename="camel"):
    """The first value of a state that is not simply zeros: exactly one of the two."""

    shape: Annotated[
        list[Annotated[int, Meta(ge=0, le=2**31 - 1)]] | None,
        Meta(description="Zeros of this shape, the batch axis counted as 1. For states with variable dimensions."),
    ] = None
    file: Annotated[
        str | None,
        Meta(description="A .npy file beside the model that holds the first value, the batch axis counted as 1."),
    ] = None


class StateSpec(Struct, frozen=True, kw_only=True, rename="camel"):
    """One tensor of a session's state, and where the model takes and gives it."""

    input: Annotated[TensorName, Meta(description="The model's input that takes the state. Also the state's name.")]
    output: Annotated[TensorName, Meta(description="The model's output that gives the next state.")]
    shape: Annotated[
        list[Dimension],
        Meta(
            max_length=limits.TENSOR_DIMENSIONS,
            description="As the model declares it; [] is a scalar. -1 at batchAxis is the batch; -1 elsewhere is a dimension that varies.",
        ),
    ]
    batch_axis: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=limits.TENSOR_DIMENSIONS - 1,
                description="The axis along which the states of several sessions are joined. Its size in shape is -1, or 1 where the model "
                "takes one session at a time. Absent: the state has no such axis, and the model takes one session at a time.",
            ),
        ]
        | None
    ) = None
    initial: Annotated[
        Literal["zeros"] | Initial,
        Meta(description='The state of a new session: the text "zeros", or {shape: [...]} for zeros of that shape, or {file: x.npy}.'),
    ] = "zeros"
    when_missing: (
        Annotated[
            Literal["initial"],
            Meta(
                description="What a session gets whose record, of a version in accepts, lacks this state: initial, its first value. "
                "Absent: the session's steps are refused."
            ),
        ]
        | None
    ) = None


class Controls(Struct, frozen=True, kw_only=True, rename="camel"):
    """Inputs that the worker fills, for models made for Triton's sequence batcher. Each is FP32, INT32 or BOOL of shape [N, 1] or [N]."""

    start: Annotated[
        TensorName | None, Meta(description="The input that is 1 in the first step of a session, else 0 (FP32, INT32 or BOOL).")
    ] = None
    end: Annotated[
        TensorName | None, Meta(description="The input that is 1 in the last step of a sequence, else 0 (FP32, INT32 or BOOL).")
    ] = None
    ready: Annotated[
        TensorName | None, Meta(description="The input that is 1 in every row that a session uses: in all of them (FP32, INT32 or BOOL).")
    ] = None
    correlation_id: Annotated[
        TensorName | None, Meta(description="The input that takes the session's id (UINT64, INT64, UINT32, INT32 or BYTES).")
    ] = None


StateVersion = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


class SessionsSpec(Struct, frozen=True, kw_only=True, rename="camel"):
    states: Annotated[
        list[StateSpec],
        Meta(
            max_length=limits.STATES_MAX,
            description="The model's state tensors (onnx). A Python handler declares its states in its code instead.",
            extra={"map_key": "input"},
        ),
    ] = field(default_factory=list)
    controls: (
        Annotated[Controls, Meta(description="Triton's sequence controls: inputs of the model that callers do not send (onnx).")] | None
    ) = None
    state_version: Annotated[
        StateVersion | None,
        Meta(description="The name of the states' layout. By default a digest of the states' names, datatypes and shapes, not of weights."),
    ] = None
    accepts: Annotated[
        list[StateVersion],
        Meta(max_length=32, description="Further state versions that this revision can read.", extra={"set": True}),
    ] = field(default_factory=list)
    durability: Annotated[
        Literal["Committed", "Buffered", "Memory"],
        Meta(description="What an acknowledged step survives. Committed: every failure. Buffered and Memory are not in this release."),
    ] = "Committed"
    reclaim_policy: Annotated[
        Literal["Delete", "Retain"],
        Meta(
            description="What becomes of the sessions when the object is deleted. Delete: they go with it. Retain: they are kept, and the "
            "next object of this namespace and name goes on with them; it must have as many shards."
        ),
    ] = "Delete"
    shards: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.SHARDS_MAX,
            description="How many parts the sessions are spread over; a worker owns whole shards, so no more workers than this can help.",
        ),
    ] = 64
    evict_after: Annotated[Duration, _between("1s", "8760h", "An idle session leaves the worker's memory after this; it stays stored.")] = (
        Duration("10m")
    )
    ttl: Annotated[Duration, _between("1s", "87600h", "An idle session is over after this; it is removed a removal wait later.")] = (
        Duration("24h")
    )
    max_count: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.SESSIONS_MAX,
            description="A session beyond this many live ones is refused (RESOURCE_EXHAUSTED). With several workers it may be passed by "
            "what they begin within two seconds: so long it may take until they hear of each other.",
        ),
    ] = 1_000_000
    max_bytes: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=2**53 - 1,
                description="A session is refused once the records of all live sessions together take this many bytes "
                "(RESOURCE_EXHAUSTED); those that exist go on. Absent: no limit.",
            ),
        ]
        | None
    ) = None


class Batching(Struct, frozen=True, kw_only=True, rename="camel"):
    max_batch_size: (
        Annotated[
            int,
            Meta(
                ge=1,
                le=limits.BATCH_SIZE_MAX,
                description="At most this many rows of several calls run together; one call may have more. 1: every call runs alone. "
                f"Absent: {limits.BATCH_SIZE} where an experiment at the model's loading shows that rows are independent of each other, "
                "else 1. A number here also holds where no experiment can be made, but not where one contradicts it: see the condition "
                "Batching.",
            ),
        ]
        | None
    ) = None
    axes: (
        Annotated[
            dict[str, Annotated[int, Meta(ge=0, le=limits.TENSOR_DIMENSIONS - 1)]],
            Meta(
                max_length=256,
                description="The axis on which rows lie, by the names of inputs; outputs may be named too. An input that is not named has "
                "no rows: only calls with the same value of it run together. {}: the model has no batch axis. Absent: the first axis, or "
                "one of the same name in every output, where the experiment confirms it. A state's axis is its batchAxis.",
            ),
        ]
        | None
    ) = None
    max_queue_delay: Annotated[
        Duration, _between("0ms", "10s", "How long a call may wait for others to share its batch. 0ms: batches take what waits already.")
    ] = Duration("0ms")


class Timeouts(Struct, frozen=True, kw_only=True, rename="camel"):
    step: Annotated[Duration, _between("1ms", "24h", "How long one call may run, from its turn (DEADLINE_EXCEEDED).")] = Duration("60s")
    hold: Annotated[Duration, _between("0ms", "24h", "How long a call may wait for a worker that can serve it (UNAVAILABLE).")] = Duration(
        "300s"
    )
    hang: (
        Annotated[
            Duration,
            _between(
                "1s",
                "24h",
                "How long a step may hold the interpreter of its worker (in native code, or by blocking in an async step), so that nothing "
                "else runs there, before the worker is killed and its callers are told so (DEADLINE_EXCEEDED). Absent: timeouts.step + 1s.",
            ),
        ]
        | None
    ) = None


class EnvVar(Struct, frozen=True, kw_only=True, rename="camel"):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$", max_length=256, description="The variable's name.")]
    value: Annotated[str, Meta(pattern=r"^[^\x00]*$", max_length=32_768, description="The variable's value.")] = ""
    value_from: Annotated[KubernetesObject | None, Meta(description="A reference, as in a pod's spec. Not on one machine.")] = None


class Volume(Struct, frozen=True, kw_only=True, rename="camel"):
    """A volume and where it is mounted; exactly one source."""

    name: Annotated[str, Meta(pattern=DNS_LABEL, extra=LABEL, max_length=63, description="The volume's name.")]
    mount_path: Annotated[
        str, Meta(pattern=r"^/[^:]*$", max_length=4096, description="The absolute path in the worker's container where it is mounted.")
    ]
    read_only: Annotated[bool, Meta(description="Whether the worker may only read it.")] = False
    persistent_volume_claim: Annotated[KubernetesObject | None, Meta(description="As in a pod's spec: {claimName: ...}.")] = None
    secret: Annotated[KubernetesObject | None, Meta(description="As in a pod's spec: {secretName: ...}.")] = None
    config_map: Annotated[KubernetesObject | None, Meta(description="As in a pod's spec: {name: ...}.")] = None
    empty_dir: Annotated[KubernetesObject | None, Meta(description="As in a pod's spec: {}.")] = None


class Resources(Struct, frozen=True, kw_only=True, rename="camel"):
    limits: Annotated[
        KubernetesObject | None, Meta(description="The most that a worker may use, as in a pod's spec: {cpu: 2, memory: 1Gi}.")
    ] = None
    requests: Annotated[KubernetesObject | None, Meta(description="What a worker is given in any case, as in a pod's spec.")] = None


_ID_MAX = 2**31 - 1


class PodSecurity(Struct, frozen=True, kw_only=True, rename="camel"):
    """Whom a worker runs as. No root, and nothing that would let it become somebody else."""

    run_as_user: Annotated[int, Meta(ge=1, le=_ID_MAX, description="As in a pod's securityContext; not root's 0.")] | None = None
    run_as_group: Annotated[int, Meta(ge=0, le=_ID_MAX, description="As in a pod's securityContext.")] | None = None
    fs_group: Annotated[int, Meta(ge=0, le=_ID_MAX, description="As in a pod's securityContext: whose its volumes are.")] | None = None
    supplemental_groups: Annotated[
        list[Annotated[int, Meta(ge=0, le=_ID_MAX)]], Meta(max_length=32, description="As in a pod's securityContext.")
    ] = field(default_factory=list)
    fs_group_change_policy: (
        Annotated[Literal["OnRootMismatch", "Always"], Meta(description="As in a pod's securityContext. Absent: OnRootMismatch.")] | None
    ) = None


class Workers(Struct, frozen=True, kw_only=True, rename="camel"):
    """What of a worker's pod a function may set. A list of the allowed, so that who may write a function may not become root on a node."""

    image: Annotated[str, Meta(max_length=512, min_length=1, description="The worker's image. Absent: this release's own.")] | None = None
    resources: Annotated[Resources, Meta(description="CPU and memory of a worker.")] = Resources()
    env: Annotated[
        list[EnvVar],
        Meta(
            max_length=256,
            description="Environment variables of the worker, set before the model or handler is loaded. DORMOUSE_LOG_LEVEL is the level "
            "of its log. $(NAME) in a value stands for a variable before it in the list; $$ is a $. "
            "In a cluster POD_NAME, POD_IP and TMPDIR are Dormouse's own.",
            extra={"map_key": "name"},
        ),
    ] = field(default_factory=list)
    env_from: Annotated[
        list[KubernetesObject], Meta(max_length=32, description="Sources of environment variables, as in a pod's spec.")
    ] = field(default_factory=list)
    node_selector: Annotated[StringMap, Meta(description="As in a pod's spec.")] = field(default_factory=dict)
    tolerations: Annotated[list[KubernetesObject], Meta(max_length=64, description="As in a pod's spec.")] = field(default_factory=list)
    affinity: Annotated[KubernetesObject | None, Meta(description="As in a pod's spec.")] = None
    topology_spread_constraints: Annotated[list[KubernetesObject], Meta(max_length=16, description="As in a pod's spec.")] = field(
        default_factory=list
    )
    labels: Annotated[StringMap, Meta(description="Further labels of the pods; none under dormouse.dev/.")] = field(default_factory=dict)
    annotations: Annotated[StringMap, Meta(description="Further annotations of the pods; none under dormouse.dev/.")] = field(
        default_factory=dict
    )
    image_pull_secrets: Annotated[list[KubernetesObject], Meta(max_length=16, description="As in a pod's spec: [{name: ...}].")] = field(
        default_factory=list
    )
    service_account_name: Annotated[str, Meta(max_length=253, min_length=1, description="The pods' service account.")] | None = None
    priority_class_name: Annotated[str, Meta(max_length=253, min_length=1, description="The pods' priority class.")] | None = None
    runtime_class_name: (
        Annotated[str, Meta(max_length=253, min_length=1, description="The pods' runtime class: a sandbox, a GPU's.")] | None
    ) = None
    scheduler_name: Annotated[str, Meta(max_length=253, min_length=1, description="Who chooses the pods' nodes.")] | None = None
    security_context: Annotated[
        PodSecurity | None, Meta(description="Whom the pods run as. Absent: as the installation says; never root.")
    ] = None
    volumes: Annotated[
        list[Volume],
        Meta(
            max_length=32,
            description="Volumes from persistent volume claims, Secrets, ConfigMaps and emptyDir.",
            extra={"map_key": "name"},
        ),
    ] = field(default_factory=list)


class FunctionSpec(Struct, frozen=True, kw_only=True, rename="camel"):
    runtime: Annotated[
        Literal["onnx", "python"],
        Meta(description="What runs the function: onnx (a model in ONNX Runtime) or python (a handler class). Cannot be changed."),
    ]
    model: Annotated[
        Model | None, Meta(description="The model. onnx: a .onnx file. python: optional, a folder with the handler's modules and files.")
    ] = None
    handler: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$",
                max_length=256,
                extra={"allowed": '"module:Class"'},
                description='The handler class of the python runtime, as "module:Class".',
            ),
        ]
        | None
    ) = None
    sessions: Annotated[
        SessionsSpec | None,
        Meta(
            description="Present: the function is stateful, every call is a step of a session. Absent: stateless. Presence, durability and "
            "shards cannot be changed."
        ),
    ] = None
    batching: Annotated[
        Batching,
        Meta(
            description="How calls run together (onnx): only where the answers stay the same. A joined answer is the model's own to a "
            "call alone, within the tolerances of limits.md."
        ),
    ] = Batching()
    replicas: (
        Annotated[
            int,
            Meta(
                ge=0,
                le=limits.REPLICAS_MAX,
                description="A fixed number of workers, whoever asks for others; 0: stopped, calls fail at once. Absent: as many as the "
                "load asks for.",
            ),
        ]
        | None
    ) = None
    min_replicas: Annotated[
        int, Meta(ge=0, le=limits.REPLICAS_MAX, description="The autoscaler keeps at least this many workers. 0: sleeps when idle.")
    ] = 0
    max_replicas: Annotated[int, Meta(ge=1, le=limits.REPLICAS_MAX, description="The autoscaler starts at most this many workers.")] = 10
    asked_replicas: Annotated[
        int,
        Meta(
            ge=0,
            le=limits.REPLICAS_MAX,
            description="What `kubectl scale`, an HPA or KEDA asks for through the scale subresource, which alone should write it. From 2 "
            "on it has at least so many workers, up to maxReplicas; 1 and 0 leave it to the load, and a function without calls sleeps.",
        ),
    ] = 1
    scale_metric: Annotated[
        Literal["concurrency", "rps", "sessions"],
        Meta(description="What the autoscaler counts: calls in flight, calls a second, or live sessions."),
    ] = "concurrency"
    scale_target: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="How much of scaleMetric one worker should carry; of concurrency at most maxConcurrency.",
        ),
    ] = 16
    max_concurrency: Annotated[
        int,
        Meta(
            ge=1,
            le=limits.CONCURRENCY_MAX,
            description="Calls in one worker at a time; more wait in the gateway. Calls that steps make (`ctx.call`) have as many places "
            "beside these, for each number of steps that wait for them (1 to 7).",
        ),
    ] = 256
    scale_to_zero_after: Annotated[Duration, _between("0ms", "720h", "A function without calls for this long goes to zero.")] = Duration(
        "60s"
    )
    retry_stateless: Annotated[
        bool, Meta(description="Whether a stateless call whose worker died is sent again. Turn off where running twice does harm.")
    ] = True
    timeouts: Annotated[Timeouts, Meta(description="How long calls may run and wait.")] = Timeouts()
    workers: Annotated[Workers, Meta(description="What the function sets of its workers' pods.")] = Workers()


class Metadata(Struct, frozen=True, kw_only=True, rename="camel"):
    name: Annotated[str, Meta(pattern=DNS_LABEL, extra=LABEL, min_length=1, max_length=limits.FUNCTION_NAME_CHARACTERS)]
    namespace: Annotated[str, Meta(pattern=DNS_LABEL, extra=LABEL, min_length=1, max_length=limits.NAMESPACE_CHARACTERS)] = "default"
    labels: StringMap = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


class InferenceFunction(Struct, frozen=True, kw_only=True, rename="camel"):
    metadata: Metadata
    spec: FunctionSpec
    api_version: Literal["dormouse.dev/v1alpha1"] = "dormouse.dev/v1alpha1"
    kind: Literal["InferenceFunction"] = "InferenceFunction"
