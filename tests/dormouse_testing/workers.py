"""A real worker for tests: supervisor, Envoy, Python, as a subprocess; and a raw gRPC client for it."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from dormouse_core import spec as specs
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.tensors import DATATYPES, decode_raw, encode_raw
from dormouse_core.workerfile import StoreAccess, WorkerFile, dump
from dormouse_kit.etcd import EtcdStore
from dormouse_kit.processes import python
from dormouse_proto import inference_pb2, inference_pb2_grpc, state_pb2

from dormouse_testing.places import page
from dormouse_testing.ports import free_port

OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # a second and more by default, and a process under test is up sooner
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long an attempt may take
)


class WorkerProcess:
    """Started by entering it; SIGTERM and a wait when it is left. `under`: words before its command, that end in an exec."""

    def __init__(self, folder: Path, *arguments: str, instance: str = "test", under: Sequence[str] = ()) -> None:
        self.folder = folder
        self.port = free_port()
        self.reason = folder / f"{instance}-reason.json"
        self._log = folder / f"{instance}.log"
        self._arguments = arguments
        self._instance = instance
        self._under = under
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [
            *self._under, *python("dormouse_worker"), *self._arguments, "--listen", self.address, "--instance", self._instance,
            "--reason", str(self.reason),
        ]  # fmt: skip
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_ready(self, seconds: float = 60.0) -> None:
        limit = time.monotonic() + seconds
        with self.client() as client:
            while True:
                try:
                    if client.stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=1).ready:
                        return
                except grpc.RpcError:
                    pass
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > limit:
                    raise AssertionError(f"the worker is not ready:\n{self.log[-3000:]}")
                time.sleep(0.02)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def children(self) -> list[int]:
        """The pids of the supervisor's children, the oldest first."""
        assert self.process is not None
        return [int(word) for word in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()]

    @property
    def child(self) -> int:
        """The pid of the child: Envoy with Python in it. The first: a keeper of its lease is younger."""
        found = self.children
        assert found
        return found[0]

    def client(self) -> "Client":
        return Client(self.address)

    def stop(self, seconds: float = 60.0) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def __enter__(self) -> "WorkerProcess":
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(AssertionError, ProcessLookupError):
                os.kill(self.child, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


def spec_file(
    folder: Path, spec: Mapping[str, Any], endpoint: str, *, installation: str = "default", name: str = "fn", uid: str = "uid-1"
) -> Path:
    """Writes the worker's spec file for the function tests/`name`, as an operator would."""
    manifest = {
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "InferenceFunction",
        "metadata": {"name": name, "namespace": "tests"},
        "spec": dict(spec),
    }
    function = specs.parse_manifest(manifest)
    file = WorkerFile(
        installation=installation,
        namespace="tests",
        name=name,
        uid=uid,
        revision=specs.revision_of(function.spec),
        spec=function.spec,
        store=StoreAccess(endpoints=[endpoint]),
        model_root=str(folder),
    )
    path = folder / f"{name}.json"
    path.write_bytes(dump(file))
    return path


class Client:
    """Calls a worker with the generated stubs."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=OPTIONS)
        self.stub = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def infer(
        self, request: inference_pb2.ModelInferRequest, metadata: Sequence[tuple[str, str]] = (), timeout: float | None = 20.0
    ) -> inference_pb2.ModelInferResponse:
        return self.stub.ModelInfer(request, metadata=metadata, timeout=timeout)

    def step(self, array: np.ndarray, session: str, **options: Any) -> np.ndarray:
        """One step of fn's session, by metadata; the first output."""
        reply = self.infer(request_of("fn", x=array), [("dormouse-session", session)], **options)
        return outputs_of(reply)["y"]


_NAMES = {kind.dtype: name for name, kind in DATATYPES.items() if name != "BF16"}


def request_of(model: str, /, **inputs: np.ndarray) -> inference_pb2.ModelInferRequest:
    """Raw contents, datatypes from the arrays'."""
    request = inference_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        datatype = _NAMES[array.dtype]
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(encode_raw(array, datatype))
    return request


def outputs_of(reply: inference_pb2.ModelInferResponse) -> dict[str, np.ndarray]:
    return {
        tensor.name: decode_raw(tensor.datatype, tensor.shape, raw)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def patient(call: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What a relay does: sends again while the worker says `dormouse-again`, or is not there."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > limit:
                raise
            time.sleep(0.02)


def metric_of(address: str, name: str) -> float:
    """The series of that name in Prometheus's text at `address`, summed over its labels."""
    text = page(address)
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def give_shards(endpoint: str, installation: str, shards: int, *, name: str = "fn", uid: str = "uid-1", besides: Sequence[str] = ()) -> str:
    """Plays the leader: waits for the function's worker (none of `besides`) and makes it the owner of every shard. Its name."""
    return asyncio.run(_give(endpoint, Keys(installation), Function("tests", name, uid), shards, besides))


def registered(endpoint: str, installation: str, worker: str, *, name: str = "fn", uid: str = "uid-1") -> bool:
    """Whether the worker's entry stands."""

    async def look() -> bool:
        store, key = EtcdStore([endpoint]), Keys(installation).worker(Function("tests", name, uid), worker)
        try:
            return key in (await store.get([key]))[1]
        finally:
            await store.close()

    return asyncio.run(look())


async def _give(endpoint: str, keys: Keys, function: Function, shards: int, besides: Sequence[str]) -> str:
    store = EtcdStore([endpoint])
    try:
        limit = time.monotonic() + 60
        while True:
            workers = (await store.list(keys.workers(function))).items
            names = [item.key.removeprefix(keys.workers(function)) for item in workers]
            fresh = [name for name in names if name not in besides]
            if fresh:
                break
            assert time.monotonic() < limit, "no worker registered"
            await asyncio.sleep(0.01)
        epochs = {item.key: state_pb2.ShardEntry.FromString(item.value).epoch for item in (await store.list(keys.shards(function))).items}
        for begin in range(0, shards, 60):
            puts = []
            for shard in range(begin, min(shards, begin + 60)):
                key = keys.shard(function, shard)
                puts.append(Put(key, state_pb2.ShardEntry(owner=fresh[0], epoch=epochs.get(key, 0) + 1).SerializeToString()))
            await store.txn(Txn((), tuple(puts)))
        return fresh[0]
    finally:
        await store.close()
