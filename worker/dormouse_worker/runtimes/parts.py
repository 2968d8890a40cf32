"""The responses that one streaming step makes: each is checked, encoded and sent as it comes.

A stateful step's are kept too, framed as they were sent, for its record: whoever repeats the call gets all of them or none. Their sum is
limited, since nothing can be thrown away before the step ends.
"""

from collections.abc import Callable

from dormouse_core import limits
from dormouse_core.errors import Code, DeadlineExceeded, DormouseError, ResourceExhausted
from dormouse_core.handlers import Declaration

from dormouse_worker import streamed
from dormouse_worker.replies import Encoder
from dormouse_worker.requests import Request


class Parts:
    def __init__(self, request: Request, declaration: Declaration, encoder: Encoder, send: Callable[[bytes], object], until: float) -> None:
        """`send` takes a framed part, wherever `add` is called. `until`: monotonic; the step limit."""
        self._request = request
        self._declaration = declaration
        self._encoder = encoder
        self._send = send
        self._until = until
        self._keep = bool(declaration.states)
        self._kept: list[bytes] = []
        self._size = 0

    def add(self, yielded: object, now: float) -> None:
        """One response. Raises what ends the step: it is wrong, too much, late, or for nobody."""
        if self._request.gone:
            raise DormouseError("the caller went away while the step ran", Code.CANCELLED)
        if now > self._until:
            raise DeadlineExceeded("the step ran longer than its limit (timeouts.step)")
        outputs = self._declaration.check_outputs(yielded)
        ordered = [outputs[tensor.name] for tensor in self._declaration.outputs]
        framed = streamed.part(self._encoder.encode(self._request, ordered))
        if self._keep:
            self._size += len(framed)
            if self._size > limits.STREAMED_BYTES:
                raise ResourceExhausted(f"the responses of one step take more than {limits.STREAMED_BYTES} bytes together")
            self._kept.append(framed)
        self._send(framed)

    def reply(self) -> bytes:
        """What the record keeps; empty for a stateless function."""
        return b"".join(self._kept)
