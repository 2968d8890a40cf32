from dormouse_proto import state_pb2 as _state_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerOrder(_message.Message):
    __slots__ = ("hello", "drain", "no_taker", "time", "limits", "batching")
    class Hello(_message.Message):
        __slots__ = ("leader", "report_interval_ms", "term")
        LEADER_FIELD_NUMBER: _ClassVar[int]
        REPORT_INTERVAL_MS_FIELD_NUMBER: _ClassVar[int]
        TERM_FIELD_NUMBER: _ClassVar[int]
        leader: str
        report_interval_ms: int
        term: int
        def __init__(self, leader: _Optional[str] = ..., report_interval_ms: _Optional[int] = ..., term: _Optional[int] = ...) -> None: ...
    class Drain(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Time(_message.Message):
        __slots__ = ("mark", "leader_us", "reference_us", "agreed", "median_us")
        MARK_FIELD_NUMBER: _ClassVar[int]
        LEADER_US_FIELD_NUMBER: _ClassVar[int]
        REFERENCE_US_FIELD_NUMBER: _ClassVar[int]
        AGREED_FIELD_NUMBER: _ClassVar[int]
        MEDIAN_US_FIELD_NUMBER: _ClassVar[int]
        mark: int
        leader_us: int
        reference_us: int
        agreed: int
        median_us: int
        def __init__(self, mark: _Optional[int] = ..., leader_us: _Optional[int] = ..., reference_us: _Optional[int] = ..., agreed: _Optional[int] = ..., median_us: _Optional[int] = ...) -> None: ...
    class NoTaker(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Limits(_message.Message):
        __slots__ = ("others_sessions", "others_bytes", "others_unknown", "store_used", "store_age", "store_quota", "over_share", "replaced")
        OTHERS_SESSIONS_FIELD_NUMBER: _ClassVar[int]
        OTHERS_BYTES_FIELD_NUMBER: _ClassVar[int]
        OTHERS_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
        STORE_USED_FIELD_NUMBER: _ClassVar[int]
        STORE_AGE_FIELD_NUMBER: _ClassVar[int]
        STORE_QUOTA_FIELD_NUMBER: _ClassVar[int]
        OVER_SHARE_FIELD_NUMBER: _ClassVar[int]
        REPLACED_FIELD_NUMBER: _ClassVar[int]
        others_sessions: int
        others_bytes: int
        others_unknown: bool
        store_used: float
        store_age: float
        store_quota: int
        over_share: bool
        replaced: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, others_sessions: _Optional[int] = ..., others_bytes: _Optional[int] = ..., others_unknown: _Optional[bool] = ..., store_used: _Optional[float] = ..., store_age: _Optional[float] = ..., store_quota: _Optional[int] = ..., over_share: _Optional[bool] = ..., replaced: _Optional[_Iterable[str]] = ...) -> None: ...
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    NO_TAKER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerOrder.Hello
    drain: WorkerOrder.Drain
    no_taker: WorkerOrder.NoTaker
    time: WorkerOrder.Time
    limits: WorkerOrder.Limits
    batching: _state_pb2.Batching
    def __init__(self, hello: _Optional[_Union[WorkerOrder.Hello, _Mapping]] = ..., drain: _Optional[_Union[WorkerOrder.Drain, _Mapping]] = ..., no_taker: _Optional[_Union[WorkerOrder.NoTaker, _Mapping]] = ..., time: _Optional[_Union[WorkerOrder.Time, _Mapping]] = ..., limits: _Optional[_Union[WorkerOrder.Limits, _Mapping]] = ..., batching: _Optional[_Union[_state_pb2.Batching, _Mapping]] = ...) -> None: ...

class WorkerReport(_message.Message):
    __slots__ = ("worker", "uid", "revision", "ready", "draining", "in_flight", "queued", "calls", "kept_replies", "concurrency_seconds", "sessions", "state_bytes", "shards", "stopped", "metadata", "busy_seconds", "mark", "offset_us", "reference_us", "clock_off", "stored_sessions", "stored_bytes", "hibernated_bytes", "counted", "session_memory_bytes")
    class StoppedShard(_message.Message):
        __slots__ = ("shard", "stopped_us")
        SHARD_FIELD_NUMBER: _ClassVar[int]
        STOPPED_US_FIELD_NUMBER: _ClassVar[int]
        shard: int
        stopped_us: int
        def __init__(self, shard: _Optional[int] = ..., stopped_us: _Optional[int] = ...) -> None: ...
    WORKER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    KEPT_REPLIES_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    BUSY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_US_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_US_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFF_FIELD_NUMBER: _ClassVar[int]
    STORED_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    HIBERNATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    uid: str
    revision: str
    ready: bool
    draining: bool
    in_flight: int
    queued: int
    calls: int
    kept_replies: int
    concurrency_seconds: float
    sessions: int
    state_bytes: int
    shards: int
    stopped: _containers.RepeatedCompositeFieldContainer[WorkerReport.StoppedShard]
    metadata: _state_pb2.ModelMetadata
    busy_seconds: float
    mark: int
    offset_us: int
    reference_us: int
    clock_off: bool
    stored_sessions: int
    stored_bytes: int
    hibernated_bytes: int
    counted: bool
    session_memory_bytes: int
    def __init__(self, worker: _Optional[str] = ..., uid: _Optional[str] = ..., revision: _Optional[str] = ..., ready: _Optional[bool] = ..., draining: _Optional[bool] = ..., in_flight: _Optional[int] = ..., queued: _Optional[int] = ..., calls: _Optional[int] = ..., kept_replies: _Optional[int] = ..., concurrency_seconds: _Optional[float] = ..., sessions: _Optional[int] = ..., state_bytes: _Optional[int] = ..., shards: _Optional[int] = ..., stopped: _Optional[_Iterable[_Union[WorkerReport.StoppedShard, _Mapping]]] = ..., metadata: _Optional[_Union[_state_pb2.ModelMetadata, _Mapping]] = ..., busy_seconds: _Optional[float] = ..., mark: _Optional[int] = ..., offset_us: _Optional[int] = ..., reference_us: _Optional[int] = ..., clock_off: _Optional[bool] = ..., stored_sessions: _Optional[int] = ..., stored_bytes: _Optional[int] = ..., hibernated_bytes: _Optional[int] = ..., counted: _Optional[bool] = ..., session_memory_bytes: _Optional[int] = ...) -> None: ...

class FunctionDemand(_message.Message):
    __slots__ = ("namespace", "name", "uid", "held", "arrived", "held_seconds")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    HELD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    held: int
    arrived: int
    held_seconds: float
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., held: _Optional[int] = ..., arrived: _Optional[int] = ..., held_seconds: _Optional[float] = ...) -> None: ...

