"""The gateways' port for workers: the calls that steps make of other functions (`ctx.call`), and nothing else.

A port of its own, for who may dial it differs: callers come from where `networkPolicies.callers` lets them in, workers from wherever
functions are. Here a call counts only where its worker proves who it is, by the secret whose digest lies in the store under its function's
prefix: no other function's worker can write there. What it may call follows from that, and not from anything that the call says
(`dormouse_core.childcalls`). It then goes the relay's way, like any call that Envoy alone cannot send.

Errors are signed (`dormouse-by`), so that the worker can tell them from a connection that broke. What is not known yet, because the store
does not answer, is not signed: the worker asks again.
"""

import asyncio
import contextlib
import math
from typing import Any

import grpc
import grpc.aio
from dormouse_core import childcalls, headernames
from dormouse_core.clocks import Rising
from dormouse_core.errors import Code, DormouseError, Internal, InvalidArgument, Unavailable
from dormouse_core.seams import Clock, StoreError
from dormouse_kit import log
from dormouse_kit.grpc_options import MANY, server_options

from dormouse_gateway import metrics, naming
from dormouse_gateway.paths import INFER
from dormouse_gateway.relay.relaying import Relay, Request, refuse
from dormouse_gateway.serving.port import WINDOWS, name_of, where
from dormouse_gateway.serving.streaming import CODES
from dormouse_gateway.watching.reads import Reads
from dormouse_gateway.watching.table import Function, Table, Unreadable

SIGNED = ((headernames.BY, "gateway"),)
GOES_ON = (headernames.SESSION, headernames.TENANT, headernames.IDEMPOTENCY_KEY)


class Callers:
    """Which worker a call comes from."""

    def __init__(self, table: Table, reads: Reads) -> None:
        self._table = table
        self._reads = reads

    async def proved(self, claimed: str, secret: str) -> str:
        """namespace/name of the function whose worker `claimed` (namespace/name/worker) is. UNAUTHENTICATED: it is not that worker.
        Unavailable: the store does not say, or knows no such worker: one whose lease has ended is about to end, and its step is then run
        elsewhere; a refusal would be the step's own answer."""
        label, _, worker = claimed.rpartition("/")
        if not childcalls.is_label(label):
            raise DormouseError(f"call: {headernames.WORKER}: {claimed!r} found, namespace/name/worker is allowed", Code.UNAUTHENTICATED)
        if self._knows(self._table.function(label), worker, secret):
            return label
        try:  # it may have registered after what this gateway has heard
            read = await (self._reads.stranger(label) if self._table.function(label) is None else self._reads.function(label))
        except (StoreError, Unreadable) as away:
            raise Unavailable(f"whether {claimed} is a worker is not known: {away}") from None
        if self._knows(read.function, worker, secret):
            return label
        if read.function is None or worker not in read.function.workers:
            raise Unavailable(f"call: {headernames.WORKER}: {claimed!r} found, which the store does not know, or no longer")
        raise DormouseError(f"call: {headernames.WORKER}: {claimed!r} found, without its secret", Code.UNAUTHENTICATED)

    def _knows(self, function: Function | None, worker: str, secret: str) -> bool:
        found = None if function is None else function.workers.get(worker)
        return found is not None and childcalls.proves(found.calls, secret)


class WorkersPort(grpc.GenericRpcHandler):
    def __init__(self, relay: Relay, callers: Callers, clock: Clock, stamps: Rising, nonce: str, message_bytes: int) -> None:
        """`nonce`: of this agent's process, for the keys of calls."""
        self._relay = relay
        self._callers = callers
        self._clock = clock
        self._stamps = stamps
        self._nonce = nonce
        self._message_bytes = message_bytes
        self._number = 0

    def service(self, handler_call_details: Any) -> Any:
        if handler_call_details.method != INFER:
            return None  # UNIMPLEMENTED, by grpcio
        return grpc.stream_unary_rpc_method_handler(self._serve)

    async def _serve(self, _: Any, context: Any) -> bytes:
        left = context.time_remaining()
        deadline = math.inf if left is None else self._clock.monotonic() + left
        held = contextlib.ExitStack()
        signed: tuple[tuple[str, str], ...] = SIGNED
        try:
            told = await self._admitted(naming.single(context.invocation_metadata() or ()))
            message = await context.read()  # of who may call: nobody else's takes memory here
            if message is grpc.aio.EOF:
                raise InvalidArgument("message: the call ended without a whole one; a unary call carries one message")
            context.add_done_callback(lambda _: held.close())
            reply = await self._relay.call(Request(INFER, message, told, deadline), held)
        except Unknown as error:
            signed, reply = (), refuse(error)
        except DormouseError as error:
            reply = refuse(error)
        except asyncio.CancelledError:
            metrics.CALLS.labels("call", Code.CANCELLED.name).inc()
            raise
        except Exception as bug:  # a caller must get a status, and the others their answers
            log.warning("a call of a step failed in the relay", error=repr(bug), at=where(bug))
            reply = refuse(Internal("the gateway's relay failed; its log names the cause"))
        metrics.CALLS.labels("call", name_of(reply.code)).inc()
        if reply.code:
            await context.abort(CODES.get(reply.code, grpc.StatusCode.UNKNOWN), reply.details, signed)
        return reply.message

    async def _admitted(self, metadata: dict[str, str]) -> dict[str, str]:
        """What goes along with the call on its way. Raises why there is none."""
        worker = metadata.get(headernames.WORKER, "")
        try:
            own = await self._callers.proved(worker, metadata.get(headernames.PROOF, ""))
        except Unavailable as error:
            raise Unknown(error.message) from None
        path = childcalls.read(metadata.get(headernames.PATH, ""))
        if not path or path[-1] != own:
            raise InvalidArgument(f"{headernames.PATH}: {childcalls.written(path)!r} found, {own!r} must be its end")
        label = childcalls.target(metadata.get(headernames.FUNCTION), own.partition("/")[0])
        childcalls.check(path, label)
        stamp = self._stamps.next()
        self._number += 1
        life = f".{self._stamps.life}" if self._stamps.life else ""
        goes_on = {key: metadata[key] for key in GOES_ON if key in metadata}
        return {
            **goes_on,
            headernames.FUNCTION: label,
            headernames.PATH: childcalls.written(path),
            headernames.CALL: f"{stamp:016d}-g-{self._nonce}{life}-c{self._number:x}",
            headernames.CONNECTION: f"worker {own}",  # what one function's workers hold here counts together
            headernames.MAX_MESSAGE: str(self._message_bytes),
        }


class Unknown(Unavailable):
    """It is not known whether the call is to be answered: not the gateway's word, but its silence."""


def server(port: WorkersPort, *, message_bytes: int) -> grpc.aio.Server:
    made = grpc.aio.server(options=[*server_options(message_bytes=message_bytes, concurrent_streams=MANY), *WINDOWS])
    made.add_generic_rpc_handlers((port,))
    return made
