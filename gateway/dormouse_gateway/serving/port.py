"""The relay's port: gRPC frames on one side, `Relay` and `Methods` on the other. Bytes pass through unparsed; grpcio
has taken compression off.

Only Envoy dials it. Its limits are ours, not grpcio's defaults: 3,000 calls that arrive at once for a sleeping
function are held, not refused.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from dormouse_core import addresses, headernames, limits
from dormouse_core.errors import Code, DormouseError, FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from dormouse_core.seams import Clock, Reply
from dormouse_core.shares import OpenStream
from dormouse_kit import log
from dormouse_kit.grpc_options import MANY, server_options

from dormouse_gateway import metrics, naming
from dormouse_gateway.paths import INFER, STREAM, UNARY, WATCH
from dormouse_gateway.relay.relaying import Relay, Request, refuse
from dormouse_gateway.serving import reflection, unfinished
from dormouse_gateway.serving.health import Health
from dormouse_gateway.serving.methods import Methods, unimplemented
from dormouse_gateway.serving.quotas import Quotas
from dormouse_gateway.serving.streaming import CODES, Streaming

# What a stream may send before anybody reads it. gRPC's library would let it grow with the connection's bandwidth, to many MiB, while the
# relay does not read because there is no room for the message (`unfinished`). A message that is read gets a window of its size.
WINDOWS = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", limits.STREAM_WINDOW_BYTES)]
Streamed = Callable[[AsyncIterator[bytes], Any], AsyncIterator[bytes]]
Named = Callable[[AsyncIterator[bytes], Callable[[str], None]], AsyncGenerator[bytes]]
"""A stream that tells which functions it names."""


def server(
    relay: Relay, methods: Methods, health: Health, streaming: Streaming, quotas: Quotas, clock: Clock, *, message_bytes: int
) -> grpc.aio.Server:
    options = [*server_options(message_bytes=message_bytes, concurrent_streams=MANY), *WINDOWS]
    made = grpc.aio.server(options=options)
    made.add_generic_rpc_handlers((Handler(relay, methods, health, streaming, quotas, clock),))
    return made


class Handler(grpc.GenericRpcHandler):
    """Every method of every service."""

    def __init__(self, relay: Relay, methods: Methods, health: Health, streaming: Streaming, quotas: Quotas, clock: Clock) -> None:
        self._relay = relay
        self._streaming = streaming
        self._methods = methods
        self._health = health
        self._clock = clock
        self._quotas = quotas

    def service(self, handler_call_details: Any) -> Any:
        method: str = handler_call_details.method
        if addresses.came_back(dict(handler_call_details.invocation_metadata or ())):
            return grpc.stream_unary_rpc_method_handler(came_back)
        if method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self._streaming.serve)
        if method == WATCH:
            return grpc.stream_stream_rpc_method_handler(answered(WATCH, self._within("watches", self._health.watch)))
        if method in reflection.METHODS:
            return grpc.stream_stream_rpc_method_handler(answered(method, self._within("reflections", reflect)))
        # As a stream of one message: grpcio never answers a unary call that ends without its message.
        return grpc.stream_unary_rpc_method_handler(self._unary(method))

    def _within(self, kind: str, streamed: Named) -> Streamed:
        """The same stream, where there is room for one more of the kind; until its place goes to another."""

        async def serve(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            metadata = naming.single(context.invocation_metadata() or ())
            with self._quotas.taken(kind, metadata) as opened:
                small = unfinished.small(messages, metadata.get(headernames.BEGINS, ""))
                async for message in lasting(streamed(small, lambda label: self._quotas.named(opened, label)), opened):
                    yield message

        return serve

    def _unary(self, method: str) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def serve(_: Any, context: Any) -> bytes:
            left = context.time_remaining()
            deadline = math.inf if left is None else self._clock.monotonic() + left
            held = contextlib.ExitStack()
            try:
                if method not in UNARY:
                    raise unimplemented(method)  # unread: Envoy holds only the messages of those that it knows until they are whole
                message = await context.read()
                if message is grpc.aio.EOF:
                    raise InvalidArgument("message: the call ended without a whole one; a unary call carries one message")
                metadata = naming.single(context.invocation_metadata() or ())
                request = Request(method, message, metadata, deadline, attempt(metadata))
                if method == INFER:
                    context.add_done_callback(lambda _: held.close())  # gRPC's library holds the answer until its caller has read it
                    reply = await self._relay.call(request, held)
                else:
                    reply = await self._methods.call(request)
            except DormouseError as error:
                reply = refuse(error)
            except asyncio.CancelledError:
                metrics.CALLS.labels(series(method), Code.CANCELLED.name).inc()
                raise
            except Exception as bug:  # a caller must get a status, and the others their answers
                log.warning("the relay failed", method=method, error=repr(bug), at=where(bug))
                reply = refuse(Internal("the gateway's relay failed; its log names the cause"))
            metrics.CALLS.labels(series(method), name_of(reply.code)).inc()
            return await finish(reply, context)

        return serve


async def came_back(_: Any, context: Any) -> bytes:
    return await finish(refuse(FailedPrecondition(addresses.CAME_BACK)), context)


async def reflect(messages: AsyncIterator[bytes], named: Callable[[str], None]) -> AsyncGenerator[bytes]:
    async for message in messages:
        yield reflection.answer(message)


async def lasting(stream: AsyncGenerator[bytes], opened: OpenStream) -> AsyncIterator[bytes]:
    """The same, until its place goes to another: ResourceExhausted."""
    lost: ResourceExhausted | None = None
    waiting: asyncio.Task[bytes | None] | None = None
    serving = asyncio.current_task()

    def end(error: ResourceExhausted) -> None:
        nonlocal lost
        lost = error
        if waiting is not None and not waiting.done():
            waiting.cancel()
        elif serving is not None:
            serving.cancel()  # it writes to who does not read

    async def following() -> bytes | None:
        return await anext(stream, None)

    opened.end = end
    async with contextlib.aclosing(stream):
        while lost is None:
            waiting = asyncio.create_task(following())
            try:
                message = await waiting
            except asyncio.CancelledError:
                if lost is None:
                    raise
                break
            if message is None:
                return
            yield message
    raise lost


def answered(method: str, streamed: Streamed) -> Streamed:
    """A stream that ends as a call does: counted by its code, an error as its status."""

    async def serve(messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        code = Code.CANCELLED
        try:
            async for message in streamed(messages, context):
                yield message
            code = Code.OK
        except DormouseError as error:
            code = error.code
            await finish(refuse(error), context)
        finally:
            metrics.CALLS.labels(series(method), code.name).inc()

    return serve


def attempt(metadata: dict[str, str]) -> int:
    """Envoy's count of its tries of this call."""
    text = metadata.get("x-envoy-attempt-count", "1")
    return int(text) if text.isascii() and text.isdigit() else 1


def series(method: str) -> str:
    """A label: the method's name if it is one of ours, so that callers cannot make series without end."""
    known = method in UNARY or method in (STREAM, WATCH) or method in reflection.METHODS
    return method.rpartition("/")[2] if known else "other"


def count_streamed(code: int) -> None:
    metrics.CALLS.labels(series(STREAM), name_of(code)).inc()


def name_of(code: int) -> str:
    return CODES[code].name if code in CODES else str(code)


async def finish(reply: Reply, context: Any) -> bytes:
    """The reply's status and metadata into the call. A refusal is trailers only, so that every client shows its code and text: with
    `set_code` grpcio would send the empty message that is returned, too."""
    step = ((headernames.STEP, reply.metadata[headernames.STEP]),) if headernames.STEP in reply.metadata else ()
    if reply.code:
        await context.abort(CODES.get(reply.code, grpc.StatusCode.UNKNOWN), reply.details, step)
    if step:
        await context.send_initial_metadata(step)
    return reply.message


def where(bug: BaseException) -> str:
    trace = bug.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