class WorkerReach(_message.Message):
    __slots__ = ("worker", "reached", "seconds")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    reached: bool
    seconds: float
    def __init__(self, worker: _Optional[str] = ..., reached: _Optional[bool] = ..., seconds: _Optional[float] = ...) -> None: ...

class AgentReport(_message.Message):
    __slots__ = ("agent", "sent_us", "complete", "demand", "reaches", "offset_us", "reference_us")
    AGENT_FIELD_NUMBER: _ClassVar[int]
    SENT_US_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    REACHES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_US_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_US_FIELD_NUMBER: _ClassVar[int]
    agent: str
    sent_us: int
    complete: bool
    demand: _containers.RepeatedCompositeFieldContainer[FunctionDemand]
    reaches: _containers.RepeatedCompositeFieldContainer[WorkerReach]
    offset_us: int
    reference_us: int
    def __init__(self, agent: _Optional[str] = ..., sent_us: _Optional[int] = ..., complete: _Optional[bool] = ..., demand: _Optional[_Iterable[_Union[FunctionDemand, _Mapping]]] = ..., reaches: _Optional[_Iterable[_Union[WorkerReach, _Mapping]]] = ..., offset_us: _Optional[int] = ..., reference_us: _Optional[int] = ...) -> None: ...

class AgentOrder(_message.Message):
    __slots__ = ("echo_us", "leader_us", "reference_us", "agreed", "median_us", "tries", "refused", "starved")
    class Try(_message.Message):
        __slots__ = ("worker", "address")
        WORKER_FIELD_NUMBER: _ClassVar[int]
        ADDRESS_FIELD_NUMBER: _ClassVar[int]
        worker: str
        address: str
        def __init__(self, worker: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...
    ECHO_US_FIELD_NUMBER: _ClassVar[int]
    LEADER_US_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_US_FIELD_NUMBER: _ClassVar[int]
    AGREED_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_US_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    STARVED_FIELD_NUMBER: _ClassVar[int]
    echo_us: int
    leader_us: int
    reference_us: int
    agreed: int
    median_us: int
    tries: _containers.RepeatedCompositeFieldContainer[AgentOrder.Try]
    refused: _containers.RepeatedCompositeFieldContainer[AgentOrder.Try]
    starved: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, echo_us: _Optional[int] = ..., leader_us: _Optional[int] = ..., reference_us: _Optional[int] = ..., agreed: _Optional[int] = ..., median_us: _Optional[int] = ..., tries: _Optional[_Iterable[_Union[AgentOrder.Try, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[AgentOrder.Try, _Mapping]]] = ..., starved: _Optional[_Iterable[str]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("type", "status", "reason", "message", "since_us")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    type: str
    status: str
    reason: str
    message: str
    since_us: int
    def __init__(self, type: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., since_us: _Optional[int] = ...) -> None: ...

class FunctionStatus(_message.Message):
    __slots__ = ("namespace", "name", "uid", "revision", "phase", "replicas", "ready_replicas", "sessions", "asleep_since_us", "conditions", "reason", "autoscaled", "workers", "owners", "calls", "wanted_revision", "hibernated_bytes", "sessions_known", "generation")
    class OwnersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    class CallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    READY_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    ASLEEP_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALED_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    WANTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    HIBERNATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    revision: str
    phase: str
    replicas: int
    ready_replicas: int
    sessions: int
    asleep_since_us: int
    conditions: _containers.RepeatedCompositeFieldContainer[Condition]
    reason: str
    autoscaled: bool
    workers: _containers.RepeatedScalarFieldContainer[str]
    owners: _containers.ScalarMap[int, str]
    calls: _containers.ScalarMap[str, int]
    wanted_revision: str
    hibernated_bytes: int
    sessions_known: bool
    generation: int
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., revision: _Optional[str] = ..., phase: _Optional[str] = ..., replicas: _Optional[int] = ..., ready_replicas: _Optional[int] = ..., sessions: _Optional[int] = ..., asleep_since_us: _Optional[int] = ..., conditions: _Optional[_Iterable[_Union[Condition, _Mapping]]] = ..., reason: _Optional[str] = ..., autoscaled: _Optional[bool] = ..., workers: _Optional[_Iterable[str]] = ..., owners: _Optional[_Mapping[int, str]] = ..., calls: _Optional[_Mapping[str, int]] = ..., wanted_revision: _Optional[str] = ..., hibernated_bytes: _Optional[int] = ..., sessions_known: _Optional[bool] = ..., generation: _Optional[int] = ...) -> None: ...

class ApplyRequest(_message.Message):
    __slots__ = ("manifest", "refresh")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    refresh: bool
    def __init__(self, manifest: _Optional[str] = ..., refresh: _Optional[bool] = ...) -> None: ...

class ApplyResponse(_message.Message):
    __slots__ = ("function", "outcome", "note")
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    function: FunctionStatus
    outcome: str
    note: str
    def __init__(self, function: _Optional[_Union[FunctionStatus, _Mapping]] = ..., outcome: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("namespace", "name", "owners")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    owners: bool
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., owners: _Optional[bool] = ...) -> None: ...

class GetResponse(_message.Message):
    __slots__ = ("functions",)
    FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    functions: _containers.RepeatedCompositeFieldContainer[FunctionStatus]
    def __init__(self, functions: _Optional[_Iterable[_Union[FunctionStatus, _Mapping]]] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("namespace", "name")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("namespace", "name", "replicas")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    replicas: int
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ("function",)
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    function: FunctionStatus
    def __init__(self, function: _Optional[_Union[FunctionStatus, _Mapping]] = ...) -> None: ...

class SessionsRequest(_message.Message):
    __slots__ = ("namespace", "name", "page", "limit", "session")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    page: str
    limit: int
    session: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., page: _Optional[str] = ..., limit: _Optional[int] = ..., session: _Optional[str] = ...) -> None: ...

class SessionInfo(_message.Message):
    __slots__ = ("session", "shard", "step", "bytes", "expires_us", "ended", "owner", "state_version", "tensors", "alarms")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STATE_VERSION_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    session: str
    shard: int
    step: int
    bytes: int
    expires_us: int
    ended: bool
    owner: str
    state_version: str
    tensors: _containers.RepeatedCompositeFieldContainer[_state_pb2.TensorMetadata]
    alarms: _containers.RepeatedCompositeFieldContainer[AlarmInfo]
    def __init__(self, session: _Optional[str] = ..., shard: _Optional[int] = ..., step: _Optional[int] = ..., bytes: _Optional[int] = ..., expires_us: _Optional[int] = ..., ended: _Optional[bool] = ..., owner: _Optional[str] = ..., state_version: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[_state_pb2.TensorMetadata, _Mapping]]] = ..., alarms: _Optional[_Iterable[_Union[AlarmInfo, _Mapping]]] = ...) -> None: ...

