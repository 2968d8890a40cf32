"""Metrics on a port, options that reach gRPC, the etcd messages' encoding."""

import urllib.request

import grpc
import pytest
from aetcd.rpc import rpc_pb2
from dormouse_core.seams import CreatedIs, Delete, Exists, ModIs, Put, Txn
from dormouse_kit import metrics
from dormouse_kit.etcd import messages
from dormouse_kit.grpc_options import channel_options
from dormouse_testing.echoing import echo_server, echoed
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter


def test_metrics_are_served_until_closed() -> None:
    registry = CollectorRegistry()
    Counter("dormouse_test", "A test's.", registry=registry).inc(3)
    served = metrics.serve(0, registry=registry)
    url = f"http://127.0.0.1:{served.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as reply:
        assert b"dormouse_test_total 3.0" in reply.read()
    served.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(url, timeout=5)


async def test_a_message_above_grpcs_own_limit_passes() -> None:
    async with echo_server() as address:
        message = bytes(16 * 1024 * 1024)
        assert await echoed(address, channel_options(), message) == message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await echoed(address, channel_options(), bytes(17 * 1024 * 1024))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"/x/", b"/x0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0"), ("ż".encode(), b"\xc5\xbd")]
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert messages.prefix_end(prefix) == end


@given(st.binary(max_size=4), st.binary(max_size=6))
def test_prefix_end_is_the_first_key_behind_the_prefix(prefix: bytes, key: bytes) -> None:
    end = messages.prefix_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix) or (end == b"\0" and prefix.strip(b"\xff") == b"" and key >= prefix)


def test_a_transaction_as_etcd_reads_it() -> None:
    txn = Txn(
        (ModIs("m", 7), ModIs("absent", 0), CreatedIs("c", 5), Exists("e")),
        (Put("p", b"value"), Put("l", b"", lease=9), Delete("d"), Delete("r/", prefix=True), Delete("", prefix=True)),
    )
    request = rpc_pb2.TxnRequest.FromString(messages.txn_request(txn))
    compare = rpc_pb2.Compare
    assert list(request.compare) == [
        compare(target=compare.MOD, result=compare.EQUAL, key=b"m", mod_revision=7),
        compare(target=compare.MOD, result=compare.EQUAL, key=b"absent", mod_revision=0),
        compare(target=compare.CREATE, result=compare.EQUAL, key=b"c", create_revision=5),
        compare(target=compare.CREATE, result=compare.GREATER, key=b"e", create_revision=0),
    ]
    assert not request.failure
    puts = [part.request_put for part in request.success[:2]]
    assert [(put.key, put.value, put.lease) for put in puts] == [(b"p", b"value", 0), (b"l", b"", 9)]
    deletes = [part.request_delete_range for part in request.success[2:]]
    assert [(delete.key, delete.range_end) for delete in deletes] == [(b"d", b""), (b"r/", b"r0"), (b"\0", b"\0")]


def status(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details", "definite"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", True),
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", True),
        (grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found", True),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", True),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out", False),
        (grpc.StatusCode.UNAVAILABLE, "etcdserver: leader changed", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "upstream connect error: overflow", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "CLIENT: Received message larger than max (5 vs. 4)", False),
        (grpc.StatusCode.UNAUTHENTICATED, "Jwt is expired", False),
        (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied", False),
        (grpc.StatusCode.UNIMPLEMENTED, "", False),
    ],
)
def test_only_etcds_own_no_is_definite(code: grpc.StatusCode, details: str, definite: bool) -> None:
    """What is between may say so after it passed the write on: by the code alone (the control) five more of these would be a no."""
    error = messages.store_error("Txn", "there", status(code, details))
    assert error.definite is definite
    assert definite <= (code in messages._REFUSED)
