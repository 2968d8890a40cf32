"""The provider on one machine: asks `dormouse up` over its Unix socket to start and stop worker supervisors.

Level-triggered: every `apply` lists first and corrects the difference, so an order that was lost, repeated or made by the leader before is
no trouble. Supervisors that fail are started again by `up`, at growing intervals; here they count as running.
"""

import secrets
from collections.abc import Sequence

import grpc
import grpc.aio
from dormouse_core import editions, workerfile
from dormouse_core.errors import Unavailable
from dormouse_core.limits import TERMINATION_GRACE_SECONDS
from dormouse_core.seams import Instance, Wanted
from dormouse_core.spec import spec_from_json
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_kit.grpc_options import channel_options
from dormouse_proto import control_pb2, control_pb2_grpc, state_pb2

TIMEOUT = 5.0  # seconds


class LocalProvider:
    """`target`: unix:PATH of `dormouse up`'s socket."""

    def __init__(
        self,
        target: str,
        *,
        installation: str,
        store: StoreAccess,
        model_root: str,
        gateway: str = "",
        removal_wait: float | None = None,
    ) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=channel_options(keepalive=False))
        self._stub = control_pb2_grpc.ProviderStub(self._channel)
        self._installation = installation
        self._store = store
        self._model_root = model_root
        self._gateway = gateway
        self._removal_wait = removal_wait

    async def close(self) -> None:
        await self._channel.close()

    async def observe(self) -> Sequence[Instance] | None:
        try:
            response = await self._stub.List(control_pb2.ListRequest(), timeout=TIMEOUT)
        except grpc.aio.AioRpcError:
            return None
        return [_instance(i) for i in response.instances]

    async def apply(self, wanted: Wanted) -> None:
        instances = await self.observe()
        if instances is None:
            raise Unavailable("`dormouse up` does not answer at its socket")
        entry = wanted.function
        running = [i.name for i in instances if i.uid == entry.uid and i.revision == wanted.revision and not i.stopping]
        try:
            for name in _first(wanted.victims, running)[: max(len(running) - wanted.count, 0)]:
                await self._stub.Stop(control_pb2.StopRequest(instance=name), timeout=TIMEOUT)
            for _ in range(wanted.count - len(running)):
                await self._start(wanted)
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"`dormouse up`: {error.details()}") from error

    async def _start(self, wanted: Wanted) -> None:
        entry = wanted.function
        file = self._file(entry, wanted.revision)
        request = control_pb2.StartRequest(
            instance=f"{entry.namespace}.{entry.name}-{wanted.revision[:6]}-{secrets.token_hex(3)}",
            spec=workerfile.dump(file).decode(),
            grace_seconds=file.spec.timeouts.step.seconds + TERMINATION_GRACE_SECONDS,
        )
        await self._stub.Start(request, timeout=TIMEOUT)

    def _file(self, entry: state_pb2.FunctionEntry, revision: str) -> WorkerFile:
        if revision == entry.revision:
            spec = entry.spec
        elif revision == entry.proved_revision and entry.proved_spec:
            spec = entry.proved_spec
        else:
            raise Unavailable(f"revision {revision} is no longer the function's: no worker of it can be started")
        proof = editions.proof_of(entry, revision)
        return WorkerFile(
            content=proof.content,
            seal=proof.seal,
            files=[file.name for file in proof.files],
            installation=self._installation,
            namespace=entry.namespace,
            name=entry.name,
            uid=entry.uid,
            store_id=entry.store_id,
            revision=revision,
            spec=spec_from_json(spec),
            store=self._store,
            model_root=self._model_root,
            gateway=self._gateway,
            removal_wait=self._removal_wait,
            batching=workerfile.batching_of(entry, revision),
        )


def _first(victims: Sequence[str], running: Sequence[str]) -> list[str]:
    """All that run, the named ones first in their order."""
    named = [name for name in victims if name in running]
    return named + [name for name in running if name not in named]


def _instance(i: control_pb2.Instance) -> Instance:
    return Instance(
        name=i.instance,
        function=f"{i.namespace}/{i.function}",
        uid=i.uid,
        revision=i.revision,
        started=i.started_us / 1e6,
        stopping=i.stopping,
        exited=i.exited,
        problem=i.problem if i.HasField("problem") else None,
    )
