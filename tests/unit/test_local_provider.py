"""What the leader asks of `dormouse up` for a worker."""

from pathlib import Path
from typing import Any

import grpc.aio
from dormouse_core import limits, workerfile
from dormouse_core.seams import Wanted
from dormouse_core.workerfile import StoreAccess
from dormouse_operator.providers import LocalProvider
from dormouse_proto import control_pb2, control_pb2_grpc
from dormouse_testing.cluster_objects import entry
from dormouse_testing.manifests import onnx


class Up(control_pb2_grpc.ProviderServicer):
    def __init__(self) -> None:
        self.started: list[control_pb2.StartRequest] = []

    async def List(self, request: control_pb2.ListRequest, context: Any) -> control_pb2.ListResponse:
        return control_pb2.ListResponse()

    async def Start(self, request: control_pb2.StartRequest, context: Any) -> control_pb2.StartResponse:
        self.started.append(request)
        return control_pb2.StartResponse()


async def test_a_worker_is_started_with_its_file_and_the_time_that_it_may_take_to_end(tmp_path: Path) -> None:
    up, target = Up(), f"unix:{tmp_path}/up.sock"
    server = grpc.aio.server()
    control_pb2_grpc.add_ProviderServicer_to_server(up, server)
    server.add_insecure_port(target)
    await server.start()
    where = {"model_root": "/models", "gateway": "unix:/calls.sock"}
    provider = LocalProvider(target, installation="i", store=StoreAccess(endpoints=["s"]), removal_wait=7.0, **where)
    function = entry(onnx(timeouts={"step": "90s"}))
    try:
        await provider.apply(Wanted(function, function.revision, 1))
    finally:
        await provider.close()
        await server.stop(None)
    [request] = up.started
    assert request.grace_seconds == 90.0 + limits.TERMINATION_GRACE_SECONDS
    file = workerfile.load(request.spec)
    assert (file.revision, file.removal_wait, file.model_root, file.gateway) == (function.revision, 7.0, "/models", "unix:/calls.sock")
