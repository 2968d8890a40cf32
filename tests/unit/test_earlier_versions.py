"""What an earlier version wrote is read, and what this one writes an earlier one can read: in a rolling upgrade both run for minutes.

`tests/vectors/earlier.json` was written by the code of commit b18a8d8: records, entries, a worker's spec file, digests, and every field of
its messages. The whole system of both versions: `tests/integration/test_mixed_versions.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from dormouse_core import lifecycle, records, steps, workerfile
from dormouse_core import spec as specs
from dormouse_core.autoscaling import Decision
from dormouse_core.callkeys import CALLERS, CallKey
from dormouse_core.errors import Aborted
from dormouse_core.records import Body, Horizons
from dormouse_core.steps import Refuse, Repeat, Run
from dormouse_core.tensors import decode_raw
from dormouse_proto import control_pb2, state_pb2
from dormouse_testing.functions_seen import World, instance, worker
from dormouse_worker.batches.requests import Decoder, Digester
from dormouse_worker.models.signatures import Signature, TensorSpec
from google.protobuf import descriptor_pb2

EARLIER: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "earlier.json").read_text())
FIRST = 1_764_000_000_000_000
"""The timestamp of the record's first key."""


def data(name: str) -> bytes:
    return bytes.fromhex(EARLIER[name])


def fields(descriptor: Any) -> dict[str, str]:
    """Every field, enum's value and method of a file: number and type."""
    found: dict[str, str] = {}

    def walk(message: Any, name: str) -> None:
        for field in message.fields:
            kind = field.message_type.full_name if field.message_type else field.enum_type.full_name if field.enum_type else ""
            many = "repeated" if field.is_repeated else "single"
            found[f"{name}.{field.name}"] = f"{field.number} {field.type} {many} {kind}".strip()
        for nested in message.nested_types:
            walk(nested, f"{name}.{nested.name}")
        for enum in message.enum_types:
            found.update({f"{name}.{enum.name}.{value.name}": str(value.number) for value in enum.values})

    for name, message in descriptor.message_types_by_name.items():
        walk(message, name)
    for name, service in descriptor.services_by_name.items():
        for method in service.methods:
            kinds = (method.input_type.full_name, method.output_type.full_name, method.client_streaming, method.server_streaming)
            found[f"{name}/{method.name}"] = " ".join(map(str, kinds))
    return found


def reserved_of(descriptor: Any) -> dict[str, set[int]]:
    """By message and enum: the numbers that nothing may have again."""
    found: dict[str, set[int]] = {}

    def walk(message: Any, name: str) -> None:
        found[name] = {number for each in message.reserved_range for number in range(each.start, each.end)}
        for nested in message.nested_type:
            walk(nested, f"{name}.{nested.name}")
        for enum in message.enum_type:
            found[f"{name}.{enum.name}"] = {number for each in enum.reserved_range for number in range(each.start, each.end + 1)}

    file = descriptor_pb2.FileDescriptorProto()
    descriptor.CopyToProto(file)
    for message in file.message_type:
        walk(message, message.name)
    return found


@pytest.mark.parametrize(("name", "now"), [("state", state_pb2.DESCRIPTOR), ("control", control_pb2.DESCRIPTOR)])
def test_no_field_changes_its_number_its_type_or_its_name(name: str, now: Any) -> None:
    """One that is gone leaves its number reserved, or its message is gone."""
    found, reserved = fields(now), reserved_of(now)
    before: dict[str, str] = EARLIER["messages"][name]

    def gone(field: str) -> bool:
        message = field.rpartition(".")[0]
        return "/" not in field and field not in found and (message not in reserved or int(before[field].split()[0]) in reserved[message])

    assert {field: found.get(field) for field in before if not gone(field)} == {f: said for f, said in before.items() if not gone(f)}


# -------------------------------------------------------------------------------------------------------------------------- records


@dataclass
class Call:
    key: CallKey
    digest: bytes = b"new"
    start: bool = False
    end: bool = False
    create: bool = True
    session: str = "/s:a"


def admitted(body: Body, key: CallKey, digest: bytes = b"new") -> steps.Decision:
    return steps.admit(body, None, 0, Call(key, digest), FIRST + 100, frozenset({"v1"}), "vad")  # type: ignore[arg-type]


def test_a_record_of_it_goes_on_and_its_keys_are_known() -> None:
    record = records.decode(data("record"))
    body = record.body
    assert (body.step, body.tombstone, body.state_version, len(body.kept), record.write_id) == (8, False, "v1", 8, b"w-1/1")
    (tensor,) = record.tensors
    assert decode_raw(tensor.datatype, tensor.shape, tensor.data, tensor.name).tolist() == np.arange(4.0).reshape(2, 1, 2).tolist()
    again = admitted(body, CallKey(FIRST + 2, "g-gw1-2"), bytes([2]) * 16)
    assert isinstance(again, Repeat)
    assert again.kept.reply == b"reply 2"
    gone = admitted(body, CallKey(FIRST + 20, "g-gw2-7"), bytes(range(16)))
    assert isinstance(gone, Repeat)
    assert gone.kept.reply is None
    late = admitted(body, CallKey(FIRST - 1000, "g-gw1-old"))
    assert isinstance(late, Refuse)
    assert isinstance(late.error, Aborted), "at its horizon"
    assert admitted(body, CallKey(FIRST + 50, "g-gw1-9")) == Run(begins=False)


