"""A worker's place in the store: the sessions of a stateful function, or the bare registration of a stateless one, behind one face."""

import asyncio
import pathlib
import secrets
from collections.abc import Callable

from dormouse_core import childcalls, lifetimes
from dormouse_core.clocks import TimeReading
from dormouse_core.workerfile import WorkerFile
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore, TlsFiles
from dormouse_proto import control_pb2

from dormouse_worker.process import memorylimit
from dormouse_worker.serving import proofs
from dormouse_worker.serving.loading import Loaded
from dormouse_worker.serving.used import UsageKeeper, Used
from dormouse_worker.sessions import Sessions, SessionSettings, WorkerRegistration
from dormouse_worker.transport.gateways import Gateways


class Membership:
    def __init__(self, file: WorkerFile, loaded: Loaded, *, worker: str, address: str, instance: str, time: TimeReading) -> None:
        access = file.store
        tls = TlsFiles(_path(access.ca), _path(access.cert), _path(access.key)) if access.ca or access.cert else None
        password = pathlib.Path(access.password_file) if access.password_file else access.password
        store = EtcdStore(access.endpoints, tls=tls, user=access.user, password=password)
        clock = SystemClock()
        self.sessions: Sessions | None = None
        spec = file.spec.sessions
        if spec is None:
            self._registration: WorkerRegistration | None = WorkerRegistration(
                file.function, store, clock, worker=worker, address=address, instance=instance, revision=file.revision, keys=file.keys
            )
        else:
            self._registration = None
            settings = SessionSettings(
                shards=spec.shards,
                state_version=loaded.state_version,
                accepts=frozenset(spec.accepts),
                ttl=spec.ttl.seconds,
                evict_after=spec.evict_after.seconds,
                step_limit=file.spec.timeouts.step.seconds,
                removal_wait=lifetimes.removal_wait(file.removal_wait, file.spec.timeouts.hold.seconds),
                max_count=spec.max_count,
                max_bytes=spec.max_bytes,
                memory_bytes=memorylimit.for_sessions(),
            )
            self.sessions = Sessions(
                file.function,
                settings,
                loaded.states,
                store,
                clock,
                loaded.engine,
                worker=worker,
                address=address,
                instance=instance,
                revision=file.revision,
                keys=file.keys,
                time=time,
            )
        self._store = store
        self._clock = clock
        self.used = Used()
        """What the service counts."""
        self._keeper = UsageKeeper(file.function, store, clock, file.keys, worker, lambda: self.used)
        self._keeping: asyncio.Task[None] | None = None
        self._file = file
        self._content, self._files = loaded.content, loaded.files
        part = self.sessions.registration if self.sessions is not None else self._registration
        assert part is not None
        store.on_rewound = part.forsake
        self.gateways: Gateways | None = None
        """The way there, for the calls that steps make; None: this worker makes none."""
        if file.gateway and loaded.handler is not None:
            secret = secrets.token_hex(32)
            part.proves(childcalls.shown(secret))
            self.gateways = loaded.handler.way = Gateways(file.gateway, f"{file.function.label}/{worker}", secret)

    @property
    def lost(self) -> asyncio.Event:
        return self._part.lost

    @property
    def registration(self) -> WorkerRegistration:
        found = self.sessions.registration if self.sessions is not None else self._registration
        assert found is not None
        return found

    @property
    def _part(self) -> Sessions | WorkerRegistration:
        part = self.sessions or self._registration
        assert part is not None
        return part

    def on_change(self, changed: Callable[[], None]) -> None:
        if self.sessions is not None:
            self.sessions.on_change = changed

    async def start(self) -> None:
        """ContentChanged: it must not serve. Unavailable: the store did not let it in."""
        await proofs.check(self._file, self._content, self._files, self._store, self._clock)
        await self._part.start()
        self._keeping = asyncio.create_task(self._keeper.run(), name="usage")

    async def drain(self) -> None:
        await self._part.drain()

    def no_taker(self) -> None:
        if self.sessions is not None:
            self.sessions.no_taker()

    def hear(self, limits: control_pb2.WorkerOrder.Limits) -> None:
        if self.sessions is not None:
            self.sessions.hear(limits)

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await self._keeper.write()  # before its entry goes: from then on nobody may
        await self._part.close()
        if self.gateways is not None:
            await self.gateways.close()
        await self._store.close()


def _path(text: str) -> pathlib.Path | None:
    return pathlib.Path(text) if text else None
