"""The record's frame and its parts."""

from functools import reduce

import msgspec
import pytest
from dormouse_core import callkeys, records
from dormouse_core.errors import DataLoss, FailedPrecondition
from dormouse_core.marks import NONE
from dormouse_proto import state_pb2
from hypothesis import given
from hypothesis import strategies as st

TENSOR = state_pb2.Tensor(name="s", datatype="FP32", shape=[1, 2], data=b"12345678")

kepts = st.builds(
    records.keep,
    st.integers(0, 2**50),
    st.text(max_size=10) | st.sampled_from(("g-a-1", "c-x", "w-b-2")),
    st.binary(max_size=8),
    st.none() | st.binary(max_size=30),
    st.integers(0, 2**40),
    st.sampled_from((b"", b"w-1/7")),
    made_by=st.none() | st.sampled_from(("g-a", "?")),
).filter(lambda kept: kept.maker == callkeys.maker_of(kept.id) or kept.id.startswith("c-"))
times = st.integers(0, 2**50)
bodies = st.builds(
    records.Body,
    state_version=st.text(max_size=5),
    tombstone=st.booleans(),
    step=st.integers(0, 2**40),
    kept=st.lists(kepts, max_size=9).map(tuple),
    horizon_us=st.integers(0, 2**50),
    newest_us=st.integers(0, 2**50),
    expires_us=st.integers(0, 2**50),
    horizons=st.builds(
        records.Horizons,
        times,
        st.lists(st.tuples(st.text(max_size=5), times), max_size=3).map(tuple),
        times,
        times,
        times,
        st.lists(st.tuples(times, st.text(max_size=3)), max_size=3).map(
            lambda found: reduce(lambda all_, one: all_.added(*one), found, NONE)
        ),
    ),
)


@given(bodies, st.binary(max_size=20))
def test_what_is_written_is_read(body: records.Body, write_id: bytes) -> None:
    data = records.encode(body, [TENSOR], write_id)
    record = records.decode(data)
    assert record.body == body
    assert record.tensors == (TENSOR,)
    assert record.write_id == write_id


def test_a_build_that_knew_one_horizon_and_this_one_read_each_other() -> None:
    """What it left: whose timestamp a caller's key has is not known. What it reads: the highest horizon, the newest of all."""
    old = state_pb2.Record(kept=[state_pb2.KeptKey(timestamp_us=7, id="c-x"), state_pb2.KeptKey(timestamp_us=8, id="g-a-1")], horizon_us=5)
    body = records.decode(framed(old)).body
    assert [kept.maker for kept in body.kept] == [callkeys.ANYBODY, "g-a"]
    assert body.horizons is None
    assert {body.known().of(maker) for maker in (callkeys.CALLERS, "g-a", "w-b")} == {5}
    again = records.decode(records.encode(msgspec.structs.replace(body, horizons=body.known()), [], b"w")).body
    assert [kept.maker for kept in again.kept] == [callkeys.ANYBODY, "g-a"], "it stays unknown"
    known = records.Horizons(3, (("g-a", 9),), 4, 20, 30)
    written = state_pb2.Record.FromString(records.encode(records.Body("v", False, 1, (), 9, 30, 0, known), [], b"w")[5:])
    assert (written.horizon_us, written.newest_us) == (9, 30)


def framed(record: state_pb2.Record) -> bytes:
    message = record.SerializeToString()
    return bytes([records.FORMAT]) + int(records.google_crc32c.value(message)).to_bytes(4, "big") + message


def test_appended_kept_keys_are_the_message_that_protobuf_would_write() -> None:
    body = records.Body("v", False, 3, (records.keep(1, "a", b"d", b"r", 2), records.keep(2, "b", b"", None, 3)), 0, 2, 9)
    message = state_pb2.Record.FromString(records.encode(body, [], b"w")[5:])
    assert [(k.id, k.reply, k.reply_gone, k.step) for k in message.kept] == [("a", b"r", False, 2), ("b", b"", True, 3)]


@given(bodies, st.data())
def test_any_flipped_bit_is_found(body: records.Body, data: st.DataObject) -> None:
    good = records.encode(body, [TENSOR], b"w")
    at = data.draw(st.integers(1, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataLoss):
        records.decode(bytes(bad))
    assert records.readable(bytes(bad)) is None


@pytest.mark.parametrize("data", [b"", b"\x01", b"\x01\0\0\0", b"\x01\0\0\0\1x"])
def test_too_short_or_no_record(data: bytes) -> None:
    with pytest.raises(DataLoss):
        records.decode(data)


def test_a_checksum_over_garbage_is_data_loss() -> None:
    checksum = records.google_crc32c.value(b"\xff\xff").to_bytes(4, "big")
    with pytest.raises(DataLoss, match="parse"):
        records.decode(b"\x01" + checksum + b"\xff\xff")


def test_a_newer_format_is_left_alone() -> None:
    data = b"\x03" + records.encode(records.Body("v", False, 1, (), 0, 0, 0), [], b"w")[1:]
    with pytest.raises(FailedPrecondition, match="format 3"):
        records.decode(data)
