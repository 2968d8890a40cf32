"""A real gateway (agent and Envoy as processes) before workers that are not real: grpcio servers in the test's own
process, registered in a real store as workers register.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from dormouse_core import spec
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Delete, Put, Store, Txn
from dormouse_core.spec.objects import FunctionSpec, Model, SessionsSpec, StateSpec, Timeouts
from dormouse_gateway.envoy import process as envoy
from dormouse_gateway.settings import parse
from dormouse_kit.clock import TEST_OFFSET
from dormouse_kit.envoyadmin import admin
from dormouse_kit.grpc_options import channel_options, server_options
from dormouse_kit.processes import python
from dormouse_kit.shedding import Pressure
from dormouse_proto import inference_pb2, state_pb2

from dormouse_testing.ports import free_port
from dormouse_testing.workers import metric_of

INFER = "/inference.GRPCInferenceService/ModelInfer"
ENVOY_ACTIVE = 30.0  # seconds until a gateway must be up


class Gateway:
    """One agent and one Envoy. `agent` and `envoy` may be stopped and started apart. `sockets`: one of one machine, beside its own."""

    def __init__(self, endpoint: str, installation: str, *options: str, sockets: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="gw-", dir="/tmp"))  # a Unix socket's path must be short
        self.listen, self.relay, self.metrics = (f"127.0.0.1:{free_port()}" for _ in range(3))
        if sockets:
            self.relay = f"unix:{self.folder}/relay.sock"
        self.admin = self.folder / "admin.sock"
        self.options = [
            "--store", endpoint, "--installation", installation, "--listen", self.listen, "--listen-relay", self.relay,
            "--xds", f"unix:{self.folder}/xds.sock", "--admin", str(self.admin), "--metrics", self.metrics.rpartition(":")[2],
            "--drain-seconds", "5", *options,
        ]  # fmt: skip
        self.agent: subprocess.Popen[bytes] | None = None
        self.envoy: subprocess.Popen[bytes] | None = None

    def start_agent(self, ahead: float = 0.0) -> None:
        """`ahead`: its clock, in seconds."""
        self.agent = self._start("dormouse_gateway", ahead)

    def start_envoy(self, ahead: float = 0.0) -> None:
        self.envoy = self._start("dormouse_gateway.envoy", ahead)

    def start_envoy_with(self, config: str) -> None:
        """Envoy alone, with another bootstrap; nobody tells it how short of memory it is."""
        Pressure(Path(parse(self.options, "test").pressure))
        path = self.folder / "envoy.json"
        path.write_text(config)
        with (self.folder / "dormouse_gateway.envoy.log").open("ab") as log:
            self.envoy = subprocess.Popen(envoy.command(parse(self.options, "test"), path), stdout=log, stderr=log)

    def _start(self, module: str, ahead: float = 0.0) -> subprocess.Popen[bytes]:
        environment = {**os.environ, TEST_OFFSET: str(ahead)}
        with (self.folder / f"{module}.log").open("ab") as log:
            command = [*python(module), *self.options]
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def log(self, module: str) -> str:
        path = self.folder / f"{module}.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        for process in (self.envoy, self.agent):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in (self.envoy, self.agent):
            if process is not None:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder)

    def wait_ready(self, limit: float = ENVOY_ACTIVE) -> None:
        end = time.monotonic() + limit
        while not self.ready():
            if time.monotonic() > end:
                raise AssertionError(f"not ready:\n{self.log('dormouse_gateway')}\n{self.log('dormouse_gateway.envoy')}")
            time.sleep(0.02)

    def ready(self) -> bool:
        """The port takes connections."""
        host, _, port = self.listen.partition(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 0.2):
            return True
        return False

    def channel(self, *, authority: str = "", **options: Any) -> grpc.aio.Channel:
        given = [*channel_options(message_bytes=64 << 20), *options.items()]
        if authority:
            given.append(("grpc.default_authority", authority))
        return grpc.aio.insecure_channel(self.listen, options=given)

    async def ask(self, target: str, method: str = "GET") -> str:
        """Envoy's admin."""
        return await admin(str(self.admin), method, target)

    async def routed(self, label: str, contains: str = "", lacks: str = "\0") -> None:
        """Returns when Envoy has the function's route (and in it the text `contains`, and not the text `lacks`)."""
        limit = time.monotonic() + 30
        while time.monotonic() < limit:
            for scope in json.loads(await self.ask("/config_dump?resource=dynamic_scoped_route_configs")).get("configs", []):
                for each in scope.get("scoped_route_configs", []):
                    if each["name"] == label and contains in (text := json.dumps(each)) and lacks not in text:
                        return
            await asyncio.sleep(0.02)
        raise AssertionError(f"no route for {label}")

    async def held(self, count: int) -> None:
        """Returns when so many calls wait in the relay."""
        limit = time.monotonic() + 60
        while (found := await asyncio.to_thread(metric_of, self.metrics, "dormouse_relay_held")) != count:
            assert time.monotonic() < limit, f"{found:g} calls are held"
            await asyncio.sleep(0.02)

    def relay_calls(self, code: str = "") -> float:
        """How many ModelInfer calls the relay has answered, by its metrics."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        series = [line for line in lines if line.startswith("dormouse_relay_calls_total{") and 'method="ModelInfer"' in line]
        return sum(float(line.rpartition(" ")[2]) for line in series if code in line)


@dataclass
class Seen:
    """A call as a fake worker got it."""

    request: inference_pb2.ModelInferRequest
    metadata: dict[str, str]

    @property
    def key(self) -> str:
        return self.metadata["dormouse-call"]


class Refuse(Exception):
    """Raised by a behaviour: `again` makes it a refusal that may be sent again."""

    def __init__(self, code: grpc.StatusCode, details: str, again: str = "") -> None:
        self.code, self.details, self.again = code, details, again


class FakeWorker:
    """`behave` may sleep, raise Refuse, or return parameters to answer with."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls: list[Seen] = []
        self.behave: Callable[[Seen], Awaitable[None]] = self._nothing
        self.server: grpc.aio.Server | None = None
        self.address = ""

    async def _nothing(self, seen: Seen) -> None:
        return None

    async def start(self, address: str = "127.0.0.1:0") -> "FakeWorker":
        self.server = grpc.aio.server(options=server_options(message_bytes=64 << 20))
        handler = grpc.unary_unary_rpc_method_handler(self._infer)
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler}),)
        )
        port = self.server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()
        return self

    async def stop(self, grace: float | None = None) -> None:
        if self.server is not None:
            await self.server.stop(grace)

    async def _infer(self, message: bytes, context: Any) -> bytes:
        seen = Seen(inference_pb2.ModelInferRequest.FromString(message), dict(context.invocation_metadata()))
        self.calls.append(seen)
        try:
            await self.behave(seen)
        except Refuse as refused:
            await context.abort(
                refused.code, refused.details, (("dormouse-again", refused.again),) if refused.again else (("dormouse-by", "worker"),)
            )
        await context.send_initial_metadata((("dormouse-step", str(len(self.calls))),))
        answer = inference_pb2.ModelInferResponse(model_name=seen.request.model_name, id=seen.request.id)
        answer.parameters["worker"].string_param = self.name
        answer.parameters["bytes"].int64_param = sum(len(each) for each in seen.request.raw_input_contents)
        if "reply" in seen.request.parameters:  # bytes, of a large one
            answer.raw_output_contents.append(bytes(seen.request.parameters["reply"].int64_param))
        return answer.SerializeToString()