class AlarmInfo(_message.Message):
    __slots__ = ("name", "due_us", "next_us", "tries", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DUE_US_FIELD_NUMBER: _ClassVar[int]
    NEXT_US_FIELD_NUMBER: _ClassVar[int]
    TRIES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    due_us: int
    next_us: int
    tries: int
    error: str
    def __init__(self, name: _Optional[str] = ..., due_us: _Optional[int] = ..., next_us: _Optional[int] = ..., tries: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class SessionsResponse(_message.Message):
    __slots__ = ("sessions", "next", "revision")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionInfo]
    next: str
    revision: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionInfo, _Mapping]]] = ..., next: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class DeleteSessionsRequest(_message.Message):
    __slots__ = ("namespace", "name", "session", "tenant")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    session: str
    tenant: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., session: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class DeleteSessionsResponse(_message.Message):
    __slots__ = ("deleted",)
    DELETED_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    def __init__(self, deleted: _Optional[int] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("namespace", "name", "by", "since")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    by: str
    since: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., by: _Optional[str] = ..., since: _Optional[str] = ...) -> None: ...

class UsageRow(_message.Message):
    __slots__ = ("namespace", "name", "uid", "tenant", "others", "session", "deleted_us", "usage", "unsettled_byte_seconds", "since_us", "unknown")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DELETED_US_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    UNSETTLED_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    uid: str
    tenant: str
    others: bool
    session: str
    deleted_us: int
    usage: _state_pb2.Usage
    unsettled_byte_seconds: int
    since_us: int
    unknown: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., uid: _Optional[str] = ..., tenant: _Optional[str] = ..., others: _Optional[bool] = ..., session: _Optional[str] = ..., deleted_us: _Optional[int] = ..., usage: _Optional[_Union[_state_pb2.Usage, _Mapping]] = ..., unsettled_byte_seconds: _Optional[int] = ..., since_us: _Optional[int] = ..., unknown: _Optional[str] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("rows", "at_us")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[UsageRow]
    at_us: int
    def __init__(self, rows: _Optional[_Iterable[_Union[UsageRow, _Mapping]]] = ..., at_us: _Optional[int] = ...) -> None: ...

