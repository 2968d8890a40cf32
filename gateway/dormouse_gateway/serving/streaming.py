"""`ModelStreamInfer` on the relay's port: gRPC on one side, the stream's state machine (`streams`) and `Relay.step` on the other.

A stream has one task that reads and one that writes, and one for each step that is under way: an idle stream has the first two and nothing
else, is no demand, and keeps no worker awake. Errors go into the stream, beside the replies, unless the metadata `triton_grpc_error: true`
asks for the first of them to end it as its status.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from dormouse_core import headernames
from dormouse_core.clocks import Rising, Skew
from dormouse_core.errors import DeadlineExceeded, DormouseError, Internal, ResourceExhausted, Unavailable
from dormouse_core.seams import Clock, Reply
from dormouse_core.shares import OpenStream
from dormouse_kit import log

from dormouse_gateway import metrics, naming
from dormouse_gateway.paths import INFER
from dormouse_gateway.relay.relaying import Relay, Request, refuse
from dormouse_gateway.serving import streams
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.serving.streams import Step
from dormouse_gateway.serving.unfinished import Place, Unfinished, announced

AS_STATUS = "triton_grpc_error"
STOPPING = "the gateway is stopping; open the stream again"
Count = Callable[[int], None]


class Streaming:
    """All streams of one agent. `nonce` is new for every process; `count` is told the code of every answer, and of every stream that has no
    room. `stamps`: of all its keys."""

    def __init__(
        self,
        relay: Relay,
        clock: Clock,
        nonce: str,
        count: Count,
        quotas: Quotas,
        *,
        default_namespace: str = "default",
        stamps: Rising | None = None,
    ) -> None:
        self._stamps = stamps or Rising(Skew(clock))
        self._relay = relay
        self._clock = clock
        self._nonce = nonce
        self._count = count
        self._default_namespace = default_namespace
        self._number = 0
        self._quotas = quotas
        self._unfinished = Unfinished(clock)
        self._open: set[Serving] = set()
        self._draining = False

    async def serve(self, messages: AsyncIterator[bytes], context: Any) -> None:
        """One stream, to its end. It reads and writes by `context`, which alone tells when a response is on its way."""
        self._number += 1
        left = context.time_remaining()
        deadline = math.inf if left is None else self._clock.monotonic() + left
        try:
            if self._draining:
                raise Unavailable(STOPPING)
            metadata = naming.single(context.invocation_metadata() or ())
            streams.check(metadata, self._stamps.next(), self._stamps.good)
        except DormouseError as error:
            end(context, refuse(error))
            return
        try:
            with self._quotas.taken("streams", metadata) as opened:
                await self._serve(metadata, context, deadline, opened)
        except ResourceExhausted as full:
            self._count(full.code)
            end(context, refuse(full))

    async def _serve(self, metadata: dict[str, str], context: Any, deadline: float, opened: OpenStream) -> None:
        maker = f"g-{self._nonce}.{self._stamps.life}" if self._stamps.life else f"g-{self._nonce}"
        stream = streams.Stream(metadata, f"{maker}-{self._number:x}", self._default_namespace)
        as_status = metadata.get(AS_STATUS, "").lower() == "true"
        connection, word = metadata.get(headernames.CONNECTION, ""), metadata.get(headernames.BEGINS, "")
        serving = Serving(
            stream,
            self._relay,
            self._clock,
            context,
            deadline,
            self._count,
            as_status,
            self._stamps,
            connection,
            word,
            self._unfinished,
            lambda label: self._quotas.named(opened, label),
        )
        opened.end = serving.interrupt
        self._open.add(serving)
        metrics.STREAMS.set(len(self._open))
        try:
            await serving.run()
        finally:
            self._open.discard(serving)
            metrics.STREAMS.set(len(self._open))

    def drain(self) -> None:
        """No new stream; those that are open answer what they have read and end."""
        self._draining = True
        for serving in self._open:
            serving.drain()


class Serving:
    """One stream."""

    def __init__(
        self,
        stream: streams.Stream,
        relay: Relay,
        clock: Clock,
        context: Any,
        deadline: float,
        count: Count,
        as_status: bool,
        stamps: Rising,
        connection: str,
        word: str,
        unfinished: Unfinished,
        named: Callable[[str], None],
    ) -> None:
        """`named` is told each function that a message names. It raises ResourceExhausted where the stream is to end."""
        self._named = named
        self._stream = stream
        self._word = word
        self._unfinished = unfinished
        self._place: Place | None = None  # of the message that is being read
        self._limit = asyncio.timeout(None)  # of the whole stream
        self._refusal: Reply | None = None  # what ends it
        self._connection = connection
        self._stamps = stamps
        self._relay = relay
        self._clock = clock
        self._context = context
        self._deadline = deadline
        self._count = count
        self._as_status = as_status
        self._wake = asyncio.Event()  # something is to be written, or the end may have come
        self._room = asyncio.Event()  # something was written
        self._steps: set[asyncio.Task[None]] = set()
        self._taken = 0  # bytes that count as held in the relay
        self._unread: dict[Step, contextlib.ExitStack] = {}  # what their answers count, until they are written
        self._ended = False  # nothing more is read
        self._finished = False
        self._draining = False
        self._writing = False
        self._bug: BaseException | None = None

    async def run(self) -> None:
        reader = asyncio.create_task(self._read())
        reader.add_done_callback(self._stopped)
        try:
            async with self._limit:
                reply = await self._write()
        except TimeoutError:
            if self._refusal is None:
                raise
            reply = self._refusal
            self._count(reply.code)
        finally:
            self._finished = True
            tasks = [reader, *self._steps]
            for task in tasks:
                task.cancel()
            self._whole()
            self._relay.bodies.give(self._taken, self._connection)
            await asyncio.gather(*tasks, return_exceptions=True)
            for unread in self._unread.values():
                unread.close()
        if reply is not None:
            end(self._context, reply)

    def drain(self) -> None:
        self._draining = True
        self._wake.set()

    async def _read(self) -> None:
        while not self._draining:
            while self._stream.full:
                self._room.clear()
                await self._room.wait()
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            size = announced(message, self._word)
            if size is not None:
                self._whole()
                try:
                    self._place = await self._unfinished.begin(size, self._connection, self.interrupt)
                except ResourceExhausted as full:
                    self.interrupt(full)
                    return
                continue
            self._whole()
            if self._writing:  # its end may have come together with what the caller sent on reading it: let it be seen first
                await asyncio.sleep(0)
            refusal: DormouseError | None = None
            try:
                self._relay.bodies.take(len(message), self._connection)
                self._taken += len(message)
            except ResourceExhausted as full:
                refusal = full
            step = self._stream.receive(message, self._stamps.next(), refusal, verified=self._stamps.good)
            if step is not None:
                try:
                    self._named(step.named.label)
                except ResourceExhausted as full:
                    self.interrupt(full)
                    return
            if refusal is None and (step is None or step.refusal is not None):  # answered without its message
                self._give(len(message))
            self._begin()
            self._wake.set()

    def _whole(self) -> None:
        """The message that was announced is here, or will not come."""
        if self._place is not None:
            self._unfinished.finish(self._place)
            self._place = None

    def interrupt(self, error: ResourceExhausted) -> None:
        """It, or its unfinished message, has no room (any more): the stream ends now, whatever else it does."""
        if self._finished:
            return
        self._refusal = refuse(error)
        if not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def _stopped(self, reader: "asyncio.Task[None]") -> None:
        self._ended = True
        if not reader.cancelled() and (bug := reader.exception()) is not None:
            self._bug = bug
        self._wake.set()

    async def _write(self) -> Reply | None:
        """Until the stream is over; with the status that ends it, None: OK."""
        stream = self._stream
        while True:
            out = stream.take()
            if out is None:
                if self._bug is not None:
                    log.warning("a stream failed", error=repr(self._bug))
                    return refuse(Internal("the gateway's relay failed; its log names the cause"))
                if stream.idle and (self._ended or self._draining):
                    return None if self._ended else refuse(Unavailable(STOPPING))
                self._wake.clear()
                await self._wake.wait()
                continue
            if out.last:
                self._count(0 if out.error is None else out.error.code)
            if out.error is not None and (self._as_status or self._over(out.error)):
                return out.error
            if out.response:
                self._writing = True
                await self._context.write(out.response)
                self._writing = False
            stream.written(out)
            if out.last and out.step is not None and (unread := self._unread.pop(out.step, None)) is not None:
                unread.close()
            if out.last and out.step is not None and out.step.refusal is None:
                self._give(out.step.size)
            self._room.set()
            self._begin()

    def _over(self, error: Reply) -> bool:
        """The stream's own deadline passed: its caller is about to say so himself, and is told the same by whichever comes first."""
        return error.code == DeadlineExceeded.code and self._clock.monotonic() >= self._deadline

    def _give(self, size: int) -> None:
        self._taken -= size
        self._relay.bodies.give(size, self._connection)

    def _begin(self) -> None:
        for step in self._stream.begin():
            task = asyncio.create_task(self._step(step))
            self._steps.add(task)
            task.add_done_callback(self._steps.discard)

    async def _step(self, step: Step) -> None:
        async def part(response: bytes) -> None:
            while self._stream.crowded:
                self._room.clear()
                await self._room.wait()
            self._stream.part(step, response)
            self._wake.set()

        try:
            request = Request(INFER, step.message, step.metadata, self._deadline)
            reply = await self._relay.step(request, step.named, step.timestamp, part)
        except Exception as bug:  # the caller must get an answer, and the other steps theirs
            log.warning("the relay failed", error=repr(bug))
            reply = refuse(Internal("the gateway's relay failed; its log names the cause"))
        unread = contextlib.ExitStack()
        try:
            unread.enter_context(self._relay.unread(len(reply.message), step.named, self._connection))
        except ResourceExhausted as full:  # it ran, and may be asked for again under its key
            self.interrupt(full)
            return
        self._unread[step] = unread
        self._stream.done(step, reply)
        self._begin()
        self._wake.set()


def end(context: Any, reply: Reply) -> None:
    context.set_code(CODES.get(reply.code, grpc.StatusCode.UNKNOWN))
    context.set_details(reply.details)


CODES = {status.value[0]: status for status in grpc.StatusCode}
