from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class KeptKey(_message.Message):
    __slots__ = ("timestamp_us", "id", "digest", "reply", "reply_gone", "step", "maker", "write_id")
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REPLY_GONE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MAKER_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    timestamp_us: int
    id: str
    digest: bytes
    reply: bytes
    reply_gone: bool
    step: int
    maker: str
    write_id: bytes
    def __init__(self, timestamp_us: _Optional[int] = ..., id: _Optional[str] = ..., digest: _Optional[bytes] = ..., reply: _Optional[bytes] = ..., reply_gone: _Optional[bool] = ..., step: _Optional[int] = ..., maker: _Optional[str] = ..., write_id: _Optional[bytes] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("state_version", "write_id", "tombstone", "tensors", "step", "kept", "horizon_us", "newest_us", "expires_us", "horizons", "alarms", "usage")
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    WRITE_ID_FIELD_NUMBER: _ClassVar[int]
    TOMBSTONE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    HORIZON_US_FIELD_NUMBER: _ClassVar[int]
    NEWEST_US_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    HORIZONS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    state_version: str
    write_id: bytes
    tombstone: bool
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    step: int
    kept: _containers.RepeatedCompositeFieldContainer[KeptKey]
    horizon_us: int
    newest_us: int
    expires_us: int
    horizons: Horizons
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    usage: Usage
    def __init__(self, state_version: _Optional[str] = ..., write_id: _Optional[bytes] = ..., tombstone: _Optional[bool] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., step: _Optional[int] = ..., kept: _Optional[_Iterable[_Union[KeptKey, _Mapping]]] = ..., horizon_us: _Optional[int] = ..., newest_us: _Optional[int] = ..., expires_us: _Optional[int] = ..., horizons: _Optional[_Union[Horizons, _Mapping]] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("name", "due_us", "id", "request", "next_us", "tries", "error", "failed", "time_us")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DUE_US_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    NEXT_US_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    TIME_US_FIELD_NUMBER: _ClassVar[int]
    name: str
    due_us: int
    id: str
    request: bytes
    next_us: int
    tries: int
    error: str
    failed: bool
    time_us: int
    def __init__(self, name: _Optional[str] = ..., due_us: _Optional[int] = ..., id: _Optional[str] = ..., request: _Optional[bytes] = ..., next_us: _Optional[int] = ..., tries: _Optional[int] = ..., error: _Optional[str] = ..., failed: _Optional[bool] = ..., time_us: _Optional[int] = ...) -> None: ...

class AlarmEntry(_message.Message):
    __slots__ = ("due_us",)
    DUE_US_FIELD_NUMBER: _ClassVar[int]
    due_us: int
    def __init__(self, due_us: _Optional[int] = ...) -> None: ...

class Horizons(_message.Message):
    __slots__ = ("common_us", "makers", "callers_us", "newest_us", "newest_caller_us", "mark_times", "mark_prints", "below_marks_us")
    class Maker(_message.Message):
        __slots__ = ("name", "horizon_us")
        NAME_FIELD_NUMBER: _ClassVar[int]
        HORIZON_US_FIELD_NUMBER: _ClassVar[int]
        name: str
        horizon_us: int
        def __init__(self, name: _Optional[str] = ..., horizon_us: _Optional[int] = ...) -> None: ...
    COMMON_US_FIELD_NUMBER: _ClassVar[int]
    MAKERS_FIELD_NUMBER: _ClassVar[int]
    CALLERS_US_FIELD_NUMBER: _ClassVar[int]
    NEWEST_US_FIELD_NUMBER: _ClassVar[int]
    NEWEST_CALLER_US_FIELD_NUMBER: _ClassVar[int]
    MARK_TIMES_FIELD_NUMBER: _ClassVar[int]
    MARK_PRINTS_FIELD_NUMBER: _ClassVar[int]
    BELOW_MARKS_US_FIELD_NUMBER: _ClassVar[int]
    common_us: int
    makers: _containers.RepeatedCompositeFieldContainer[Horizons.Maker]
    callers_us: int
    newest_us: int
    newest_caller_us: int
    mark_times: bytes
    mark_prints: bytes
    below_marks_us: int
    def __init__(self, common_us: _Optional[int] = ..., makers: _Optional[_Iterable[_Union[Horizons.Maker, _Mapping]]] = ..., callers_us: _Optional[int] = ..., newest_us: _Optional[int] = ..., newest_caller_us: _Optional[int] = ..., mark_times: _Optional[bytes] = ..., mark_prints: _Optional[bytes] = ..., below_marks_us: _Optional[int] = ...) -> None: ...

class Floor(_message.Message):
    __slots__ = ("timestamp_us",)
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    timestamp_us: int
    def __init__(self, timestamp_us: _Optional[int] = ...) -> None: ...

class ShardEntry(_message.Message):
    __slots__ = ("owner", "epoch")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    owner: str
    epoch: int
    def __init__(self, owner: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: str
    def __init__(self, target: _Optional[str] = ...) -> None: ...

class WorkerEntry(_message.Message):
    __slots__ = ("address", "revision", "state", "instance", "killed", "store_id", "speaks", "calls")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[WorkerEntry.State]
        READY: _ClassVar[WorkerEntry.State]
        DRAINING: _ClassVar[WorkerEntry.State]
    UNSPECIFIED: WorkerEntry.State
    READY: WorkerEntry.State
    DRAINING: WorkerEntry.State
    class Killed(_message.Message):
        __slots__ = ("calls", "cause", "why", "alone")
        class Why(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            HELD: _ClassVar[WorkerEntry.Killed.Why]
            MEMORY: _ClassVar[WorkerEntry.Killed.Why]
            CRASH: _ClassVar[WorkerEntry.Killed.Why]
        HELD: WorkerEntry.Killed.Why
        MEMORY: WorkerEntry.Killed.Why
        CRASH: WorkerEntry.Killed.Why
        CALLS_FIELD_NUMBER: _ClassVar[int]
        CAUSE_FIELD_NUMBER: _ClassVar[int]
        WHY_FIELD_NUMBER: _ClassVar[int]
        ALONE_FIELD_NUMBER: _ClassVar[int]
        calls: _containers.RepeatedScalarFieldContainer[str]
        cause: str
        why: WorkerEntry.Killed.Why
        alone: bool
        def __init__(self, calls: _Optional[_Iterable[str]] = ..., cause: _Optional[str] = ..., why: _Optional[_Union[WorkerEntry.Killed.Why, str]] = ..., alone: _Optional[bool] = ...) -> None: ...
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    KILLED_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    SPEAKS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    address: str
    revision: str
    state: WorkerEntry.State
    instance: str
    killed: WorkerEntry.Killed
    store_id: str
    speaks: int
    calls: bytes
    def __init__(self, address: _Optional[str] = ..., revision: _Optional[str] = ..., state: _Optional[_Union[WorkerEntry.State, str]] = ..., instance: _Optional[str] = ..., killed: _Optional[_Union[WorkerEntry.Killed, _Mapping]] = ..., store_id: _Optional[str] = ..., speaks: _Optional[int] = ..., calls: _Optional[bytes] = ...) -> None: ...

class Leader(_message.Message):
    __slots__ = ("address", "name")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    name: str
    def __init__(self, address: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GatewayEntry(_message.Message):
    __slots__ = ("address", "node")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    address: str
    node: str
    def __init__(self, address: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("code", "reason", "message", "revision", "mute")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    MUTE_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    revision: str
    mute: bool
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., revision: _Optional[str] = ..., mute: _Optional[bool] = ...) -> None: ...

class TensorMetadata(_message.Message):
    __slots__ = ("name", "datatype", "shape", "optional")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    optional: bool
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., optional: _Optional[bool] = ...) -> None: ...

class Batching(_message.Message):
    __slots__ = ("key", "rows", "axes", "reason", "message", "alone")
    class AxesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class Form(_message.Message):
        __slots__ = ("key", "why")
        KEY_FIELD_NUMBER: _ClassVar[int]
        WHY_FIELD_NUMBER: _ClassVar[int]
        key: bytes
        why: str
        def __init__(self, key: _Optional[bytes] = ..., why: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ALONE_FIELD_NUMBER: _ClassVar[int]
    key: str
    rows: int
    axes: _containers.ScalarMap[str, int]
    reason: str
    message: str
    alone: _containers.RepeatedCompositeFieldContainer[Batching.Form]
    def __init__(self, key: _Optional[str] = ..., rows: _Optional[int] = ..., axes: _Optional[_Mapping[str, int]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., alone: _Optional[_Iterable[_Union[Batching.Form, _Mapping]]] = ...) -> None: ...

class ModelMetadata(_message.Message):
    __slots__ = ("platform", "inputs", "outputs", "states", "max_batch_size", "state_version", "decoupled", "batching", "content", "seal", "files")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    DECOUPLED_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    platform: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorMetadata]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorMetadata]
    states: _containers.RepeatedCompositeFieldContainer[TensorMetadata]
    max_batch_size: int
    state_version: str
    decoupled: bool
    batching: Batching
    content: str
    seal: str
    files: _containers.RepeatedCompositeFieldContainer[ContentFile]
    def __init__(self, platform: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorMetadata, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorMetadata, _Mapping]]] = ..., states: _Optional[_Iterable[_Union[TensorMetadata, _Mapping]]] = ..., max_batch_size: _Optional[int] = ..., state_version: _Optional[str] = ..., decoupled: _Optional[bool] = ..., batching: _Optional[_Union[Batching, _Mapping]] = ..., content: _Optional[str] = ..., seal: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ContentFile, _Mapping]]] = ...) -> None: ...