class CancelAlarmRequest(_message.Message):
    __slots__ = ("namespace", "name", "session", "alarm")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ALARM_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    session: str
    alarm: str
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., session: _Optional[str] = ..., alarm: _Optional[str] = ...) -> None: ...

class CancelAlarmResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StartRequest(_message.Message):
    __slots__ = ("instance", "spec", "grace_seconds")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    GRACE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    instance: str
    spec: str
    grace_seconds: float
    def __init__(self, instance: _Optional[str] = ..., spec: _Optional[str] = ..., grace_seconds: _Optional[float] = ...) -> None: ...

class StartResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("instance",)
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    instance: str
    def __init__(self, instance: _Optional[str] = ...) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Instance(_message.Message):
    __slots__ = ("instance", "namespace", "function", "uid", "revision", "stopping", "exited", "exit_code", "problem", "pid", "started_us")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    FUNCTION_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    EXITED_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_US_FIELD_NUMBER: _ClassVar[int]
    instance: str
    namespace: str
    function: str
    uid: str
    revision: str
    stopping: bool
    exited: bool
    exit_code: int
    problem: _state_pb2.Problem
    pid: int
    started_us: int
    def __init__(self, instance: _Optional[str] = ..., namespace: _Optional[str] = ..., function: _Optional[str] = ..., uid: _Optional[str] = ..., revision: _Optional[str] = ..., stopping: _Optional[bool] = ..., exited: _Optional[bool] = ..., exit_code: _Optional[int] = ..., problem: _Optional[_Union[_state_pb2.Problem, _Mapping]] = ..., pid: _Optional[int] = ..., started_us: _Optional[int] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("instances",)
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    def __init__(self, instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ...) -> None: ...
