"""The agent's place in the installation: its entry in the store, and its stream to whoever leads.

The entry is under a lease, so that the leader knows which agents it should hear from: an agent with an entry and no report is unknown, not
without demand. The stream carries demand each second, and at once when a function's first call begins to wait.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
from dormouse_core.clocks import Skew
from dormouse_core.keys import Keys
from dormouse_core.limits import LEASE_KEEPALIVE_SECONDS, LEASE_SECONDS
from dormouse_core.seams import Clock, Put, Store, StoreError, Txn, WatchBatch
from dormouse_kit import log
from dormouse_kit.following import follow
from dormouse_kit.grpc_options import channel_options
from dormouse_proto import control_pb2, control_pb2_grpc, state_pb2
from google.protobuf.message import DecodeError

from dormouse_gateway import metrics
from dormouse_gateway.leader.demand import Demand
from dormouse_gateway.leader.reach import Reach

REPORT_SECONDS = 1.0
FIRST_SECONDS = 0.05  # instead, until the clock is measured well: 8 reports at most
RETRY_SECONDS = 0.2
SILENCE_SECONDS = 5.0  # a leader that answers no report for so long is dialled anew


class GatewayRegistration:
    """Keeps ``gateways/{agent}`` under a lease."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, agent: str, address: str, node: str = "") -> None:
        self._store = store
        self._clock = clock
        self._put = (keys.gateway(agent), state_pb2.GatewayEntry(address=address, node=node).SerializeToString())
        self._lease = 0
        self._granted = 0  # the latest, also while it is not known whether the entry is there

    async def run(self) -> None:
        """Until cancelled. A lease that ended, or a store that is away, is no reason to stop: calls go on being served."""
        away = False
        while True:
            try:
                if not self._lease:
                    self._granted = await self._store.grant(LEASE_SECONDS)
                    await self._store.txn(Txn((), (Put(*self._put, lease=self._granted),)))
                    self._lease = self._granted
                elif not await self._store.keep_alive(self._lease):
                    log.event("the agent's lease ended; registering again")
                    self._lease = 0
                    continue
            except StoreError as error:
                if not away:
                    log.event("the agent's lease was not renewed", reason=str(error))
                away = True
                await self._clock.sleep(RETRY_SECONDS)  # twice before the lease ends, also where one that is lost takes a second
                continue
            away = False
            await self._clock.sleep(LEASE_KEEPALIVE_SECONDS)

    def rewound(self) -> None:
        """The store was restored to an earlier revision: the entry may be gone from it although the lease lives."""
        self._lease = 0

    async def leave(self) -> None:
        if self._granted:
            with contextlib.suppress(StoreError):  # then the lease runs out
                await self._store.revoke(self._granted)


class Reports:
    """What the leader is told, and when."""

    def __init__(
        self,
        agent: str,
        demand: Demand,
        skew: Skew,
        complete: Callable[[], bool],
        reach: Reach | None = None,
        believe: Callable[[frozenset[tuple[str, str]]], None] = lambda refused: None,
        starved: Callable[[frozenset[str]], None] = lambda instances: None,
    ) -> None:
        """At each of the leader's orders `believe(refused)` is told (worker, address) of every entry that it refuses, and
        `starved(instances)` whose containers the kernel lately ended for want of memory."""
        self._believe = believe
        self._starved = starved
        self._agent = agent
        self._demand = demand
        self._skew = skew
        self._complete = complete
        self._reach = reach
        self._soon = asyncio.Event()
        demand.on_first = self._soon.set

    def report(self) -> control_pb2.AgentReport:
        return control_pb2.AgentReport(
            agent=self._agent,
            sent_us=self._skew.mark(),
            complete=self._complete(),
            demand=self._demand.report(),
            offset_us=self._skew.offset_us(),
            reference_us=self._skew.reference_us(),
            reaches=() if self._reach is None else self._reach.report(),
        )

    def ordered(self, order: control_pb2.AgentOrder) -> None:
        """What the leader wants to know in a later report, and what it knows."""
        self._believe(frozenset((each.worker, each.address) for each in order.refused))
        self._starved(frozenset(order.starved))
        if self._reach is not None:
            self._reach.ask(order.tries)

    def soon(self) -> None:
        """One is due at once."""
        self._soon.set()

    def pause(self) -> float:
        """Seconds until the next one."""
        return REPORT_SECONDS if self._skew.settled else FIRST_SECONDS

    async def stream(self) -> AsyncIterator[control_pb2.AgentReport]:
        """Without end."""
        while True:
            self._soon.clear()
            yield self.report()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause()):
                    await self._soon.wait()