class ContentFile(_message.Message):
    __slots__ = ("name", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: bytes
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("revision", "content", "seal", "files")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    revision: str
    content: str
    seal: str
    files: _containers.RepeatedCompositeFieldContainer[ContentFile]
    def __init__(self, revision: _Optional[str] = ..., content: _Optional[str] = ..., seal: _Optional[str] = ..., files: _Optional[_Iterable[_Union[ContentFile, _Mapping]]] = ...) -> None: ...

class FunctionEntry(_message.Message):
    __slots__ = ("namespace", "name", "uid", "revision", "spec", "shards", "generation", "deleting", "created_us", "proved_revision", "metadata", "problem", "proved_spec", "edition", "proofs", "store_id", "restored", "tenant")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DELETING_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    PROVED_REVISION_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PROVED_SPEC_FIELD_NUMBER: _ClassVar[int]
    EDITION_FIELD_NUMBER: _ClassVar[int]
    PROOFS_FIELD_NUMBER: _ClassVar[int]
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    revision: str
    spec: bytes
    shards: int
    generation: int
    deleting: bool
    created_us: int
    proved_revision: str
    metadata: ModelMetadata
    problem: Problem
    proved_spec: bytes
    edition: str
    proofs: _containers.RepeatedCompositeFieldContainer[Proof]
    store_id: str
    restored: bool
    tenant: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., revision: _Optional[str] = ..., spec: _Optional[bytes] = ..., shards: _Optional[int] = ..., generation: _Optional[int] = ..., deleting: _Optional[bool] = ..., created_us: _Optional[int] = ..., proved_revision: _Optional[str] = ..., metadata: _Optional[_Union[ModelMetadata, _Mapping]] = ..., problem: _Optional[_Union[Problem, _Mapping]] = ..., proved_spec: _Optional[bytes] = ..., edition: _Optional[str] = ..., proofs: _Optional[_Iterable[_Union[Proof, _Mapping]]] = ..., store_id: _Optional[str] = ..., restored: _Optional[bool] = ..., tenant: _Optional[str] = ...) -> None: ...

