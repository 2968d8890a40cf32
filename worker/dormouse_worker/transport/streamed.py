"""One `ModelStreamInfer` of the relay: one message, answered in parts (rule *streamed-parts*).

It is a call like any other until it is answered. Parts leave as the handler makes them and are provisional; the status OK at the end says
that the step is committed. Off the hot path: no bridge adds the status, so that trailers do.

What a record keeps of such a reply are its framed parts, as they were sent. A step that is repeated gets all of them again.
"""

import asyncio

from dormouse_core import headernames, streamed
from dormouse_core.errors import DormouseError

from dormouse_worker.transport import frames
from dormouse_worker.transport.asgi import Call, Metadata, Receive, Send, Transport, error_headers

FRAMED = b"\0"  # how kept parts begin; no ModelInferResponse can
_BODY = "http.response.body"
_GRPC = (b"content-type", b"application/grpc")
_DECOUPLED = (headernames.DECOUPLED.encode(), b"1")


def part(reply: bytes) -> bytes:
    """An encoded ModelInferResponse as a framed part."""
    return frames.frame(streamed.response(reply, final=False))


def unsent(reply: bytes) -> bytes:
    """What a stream is still to be sent of a kept reply, or of one by a handler that does not stream."""
    return reply if not reply or reply.startswith(FRAMED) else part(reply)


class StreamedCall(Call):
    __slots__ = ("begun",)

    streams = True

    def __init__(self, transport: Transport, headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> None:
        super().__init__(transport, headers, receive, send)
        self.begun = False

    def part(self, framed: bytes) -> "asyncio.Future[None] | None":
        """Sends one part, on the event loop. Done when Envoy wants more: a reader that is slow keeps it waiting. None: nobody reads."""
        if self.gone:
            return None
        self._begin()
        self.sent_bytes += len(framed)
        try:
            sent: asyncio.Future[None] = self._send({"type": _BODY, "body": framed, "more_body": True})
        except Exception:  # pyvoy's own ClientDisconnectedError, which it does not export
            self.transport.leave(self)
            return None
        sent.add_done_callback(self._sent)
        return sent

    def _sent(self, sent: "asyncio.Future[None]") -> None:
        if sent.cancelled() or sent.exception() is not None:
            self.transport.leave(self)

    def answer(self, framed: bytes, metadata: Metadata) -> None:
        """The end. `framed`: parts that were not sent yet."""
        self._begin()
        if framed:
            self._put({"type": _BODY, "body": framed, "more_body": True})
        self._end([*(metadata or ()), (b"grpc-status", b"0")])

    def refuse(self, error: DormouseError) -> None:
        headers = error_headers(error, _GRPC[1])
        if self.begun:
            self._end(headers[1:])
        else:
            self._put({"type": "http.response.start", "status": 200, "headers": headers}, {"type": _BODY})

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._put({"type": "http.response.start", "status": 200, "headers": [_GRPC, _DECOUPLED], "trailers": True})

    def _end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        self._put(
            {"type": _BODY, "body": b"", "more_body": False},
            {"type": "http.response.trailers", "headers": trailers, "more_trailers": False},
        )
