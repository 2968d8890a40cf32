"""What the operator says of a function, in the object's `status`. `phase` is for eyes; logic reads conditions."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

UNSEEN = -1
"""The generation that a new object's status is about, until the operator writes one. Without it tools that go by `observedGeneration`
(kstatus, and so Flux) take an object without conditions for one that is well."""

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"}, max_length=64)]


class Condition(Struct, frozen=True, kw_only=True, rename="camel"):
    type: Annotated[
        str,
        Meta(
            max_length=316,
            description="Accepted, Applied, Scheduled, Ready, Serving, ModelReady, RolledOut, Batching, OutOfMemory, NameTaken.",
        ),
    ]
    status: Annotated[Literal["True", "False", "Unknown"], Meta(description="Whether it holds.")]
    reason: Annotated[str, Meta(max_length=1024, description="Why, in one CamelCase word.")] = ""
    message: Annotated[str, Meta(max_length=32_768, description="Why, for people.")] = ""
    last_transition_time: Annotated[Time, Meta(description="Since when it is so.")] = ""
    observed_generation: Annotated[int, Meta(ge=0, description="The metadata.generation that the condition is about.")] = 0


class Status(Struct, frozen=True, kw_only=True, rename="camel"):
    phase: Annotated[str, Meta(max_length=64, description="Verifying, Ready, Serving, Asleep, Waking, Stopped, Failed or Deleting.")] = ""
    replicas: Annotated[int, Meta(ge=0, description="Workers wanted.")] = 0
    selector: Annotated[str, Meta(max_length=1024, description="The label selector of the workers' pods, for autoscalers.")] = ""
    ready_replicas: Annotated[int, Meta(ge=0, description="Workers that are ready.")] = 0
    sessions: Annotated[int, Meta(ge=0, description="Live sessions, in a worker's memory or in the store.")] = 0
    hibernated_bytes: Annotated[int, Meta(ge=0, description="Bytes of sessions' records in the store that no worker has in memory.")] = 0
    asleep_since: Annotated[Time | None, Meta(description="Since when it has no worker; absent while it is awake.")] = None
    revision: Annotated[str, Meta(max_length=64, description="The revision that is served: a worker has loaded it. Empty: none yet.")] = ""
    wanted_revision: Annotated[
        str,
        Meta(
            max_length=64,
            description="The revision that was applied. While it is another than revision, no worker has loaded it: ModelReady says why.",
        ),
    ] = ""
    url: Annotated[str, Meta(max_length=2048, description="Where to call it.")] = ""
    observed_generation: Annotated[
        int, Meta(ge=-1, description="The metadata.generation that this status is about; -1: the operator has not looked yet.")
    ] = UNSEEN
    conditions: Annotated[
        list[Condition], Meta(max_length=32, description="What holds and what does not, with reasons.", extra={"map_key": "type"})
    ] = field(default_factory=list)
