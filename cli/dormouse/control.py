"""The connection from the command line to the leader's `Control` service. The CLI knows no other way in."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from dormouse_core.errors import Code, DormouseError, Unavailable
from dormouse_kit.grpc_options import channel_options
from dormouse_proto import control_pb2_grpc

from dormouse.home import Home

TIMEOUT = 15.0  # seconds
APPLY_TIMEOUT = 120.0  # seconds: the operator reads the model first
RESTART = 10.0  # seconds


@contextmanager
def control(home: Home) -> Iterator[control_pb2_grpc.ControlStub]:
    """A stub of the system in `home`. Errors of calls made inside come out as DormouseError with one readable line.

    An operator that was killed is back within its lease's length: that is waited for, while `dormouse up` itself runs.
    """
    run = home.read_run()
    with (
        grpc.insecure_channel(run.control, options=channel_options(keepalive=False)) as channel,
        readable(f"the system in {home.directory}", f"dormouse up {home.directory}"),
    ):
        try:
            grpc.channel_ready_future(channel).result(timeout=RESTART)
        except grpc.FutureTimeoutError:
            raise Unavailable(f"the operator in {home.directory} does not answer; the output of `dormouse up` says why") from None
        yield control_pb2_grpc.ControlStub(channel)


@contextmanager
def naming(where: str) -> Iterator[None]:
    """What is refused inside says of what it speaks."""
    try:
        with readable("the operator", "dormouse up DIR"):
            yield
    except DormouseError as error:
        raise DormouseError("\n".join(f"{where}: {line}" for line in error.message.splitlines()), error.code) from error


@contextmanager
def readable(what: str, start: str) -> Iterator[None]:
    """gRPC's errors as ours; a connection that cannot be made says how to start `what`."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and ("failed to connect" in details.lower() or "connection refused" in details.lower()):
            raise Unavailable(f"{what} does not answer; start it with: {start}") from None
        raise DormouseError(details or code.name, Code(code.value[0])) from None