class Wire:
    """A TCP forwarder before a fake worker. `cut` is what a SIGKILL of the worker looks like, `freeze` what a dead network does."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.partition(":")
        self._port = int(port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self) -> "Wire":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection(self._host, self._port)
        self._writers |= {writer, there}
        try:
            await asyncio.gather(self._copy(reader, there), self._copy(there_reader, writer))
        finally:
            self._writers -= {writer, there}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._thawed.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def freeze(self) -> None:
        self._thawed.clear()

    async def cut(self) -> None:
        """Every connection is reset, and no new one is accepted."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self._thawed.set()
        await asyncio.sleep(0)


@dataclass
class World:
    """Functions, workers and shards in the store, written as their owners write them. One World, one name-space of names."""

    store: Store
    keys: Keys
    leases: dict[str, int] = field(default_factory=dict)
    uids: int = 0
    marked: bool = False

    async def mark(self) -> None:
        """What the leader leaves once every function is in the store: one that is not there does not exist."""
        self.marked = True
        await self.put(self.keys.written, b"")

    async def function(self, name: str, *, shards: int = 0, namespace: str = "default", **more: Any) -> Function:
        """Creates or changes it: `spec` fields among `more`, the rest are FunctionEntry's."""
        fields = {key: more.pop(key) for key in list(more) if key in FunctionSpec.__struct_fields__}
        sessions = SessionsSpec(states=[StateSpec(input="s", output="t", shape=[-1, 1], batch_axis=0)], shards=shards) if shards else None
        what = FunctionSpec(runtime="onnx", model=Model(uri="file:///m.onnx"), sessions=sessions, **fields)
        uid = more.pop("uid", "")
        if not uid:
            self.uids += 1
            uid = f"u{self.uids}-{os.urandom(3).hex()}"
        given = {"revision": "r1", "proved_revision": "r1", **more}
        entry = state_pb2.FunctionEntry(namespace=namespace, name=name, uid=uid, spec=spec.spec_to_json(what), shards=shards, **given)
        await self.put(self.keys.function(namespace, name), entry.SerializeToString())
        if not self.marked:
            await self.mark()
        return Function(namespace, name, uid)

    async def register(
        self, function: Function, worker: FakeWorker | None, *, name: str = "", address: str = "", revision: str = "r1"
    ) -> None:
        address = address or (worker.address if worker else "")
        name = name or (worker.name if worker else "")
        entry = state_pb2.WorkerEntry(address=address, revision=revision, state=state_pb2.WorkerEntry.READY, instance=name)
        await self.put(self.keys.worker(function, name), entry.SerializeToString())

    async def unregister(self, function: Function, name: str) -> None:
        await self.store.txn(Txn((), (Delete(self.keys.worker(function, name)),)))

    async def own(self, function: Function, owner: str, shards: Sequence[int], epoch: int = 1) -> None:
        value = state_pb2.ShardEntry(owner=owner, epoch=epoch).SerializeToString()
        for at in range(0, len(shards), 60):
            await self.store.txn(Txn((), tuple(Put(self.keys.shard(function, shard), value) for shard in shards[at : at + 60])))

    async def put(self, key: str, value: bytes) -> None:
        await self.store.txn(Txn((), (Put(key, value),)))


