"""Sessions begun and ended as fast as the machine can, and what the store looks like meanwhile."""

import asyncio
import threading
import time
import urllib.request
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np
from dormouse_core import lifetimes, records
from dormouse_core.keys import Keys
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import inference_pb2, inference_pb2_grpc

LEAST = 100  # sessions that end, however slow the machine is
FIRST = 10_000_000  # the number of a caller's first session: its own number times this


class Store:
    """An etcd as an outsider sees it."""

    def __init__(self, endpoint: str, keys: Keys) -> None:
        self.endpoint = endpoint
        self._prefix = f"{keys.root}data/"

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://{self.endpoint}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + " "))

    def in_use(self) -> int:
        return int(self.metric("etcd_mvcc_db_total_size_in_use_in_bytes"))

    def glances(self) -> list[records.Glance]:
        """Every function's sessions, page by page."""
        return asyncio.run(self._glances())

    async def _glances(self) -> list[records.Glance]:
        store = EtcdStore([self.endpoint])
        found: list[records.Glance] = []
        start = ""
        try:
            while True:
                page = await store.list(self._prefix, start=start, limit=2000)
                found += [records.glance(item.value) for item in page.items if "/state/" in item.key]
                if not page.more:
                    return found
                start = page.items[-1].key
        finally:
            await store.close()


@dataclass(frozen=True)
class Sample:
    seconds: float
    begun: int
    records: int
    in_use: int


@dataclass
class Traffic:
    """`wait`: the installation's removal wait, in seconds. `overdue`: the longest that a record was seen to lie there after it was due, and
    when. Its age would say less: a call that was held, for a worker that starts, is old before its step runs."""

    gateway: str
    function: str
    store: Store
    wait: float
    begun: int = 0
    ended: int = 0
    refusals: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    overdue: tuple[float, float] = (0.0, 0.0)

    def within(self, sample: Sample, seconds: float) -> int:
        """How many sessions began in the last `seconds` before it."""
        before = (earlier.begun for earlier in reversed(self.samples) if earlier.seconds <= sample.seconds - seconds)
        return sample.begun - next(before, 0)

    def bytes_each(self, life: float, since: float, until: float) -> float:
        """Bytes in use for each session that began within its `life`, on the average over a span of time. So it does not follow from the
        rate, which is the machine's."""
        found = [s.in_use / max(self.within(s, life), 1) for s in self.samples if since < s.seconds <= until]
        return sum(found) / len(found)

    def play(self, seconds: float, callers: int) -> None:
        """From the moment in which the function is awake."""
        asyncio.run(self._play(seconds, callers))

    async def _play(self, seconds: float, callers: int) -> None:
        async with grpc.aio.insecure_channel(self.gateway) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            await self._step(stub, callers * FIRST, start=True, end=True)
            began, stop = time.monotonic(), threading.Event()
            looking = threading.Thread(target=self._look, args=(began, stop))
            looking.start()
            try:
                await asyncio.gather(*(self._caller(stub, number, began + seconds) for number in range(callers)))
            finally:
                stop.set()
                await asyncio.to_thread(looking.join, 30)

    def _look(self, began: float, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            seconds, now_us = time.monotonic() - began, int(time.time() * 1e6)  # before it is read, which takes a while
            glances = self.store.glances()
            late = max((now_us - lifetimes.due_us(glance, int(self.wait * 1e6)) for glance in glances), default=0) / 1e6
            self.overdue = max(self.overdue, (late, seconds))
            self.samples.append(Sample(seconds, self.begun, len(glances), self.store.in_use()))

    async def _caller(self, stub: inference_pb2_grpc.GRPCInferenceServiceStub, number: int, until: float) -> None:
        n = 0
        while time.monotonic() < until or (self.ended <= LEAST and time.monotonic() < until + 60):
            n += 1
            session = number * FIRST + n
            if await self._step(stub, session, start=True, end=False):
                self.begun += 1
                if n % 2 and await self._step(stub, session, start=False, end=True):
                    self.ended += 1

    async def _step(self, stub: inference_pb2_grpc.GRPCInferenceServiceStub, session: int, *, start: bool, end: bool) -> bool:
        request = inference_pb2.ModelInferRequest(model_name=self.function)
        request.inputs.add(name="x", datatype="FP32", shape=[1, 1])
        request.raw_input_contents.append(np.ones(1, np.float32).tobytes())
        request.parameters["sequence_id"].int64_param = session
        request.parameters["sequence_start"].bool_param = start
        request.parameters["sequence_end"].bool_param = end
        try:
            await stub.ModelInfer(request, timeout=60)
        except grpc.aio.AioRpcError as error:
            self.refusals.append(f"{error.code().name}: {error.details()}")
            return False
        return True
