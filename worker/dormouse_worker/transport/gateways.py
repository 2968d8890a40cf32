"""A worker's way to the gateways, for calls that its steps make (`ctx.call`).

The answer is whole or an error that the gateway has signed. An error without its signature is the connection's: a gateway went away, or is
not there yet. What became of the call is not known then, and need not be: it is sent again under its key until its time is over, and the
gateway that takes it then asks the same worker, or reads what came of it.
"""

import asyncio
import time
from collections.abc import Callable, Mapping

import grpc
import grpc.aio
from dormouse_core import headernames, limits
from dormouse_core.backoff import Backoff
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError
from dormouse_kit.grpc_options import channel_options

INFER = "/inference.GRPCInferenceService/ModelInfer"
PAUSE = Backoff(0.02, 0.5)
# Codes that grpcio gives to a call whose connection could not be made, or ended (gRPC over HTTP/2, "HTTP2 Transport Mapping").
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.CANCELLED})


class Gateways:
    """`address`: their port for workers, host:port or unix:PATH; `worker`: namespace/name/worker; `secret`: by which they know it."""

    def __init__(self, address: str, worker: str, secret: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._address = address
        self._own = {headernames.WORKER: worker, headernames.PROOF: secret}
        self._monotonic = monotonic
        self._channel: grpc.aio.Channel | None = None

    async def infer(self, message: bytes, metadata: Mapping[str, str], until: float) -> bytes:
        """The answer to one ModelInfer. `until`: monotonic seconds. Cancelling it cancels the call."""
        if self._channel is None:  # the first call of a worker whose handler may make none
            self._channel = grpc.aio.insecure_channel(self._address, options=channel_options(message_bytes=limits.MESSAGE_BYTES_MAX))
        told = tuple({**metadata, **self._own}.items())
        failures = 0
        why = ""
        while (left := until - self._monotonic()) > 0:
            unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(INFER)
            call = unary(message, metadata=told, timeout=left)
            try:
                return await call
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not _signed(error):
                    break
                if error.code() not in BROKEN or _signed(error):
                    raise DormouseError(error.details() or error.code().name, Code(error.code().value[0])) from None
                why = f"; the gateway at {self._address} did not answer: {error.details()}"
            finally:
                call.cancel()  # nothing once it is done; else our own cancellation must reach the gateway
            failures += 1
            await asyncio.sleep(min(PAUSE.after(failures), max(0.0, until - self._monotonic())))
        raise DeadlineExceeded(f"the step's deadline, or the call's own timeout, passed before it was answered{why}")

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


def _signed(error: grpc.aio.AioRpcError) -> bool:
    given = [*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())]
    return any(key == headernames.BY for key, _ in given)
