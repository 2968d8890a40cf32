"""Envoy as `bootstrap` configures it, with an application that fails: no failure may look like success."""

import os
import subprocess
import time
from collections.abc import Iterator

import grpc
import pytest
from dormouse_testing.ports import free_port
from dormouse_worker import bootstrap, probing

HOWS = ["at once", "after the headers", "in the body", "wrong type"]


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    folder = tmp_path_factory.mktemp("envoy")
    port = free_port()
    command = bootstrap.command(bootstrap.bootstrap("127.0.0.1", port, str(folder / "admin"), "dormouse_testing.raising:app"))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=bootstrap.environment(os.environ), stdout=log, stderr=log)
    try:
        limit = time.monotonic() + 20
        while probing.get("127.0.0.1", port, "/", 1.0) != 200:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < limit
            time.sleep(0.02)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as found:
            yield found
    finally:
        process.kill()
        process.wait()


def code(channel: grpc.Channel, path: str, how: str) -> grpc.StatusCode:
    call = channel.unary_unary(path).with_call
    try:
        return call(b"x", metadata=[("how", how)], timeout=10)[1].code()  # type: ignore[no-any-return]
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