class Retained(_message.Message):
    __slots__ = ("store_id", "shards", "since_us", "tenant")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    shards: int
    since_us: int
    tenant: str
    def __init__(self, store_id: _Optional[str] = ..., shards: _Optional[int] = ..., since_us: _Optional[int] = ..., tenant: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("steps", "busy_us", "bytes_in", "bytes_out", "live_byte_seconds", "live_rest", "hibernated_byte_seconds", "hibernated_rest", "since_us", "calls", "failed", "refused", "repeated", "worker_us")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BUSY_US_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIVE_REST_FIELD_NUMBER: _ClassVar[int]
    HIBERNATED_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HIBERNATED_REST_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    WORKER_US_FIELD_NUMBER: _ClassVar[int]
    steps: int
    busy_us: int
    bytes_in: int
    bytes_out: int
    live_byte_seconds: int
    live_rest: int
    hibernated_byte_seconds: int
    hibernated_rest: int
    since_us: int
    calls: int
    failed: int
    refused: int
    repeated: int
    worker_us: int
    def __init__(self, steps: _Optional[int] = ..., busy_us: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., live_byte_seconds: _Optional[int] = ..., live_rest: _Optional[int] = ..., hibernated_byte_seconds: _Optional[int] = ..., hibernated_rest: _Optional[int] = ..., since_us: _Optional[int] = ..., calls: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., repeated: _Optional[int] = ..., worker_us: _Optional[int] = ...) -> None: ...

class TenantUsage(_message.Message):
    __slots__ = ("tenant", "usage")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    usage: Usage
    def __init__(self, tenant: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class UsageTotals(_message.Message):
    __slots__ = ("tenants", "others")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[TenantUsage]
    others: Usage
    def __init__(self, tenants: _Optional[_Iterable[_Union[TenantUsage, _Mapping]]] = ..., others: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class UsageAt(_message.Message):
    __slots__ = ("at_us", "totals", "created_us")
    AT_US_FIELD_NUMBER: _ClassVar[int]
    TOTALS_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    at_us: int
    totals: UsageTotals
    created_us: int
    def __init__(self, at_us: _Optional[int] = ..., totals: _Optional[_Union[UsageTotals, _Mapping]] = ..., created_us: _Optional[int] = ...) -> None: ...