class LeaderStream:
    """Finds the leader by the key `leader`, and keeps a stream of reports to it."""

    def __init__(self, store: Store, clock: Clock, keys: Keys, reports: Reports, skew: Skew, timed: Callable[[], None]) -> None:
        """`timed` is called whenever the leader's time was heard."""
        self._skew = skew
        self._timed = timed
        self._store = store
        self._clock = clock
        self._key = keys.leader
        self._reports = reports
        self._address = ""
        self._changed = asyncio.Event()
        self._told = ""  # what was logged last: a leader that is away is dialled several times a second, and said once to be away

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._talk())

    async def _watch(self) -> None:
        def ended(why: StoreError) -> None:
            log.event("who leads is not known", reason=str(why))

        await follow(self._store, self._clock, self._key, read=self._read, heard=self._heard, ended=ended)

    async def _read(self) -> int:
        revision, found = await self._store.get([self._key])
        item = found.get(self._key)
        self._lead(b"" if item is None else item.value)
        return revision

    async def _heard(self, batch: WatchBatch) -> None:
        for event in batch.events:
            if event.key == self._key:
                self._lead(b"" if event.item is None else event.item.value)

    def _lead(self, value: bytes) -> None:
        try:
            address = state_pb2.Leader.FromString(value).address if value else ""
        except DecodeError:
            log.warning("the leader's entry cannot be read", bytes=len(value))
            address = ""
        if address != self._address:
            self._address = address
            self._changed.set()

    async def _talk(self) -> None:
        while True:
            self._changed.clear()
            address = self._address
            if not address:
                await self._changed.wait()
                continue
            talking = asyncio.create_task(self._report_to(address))
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([talking, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
                talking.cancel()
                await asyncio.wait([talking])
                if not talking.cancelled() and (bug := talking.exception()) is not None:
                    log.warning("the stream to the leader failed", raised=bug)
                metrics.LEADER.set(0)
            await self._clock.sleep(RETRY_SECONDS)

    async def _report_to(self, address: str) -> None:
        async with grpc.aio.insecure_channel(address, options=channel_options()) as channel:
            stub = control_pb2_grpc.CoordinatorStub(channel)
            self._skew.meet()
            orders = stub.Agent(self._reports.stream())
            try:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        order = await orders.read()
                    if order is grpc.aio.EOF:
                        return
                    metrics.LEADER.set(1)
                    self._told = ""
                    self._measure(order)
                    self._reports.ordered(order)
            except TimeoutError:
                self._tell("the leader is silent", leader=address)
            except grpc.aio.AioRpcError as error:
                self._tell("the stream to the leader broke", leader=address, code=error.code().name, reason=error.details() or "")

    def _tell(self, text: str, **fields: str) -> None:
        told = f"{text} {fields}"
        if told != self._told:
            self._told = told
            log.event(text, **fields)

    def _measure(self, order: control_pb2.AgentOrder) -> None:
        before = self._skew.off
        median_us = order.median_us if order.HasField("median_us") else None
        if self._skew.heard(order.echo_us, order.leader_us, order.reference_us, order.agreed, median_us):
            self._reports.soon()
        deviation = self._skew.deviation_us()
        metrics.CLOCK_DEVIATION.set(float("nan") if deviation is None else deviation / 1e6)
        if self._skew.off and not before:
            log.warning("this gateway is not ready until its clock is right", reason=self._skew.text())
        elif before and not self._skew.off:
            log.event("this gateway's clock is right again")
        self._timed()
