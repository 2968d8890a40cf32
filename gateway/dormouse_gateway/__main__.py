"""The agent: ``python -m dormouse_gateway``. Envoy's control plane and the relay, in one process beside it."""

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
from dormouse_core import addresses
from dormouse_core.clocks import Rising, Skew
from dormouse_core.keys import Keys
from dormouse_core.seams import Store
from dormouse_kit import log
from dormouse_kit.clock import SystemClock
from dormouse_kit.etcd import EtcdStore, TlsFiles
from dormouse_kit.families import wildcard
from dormouse_kit.grpc_options import server_options
from dormouse_kit.metrics import serve as serve_metrics

from dormouse_gateway import metrics
from dormouse_gateway.envoy import xds
from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.leader import leading
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.reach import Reach
from dormouse_gateway.relay import transport
from dormouse_gateway.relay.relaying import Relay
from dormouse_gateway.serving import calling
from dormouse_gateway.serving import port as serving
from dormouse_gateway.serving.health import Health
from dormouse_gateway.serving.methods import Methods
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.serving.streaming import Streaming
from dormouse_gateway.settings import UNIX, GatewaySettings, parse
from dormouse_gateway.watching.keeping import Watching
from dormouse_gateway.watching.reads import Reads
from dormouse_gateway.watching.routes import Routes
from dormouse_gateway.watching.table import Guard, Table


class Agent:
    """Everything of one agent, made but not started. `store` is opened and closed by the caller."""

    def __init__(self, settings: GatewaySettings, store: Store) -> None:
        self._settings = settings
        clock = SystemClock()
        self.skew = Skew(clock)
        keys = Keys(settings.installation)
        self.name = f"{settings.name}-{os.urandom(8).hex()}"
        guard = Guard(settings.workers)
        self.table = Table(keys, guard)
        reads = self._reads = Reads(keys, store, clock, guard)
        self.demand = Demand(clock)
        self._channels = transport.Channels(settings.max_message_bytes)
        sender = transport.GrpcTransport(self._channels)
        self.reach = Reach(clock, sender)
        self.relay = Relay(
            self.table,
            reads,
            clock,
            sender,
            self.demand,
            default_namespace=settings.default_namespace,
            max_held=settings.max_held,
            max_held_bytes=settings.max_held_bytes,
            reach=self.reach,
            time=self.skew,
        )
        namespace = settings.default_namespace
        off, waiting = (lambda: self.skew.off), self.relay.waiting
        self.methods = Methods(self.table, reads, clock, sender, default_namespace=namespace, clock_off=off, waiting=waiting)
        self.health = Health(self.methods)
        self.quotas = Quotas(self.table.sharing, settings.max_streams)
        self.streaming = Streaming(
            self.relay,
            clock,
            self.name.rpartition("-")[2],
            serving.count_streamed,
            self.quotas,
            default_namespace=settings.default_namespace,
            stamps=Rising(self.skew),
        )
        nonce = self.name.rpartition("-")[2]
        callers = calling.Callers(self.table, reads)
        self.calls = calling.WorkersPort(self.relay, callers, clock, Rising(self.skew), nonce, settings.max_message_bytes)
        self.snapshot = Snapshot()
        self.routes = Routes(self.table, self.snapshot, settings)
        self.xds = xds.Server(self.snapshot)
        self._watching = Watching(self.table, keys, store, clock, self._changed)
        self._registration = leading.GatewayRegistration(store, clock, keys, self.name, settings.relay, settings.node)
        reports = leading.Reports(
            self.name,
            self.demand,
            self.skew,
            lambda: self.table.complete,
            self.reach,
            self._believe,
            self.relay.starved.told,
        )
        self._leader = leading.LeaderStream(store, clock, keys, reports, self.skew, self._timed)
        self._clock = clock
        store.on_rewound = self._rewound

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop`; then lets the calls that it has end, at most `drain_seconds`."""
        settings = self._settings
        bytes_ = settings.max_message_bytes
        relay = serving.server(self.relay, self.methods, self.health, self.streaming, self.quotas, self._clock, message_bytes=bytes_)
        if settings.sockets:
            bind(relay, settings.relay)
        else:
            relay.add_insecure_port(settings.relay)
        await relay.start()
        calls = calling.server(self.calls, message_bytes=bytes_)
        if settings.calls.startswith(UNIX):
            bind(calls, settings.calls)
        elif settings.calls:
            host, port = addresses.parse(settings.calls, "calls")
            calls.add_insecure_port(addresses.joined(wildcard(host), port))
        await calls.start()
        control = grpc.aio.server(options=server_options())  # Envoy pings each second, with nothing new to hear for hours
        control.add_generic_rpc_handlers((self.xds.handlers(),))
        bind(control, settings.xds)
        await control.start()
        log.event("the agent is up", agent=self.name, relay=settings.relay, xds=settings.xds)
        loops = [
            asyncio.create_task(part, name=name)
            for name, part in (
                ("watching", self._watching.run()),
                ("registration", self._registration.run()),
                ("leader", self._leader.run()),
                ("upkeep", self._upkeep()),
            )
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopping, *loops], return_when=asyncio.FIRST_COMPLETED)
            for ended in done - {stopping}:
                ended.result()  # a loop that ends is a bug: its exception ends the agent, which is started again
        finally:
            stopping.cancel()
            log.event("the agent stops", held=sum(each.held for each in self.demand.report()))
            await self._registration.leave()
            self.streaming.drain()
            self.health.drain()
            await asyncio.gather(relay.stop(settings.drain_seconds), calls.stop(settings.drain_seconds))
            await control.stop(0)
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await self._channels.close()

    def _changed(self, labels: set[str]) -> None:
        self.routes.update(labels)
        self.relay.changed(labels)
        self.methods.changed()
        self.health.changed(labels)
        metrics.FUNCTIONS.set(len(self.table.labels()))

    def _believe(self, refused: frozenset[tuple[str, str]]) -> None:
        if changed := self.table.refuse(refused):
            self._changed(changed)

    def _timed(self) -> None:
        self.routes.correct(self.skew.correction_us())

    def _rewound(self, why: str) -> None:
        """Watches have ended with the connection, and list again by themselves."""
        self._reads.rewound()
        self._registration.rewound()

    async def _upkeep(self) -> None:
        while True:
            self._timed()
            self.health.look()
            metrics.WATCH_AGE.set(self._watching.age())
            await self._channels.prune()
            await self._clock.sleep(1.0)


def bind(server: grpc.aio.Server, address: str) -> None:
    """A Unix socket that only this user may open; one that a killed agent left behind is replaced."""
    path = Path(address.removeprefix("unix:"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    before = os.umask(0o077)
    try:
        server.add_insecure_port(address)
    finally:
        os.umask(before)


def open_store(settings: GatewaySettings) -> EtcdStore:
    files = [Path(text) if text else None for text in (settings.store_ca, settings.store_cert, settings.store_key)]
    tls = TlsFiles(*files) if any(files) else None
    password = Path(settings.store_password_file) if settings.store_password_file else ""
    return EtcdStore(settings.store, tls=tls, user=settings.store_user, password=password)


async def run(settings: GatewaySettings) -> None:
    store = open_store(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    served = serve_metrics(settings.metrics, host=settings.metrics_host) if settings.metrics else None
    try:
        await Agent(settings, store).run(stop)
    finally:
        await store.close()
        if served is not None:
            served.close()


def main(arguments: Sequence[str] | None = None) -> None:
    settings = parse(arguments, "python -m dormouse_gateway")
    log.setup("agent")
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