def test_a_tombstone_of_it_keeps_its_keys() -> None:
    body = records.decode(data("tombstone")).body
    assert (body.tombstone, len(body.kept)) == (True, 7)
    assert isinstance(admitted(body, CallKey(FIRST + 12, "c-order-2"), bytes([18]) * 16), Repeat)
    assert records.glance(data("tombstone")).tombstone


def test_a_record_of_ours_that_it_wrote_again_refuses_what_ours_refused() -> None:
    """It knows no horizons but the highest, and leaves out what it does not know: that refuses more, and runs nothing twice."""
    horizons = Horizons(FIRST, (("g-gw1", FIRST + 5), ("g-gw2", FIRST + 3)), FIRST + 9, FIRST + 20, FIRST + 25)
    kept = (records.keep(FIRST + 30, "c-mine", b"d" * 16, b"reply", 3, made_by=CALLERS),)
    ours = Body("v1", False, 3, kept, horizons.highest_us, FIRST + 30, FIRST + 10**9, horizons)
    message = state_pb2.Record.FromString(records.encode(ours, (), b"w")[5:])
    assert message.horizon_us == FIRST + 9, "what it goes by"
    message.ClearField("horizons")
    for key in message.kept:
        key.ClearField("maker")
        key.ClearField("write_id")
    theirs = Body(
        message.state_version,
        message.tombstone,
        message.step,
        tuple(records.keep(k.timestamp_us, k.id, k.digest, k.reply, k.step, made_by="") for k in message.kept),
        message.horizon_us,
        message.newest_us,
        message.expires_us,
    )
    read = records.decode(records.encode(theirs, (), b"w")).body
    for maker, horizon in (("g-gw1", FIRST + 5), ("g-gw2", FIRST + 3), ("g-gw3", FIRST)):
        for body in (ours, read):
            assert isinstance(admitted(body, CallKey(horizon, f"{maker}-1")), Refuse), maker
    assert admitted(ours, CallKey(FIRST + 1, "g-gw3-1")) == Run(begins=False)
    assert isinstance(admitted(read, CallKey(FIRST + 30, "c-mine"), b"d" * 16), Repeat)


# -------------------------------------------------------------------------------------------------------------------------- entries


def test_entries_of_the_map_are_read() -> None:
    entry = state_pb2.WorkerEntry.FromString(data("worker"))
    assert (entry.address, entry.revision, entry.instance) == ("10.0.0.7:8000", "39400607f6b8", "total-0")
    assert (entry.state, entry.HasField("killed")) == (state_pb2.WorkerEntry.READY, False)
    shard = state_pb2.ShardEntry.FromString(data("shard"))
    assert (shard.owner, shard.epoch) == ("total-0-abc", 7)
    assert state_pb2.Floor.FromString(data("floor")).timestamp_us == FIRST


@pytest.mark.parametrize("name", EARLIER["functions"])
def test_a_function_of_it_is_read_and_keeps_its_revision(name: str) -> None:
    """A release that adds fields to the spec gives no function a new revision; its workers' report proves nothing anew. The one exception:
    a `maxBatchSize` of 32 was a default then, and is a user's word now (decision 0100)."""
    stored = EARLIER["functions"][name]
    entry = state_pb2.FunctionEntry.FromString(bytes.fromhex(stored["entry"]))
    spec = specs.spec_from_json(entry.spec)
    applied = specs.parse_manifest(stored["manifest"]).spec
    assert applied.batching.max_batch_size == (None if name == "taste" else 32)
    bare = msgspec.structs.replace(applied, batching=msgspec.structs.replace(applied.batching, max_batch_size=None))
    assert specs.revision_of(bare) == entry.revision
    assert (specs.revision_of(applied) == entry.revision) == (name == "taste")
    assert (spec.model, spec.sessions, spec.timeouts, spec.runtime) == (applied.model, applied.sessions, applied.timeouts, applied.runtime)
    world = World(entry=entry, instances=[instance("i-a", revision=entry.revision)])
    said = control_pb2.WorkerReport.FromString(data("report"))
    world.add(worker("a", revision=entry.revision, said=said))
    assert world.seen().proved
    assert not any(isinstance(step, lifecycle.Prove) for step in lifecycle.live(world.seen(), Decision(1, "by load")))


def test_its_workers_spec_file_is_read_and_what_a_newer_one_adds_is_skipped() -> None:
    file = workerfile.load(EARLIER["worker_file"])
    assert (file.name, file.store.endpoints, file.batching, file.content) == ("vad", ["127.0.0.1:2379"], None, "")
    newer = json.loads(EARLIER["worker_file"])
    newer["added"] = {"later": 1}
    newer["spec"]["added"] = [1]
    newer["spec"]["timeouts"]["added"] = "1s"
    assert workerfile.load(json.dumps(newer)) == file


def test_a_resend_across_versions_has_the_digest_that_was_kept() -> None:
    """Else the same key would name another request, and be refused."""
    inputs = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("t", "BYTES", (-1,)))
    signature = Signature("onnxruntime_onnx", inputs, (TensorSpec("y", "FP32", (-1, 2)),), (), 32)
    request = Decoder(signature, ("vad",)).decode(data("request"))
    assert Digester("default/vad/u-1", signature).digest(request) == data("digest")


def test_states_of_one_layout_have_one_version() -> None:
    assert specs.state_version_of([("state", "FP32", [2, -1, 128]), ("sum", "INT64", [-1])]) == EARLIER["state_version"]
