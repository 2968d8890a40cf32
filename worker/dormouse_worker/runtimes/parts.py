"""The responses that one streaming step makes: each is checked, encoded and sent as it comes, no faster than the caller reads.

A stateful step's are kept too, framed as they were sent, for its record: whoever repeats the call gets all of them or none. Their sum is
limited, since nothing can be thrown away before the step ends.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

from dormouse_core import limits
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError, ResourceExhausted
from dormouse_core.handlers import Declaration

from dormouse_worker.batches.replies import Encoder
from dormouse_worker.batches.requests import Request
from dormouse_worker.transport import streamed
from dormouse_worker.transport.streamed import StreamedCall

AHEAD = 8
"""Parts that a thread may make before the first of them is sent."""
LOOK = 0.05
"""Seconds after which a step that waits for its reader looks whether there is one."""


class PartsSender:
    def __init__(self, request: Request, declaration: Declaration, encoder: Encoder, monotonic: Callable[[], float], until: float) -> None:
        """`until`: monotonic; the step limit."""
        self._request = request
        self._declaration = declaration
        self._encoder = encoder
        self._monotonic = monotonic
        self._until = until
        self._keep = bool(declaration.states)
        self._kept: list[bytes] = []
        self._size = 0

    async def send_async(self, generator: AsyncGenerator[Any, None]) -> None:
        async with contextlib.aclosing(generator):
            async for yielded in generator:
                sent = self._send(self._framed(yielded))
                while sent is not None and not sent.done():
                    await asyncio.wait((sent,), timeout=LOOK)
                    self._look()

    def send(self, generator: Generator[Any, None, None], loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own."""
        room = threading.Semaphore(AHEAD)

        def give(framed: bytes) -> None:
            sent = self._send(framed)
            if sent is None:
                room.release()
            else:
                sent.add_done_callback(lambda _: room.release())

        with contextlib.closing(generator):
            for yielded in generator:
                framed = self._framed(yielded)
                while not room.acquire(timeout=LOOK):
                    self._look()
                loop.call_soon_threadsafe(give, framed)

    def reply(self) -> bytes:
        """What the record keeps; empty for a stateless function."""
        return b"".join(self._kept)

    def _framed(self, yielded: object) -> bytes:
        """One response. Raises what ends the step: it is wrong, too much, late, or for nobody."""
        self._look()
        outputs = self._declaration.check_outputs(yielded)
        ordered = [outputs[tensor.name] for tensor in self._declaration.outputs]
        framed = streamed.part(self._encoder.encode(self._request, ordered))
        if self._keep:
            self._size += len(framed)
            if self._size > limits.STREAMED_BYTES:
                raise ResourceExhausted(f"the responses of one step take more than {limits.STREAMED_BYTES} bytes together")
            self._kept.append(framed)
        return framed

    def _look(self) -> None:
        if self._request.gone:
            raise DormouseError("the caller went away while the step ran", Code.CANCELLED)
        if self._monotonic() > self._until:
            raise DeadlineExceeded("the step ran longer than its limit (timeouts.step)")

    def _send(self, framed: bytes) -> "asyncio.Future[None] | None":
        call = self._request.call
        return call.part(framed) if isinstance(call, StreamedCall) else None
