"""Envoy as `bootstrap` configures it, with an application that fails: no failure may look like success."""

import contextlib
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from dormouse_testing.ports import free_port
from dormouse_worker.process import bootstrap, probing

HOWS = ["at once", "after the headers", "in the body", "wrong type"]


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0) as sock:
            return probing.exchange(sock, "GET", "/")[0] == 200
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def envoy(folder: Path, change: Callable[[dict[str, Any]], None] = lambda protocol: None) -> Iterator[int]:
    """Its port. `change`: of the listener's HTTP/2 options."""
    port = free_port()
    config = bootstrap.bootstrap(f"127.0.0.1:{port}", str(folder / "admin"), "dormouse_testing.raising:app")
    listener = config["static_resources"]["listeners"][0]
    change(listener["filter_chains"][0]["filters"][0]["typed_config"]["http2_protocol_options"])
    command = bootstrap.command(config)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=bootstrap.environment(os.environ), stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 60
        while not answers(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < limit
            time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    with envoy(tmp_path_factory.mktemp("envoy")) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as found:
        yield found


def code(channel: grpc.Channel, path: str, how: str) -> grpc.StatusCode:
    call = channel.unary_unary(path).with_call
    try:
        return call(b"x", metadata=[("how", how)], timeout=30)[1].code()  # type: ignore[no-any-return]
    except grpc.RpcError as error:
        return error.code()  # type: ignore[no-any-return]


def test_a_whole_answer_is_ok(channel: grpc.Channel) -> None:
    assert code(channel, bootstrap.INFER, "well") is grpc.StatusCode.OK


@pytest.mark.parametrize("how", HOWS)
def test_a_failure_is_never_ok(channel: grpc.Channel, how: str) -> None:
    assert code(channel, bootstrap.INFER, how) is not grpc.StatusCode.OK


def test_without_the_bridge_an_uncaught_exception_looks_like_success(channel: grpc.Channel) -> None:
    """Why the bridge is there, and why every other path catches everything itself."""
    assert code(channel, "/other.Service/Method", "at once") is grpc.StatusCode.OK


def cancelled_calls(port: int, count: int) -> bool:
    """Begins and cancels `count` calls on one connection; whether the connection then still answers a ping."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    fields = {":method": "POST", ":scheme": "http", ":path": bootstrap.INFER, ":authority": "a", "content-type": "application/grpc"}
    headers = b"".join(b"\0" + bytes([len(k)]) + k.encode() + bytes([len(v)]) + v.encode() for k, v in fields.items())
    with socket.create_connection(("127.0.0.1", port), 60) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        for begin in range(0, count, 100):
            streams = range(2 * begin + 1, 2 * (begin + 100) + 1, 2)
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"".join(frame(1, 4, s, headers) + frame(3, 0, s, struct.pack(">I", 8)) for s in streams))
            time.sleep(0.01)
        data = b""
        try:
            sock.sendall(frame(6, 0, 0, b"are you?"))
            while b"are you?" not in data:
                chunk = sock.recv(65536)
                if not chunk:
                    return False
                data += chunk
        except ConnectionError:
            return False
        return True


def test_many_cancels_leave_the_connection_to_the_others(tmp_path: Path) -> None:
    with envoy(tmp_path) as port:
        assert cancelled_calls(port, 4000)


def test_with_the_default_codec_many_cancels_end_the_connection(tmp_path: Path) -> None:
    """Why oghttp2 is asked for: nghttp2 bounds the rate of resets and cannot be told not to."""

    def default(protocol: dict[str, Any]) -> None:
        del protocol["use_oghttp2_codec"]

    with envoy(tmp_path, default) as port:
        assert not cancelled_calls(port, 4000)
