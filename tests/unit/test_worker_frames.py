"""gRPC's frames, by hand: what is accepted, and what is said of the rest."""

import gzip
import struct
import zlib

import pytest
from dormouse_core.errors import Code, DormouseError, InvalidArgument, ResourceExhausted
from dormouse_worker.transport import frames
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1000


def framed(message: bytes, flags: int = 0) -> bytes:
    return bytes([flags]) + struct.pack(">I", len(message)) + message


@given(st.binary(max_size=LIMIT))
def test_a_message_comes_back(message: bytes) -> None:
    assert frames.frame(message) == framed(message)
    assert frames.unframe(framed(message), {}, LIMIT) == message
    for encoding, packed in ((b"gzip", gzip.compress(message)), (b"deflate", zlib.compress(message))):
        assert frames.unframe(framed(packed, 1), {b"grpc-encoding": encoding}, LIMIT * 2) == message


@pytest.mark.parametrize(
    ("body", "headers", "code", "word"),
    [
        (b"", {}, Code.INVALID_ARGUMENT, "0 bytes"),
        (b"\0\0\0", {}, Code.INVALID_ARGUMENT, "3 bytes"),
        (framed(b"abc") + b"d", {}, Code.INVALID_ARGUMENT, "says 3"),
        (framed(b"abc")[:-1], {}, Code.INVALID_ARGUMENT, "says 3"),
        (framed(b"abc", 2), {}, Code.INVALID_ARGUMENT, "flags 2"),
        (framed(b"a" * 1001), {}, Code.RESOURCE_EXHAUSTED, "at most 1000"),
        (b"\0\xff\xff\xff\xff", {}, Code.RESOURCE_EXHAUSTED, "4294967295"),
        (framed(b"abc", 1), {}, Code.UNIMPLEMENTED, "gzip, deflate"),
        (framed(b"abc", 1), {b"grpc-encoding": b"zstd"}, Code.UNIMPLEMENTED, "'zstd'"),
        (framed(b"abc", 1), {b"grpc-encoding": b"gzip"}, Code.INVALID_ARGUMENT, "not valid gzip"),
        (framed(gzip.compress(b"abc", mtime=0)[:-1], 1), {b"grpc-encoding": b"gzip"}, Code.INVALID_ARGUMENT, "does not end"),
        (framed(gzip.compress(b"abc", mtime=0) + b"d", 1), {b"grpc-encoding": b"gzip"}, Code.INVALID_ARGUMENT, "does not end"),
    ],
)
def test_what_is_no_message(body: bytes, headers: dict[bytes, bytes], code: Code, word: str) -> None:
    with pytest.raises(DormouseError) as raised:
        frames.unframe(body, headers, LIMIT)
    assert raised.value.code is code
    assert word in raised.value.message


def test_a_small_message_that_becomes_huge_is_cut_off() -> None:
    bomb = gzip.compress(bytes(100 << 20))
    with pytest.raises(ResourceExhausted):
        frames.unframe(framed(bomb, 1), {b"grpc-encoding": b"gzip"}, 1 << 20)


@pytest.mark.parametrize(("text", "seconds"), [(b"1S", 1), (b"300m", 0.3), (b"2H", 7200), (b"1M", 60), (b"99999999n", 0.099999999)])
def test_timeouts(text: bytes, seconds: float) -> None:
    assert frames.timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S"])
def test_what_is_no_timeout(text: bytes) -> None:
    with pytest.raises(InvalidArgument, match="grpc-timeout"):
        frames.timeout(text)


def test_status_messages_are_ascii_and_bounded() -> None:
    assert frames.status_message("no such model: ä\n100%") == b"no such model: %C3%A4%0A100%25"
    assert len(frames.status_message("x" * 10**6)) < 5000


@given(st.lists(st.binary(max_size=50), max_size=8), st.data())
def test_a_stream_is_cut_where_its_messages_end(messages: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(map(framed, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    reader = frames.Reader(LIMIT)
    found: list[bytes] = []
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += reader.feed(whole[begin:end])
    assert found == messages


def test_a_stream_refuses_what_is_too_large_before_it_is_there() -> None:
    with pytest.raises(ResourceExhausted):
        frames.Reader(LIMIT).feed(b"\0\x7f\xff\xff\xff")
