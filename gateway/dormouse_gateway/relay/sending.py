"""How a call goes on to a worker: its metadata, and the method. A function whose handler streams takes `ModelStreamInfer` with one message,
every other `ModelInfer` (rule *streamed-parts*).

Which of the two it is, the proved revision's metadata says; a worker of another revision corrects it: one that streams refuses the unary
call, before it ran, with `dormouse-decoupled`, and one that does not answers a stream with one part.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dormouse_core import headernames
from dormouse_core.clearing import CLEAR
from dormouse_core.errors import Aborted, DormouseError, Unavailable
from dormouse_core.seams import Part, Reply, Transport

from dormouse_gateway.paths import INFER, STREAM
from dormouse_gateway.watching.table import Function

SIGNED = (headernames.BY, headernames.AGAIN)
PASSED_ON = (
    headernames.SESSION,
    headernames.TENANT,
    headernames.IDEMPOTENCY_KEY,
    headernames.CALL,
    headernames.MAX_MESSAGE,
    headernames.PATH,
)
OWN = ("dormouse-", "x-envoy-", "x-forwarded-", "grpc-", ":")
HOP = frozenset({"te", "content-type", "user-agent", "content-length", "host", "connection"})


@dataclass(slots=True)
class PartsTaker:
    """A caller that takes an answer in parts: a message of a stream."""

    take: Part
    decoupled: bool = False
    """The function streams, as far as is known."""
    begun: bool = False
    """A part has gone to the caller: the call is not sent again, or the caller would get the first parts twice."""

    async def __call__(self, message: bytes) -> None:
        self.begun = True
        await self.take(message)


async def carry(
    transport: Transport, address: str, message: bytes, metadata: Mapping[str, str], parts: PartsTaker | None, timeout: float | None
) -> Reply:
    if parts is None or not parts.decoupled:
        reply = await transport.call(address, INFER, message, metadata, timeout=timeout)
        if parts is None or not reply.code or headernames.DECOUPLED not in reply.metadata:
            return reply
        parts.decoupled = True
    return await transport.stream(address, STREAM, message, metadata, parts, timeout=timeout)


async def clear(transport: Transport, address: str, metadata: Mapping[str, str], timeout: float | None) -> Reply:
    """Asks a worker to run nothing else for a moment (`dormouse_core.clearing`)."""
    return await transport.call(address, CLEAR, b"", metadata, timeout=timeout)


def heard(reply: Reply) -> bool:
    """It is the worker's word: an answer, or an error that it signed."""
    return reply.code == 0 or any(key in reply.metadata for key in SIGNED)


def interrupted(reply: Reply) -> DormouseError:
    """What a caller is told that had parts already when the worker refused (it will never commit) or broke."""
    if reply.again:
        return Unavailable(f"the step was given up after a part of its reply was sent; it is not committed, send it again: {reply.details}")
    return Aborted(f"the worker was lost after a part of the reply was sent; whether the step is committed is not known: {reply.details}")


def outgoing(metadata: Mapping[str, str], function: Function) -> dict[str, str]:
    """What goes on to a worker: the caller's metadata, and this gateway's own in place of whatever came of it."""
    out = {key: value for key, value in metadata.items() if key in PASSED_ON or (not key.startswith(OWN) and key not in HOP)}
    out[headernames.FUNCTION] = function.label
    out[headernames.UID] = function.entry.uid
    out[headernames.REV] = str(function.rev)
    return out