def request(model: str = "", sequence: int | str | None = None, size: int = 0, **more: Any) -> inference_pb2.ModelInferRequest:
    made = inference_pb2.ModelInferRequest(model_name=model, **more)
    if isinstance(sequence, int):
        made.parameters["sequence_id"].int64_param = sequence
    elif sequence is not None:
        made.parameters["sequence_id"].string_param = sequence
    if size:
        made.raw_input_contents.append(bytes(size))
    return made


@dataclass
class Answer:
    code: grpc.StatusCode
    details: str = ""
    worker: str = ""
    step: str = ""
    bytes: int = 0


async def infer(
    channel: grpc.aio.Channel, message: inference_pb2.ModelInferRequest, *metadata: tuple[str, str], timeout: float = 10, **more: Any
) -> Answer:
    call = channel.unary_unary(INFER)(message.SerializeToString(), metadata=metadata, timeout=timeout, **more)
    try:
        reply = inference_pb2.ModelInferResponse.FromString(await call)
    except grpc.aio.AioRpcError as error:
        return Answer(error.code(), error.details() or "")
    step = dict(await call.initial_metadata()).get("dormouse-step", "")
    return Answer(grpc.StatusCode.OK, "", reply.parameters["worker"].string_param, str(step), reply.parameters["bytes"].int64_param)


@contextlib.contextmanager
def running(endpoint: str, installation: str, *options: str) -> Iterator[Gateway]:
    """A gateway that is ready."""
    gateway = Gateway(endpoint, installation, *options)
    try:
        gateway.start_agent()
        gateway.start_envoy()
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()


__all__ = ["Answer", "FakeWorker", "Gateway", "Refuse", "Seen", "Timeouts", "World", "infer", "request", "running"]
