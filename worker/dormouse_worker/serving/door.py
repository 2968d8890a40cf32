"""A worker's door: closed while the worker is cleared for one call, and while that call runs (`dormouse_core.clearing`).

Calls that come meanwhile wait before anything of them is decoded, in the order in which they came; sessions hear of them when the door is
open again. They count as active, keep their deadlines, and go when their callers go. Alarms, which nobody calls, are not begun while it is
not `open`.
"""

import asyncio
import math
from collections.abc import Callable

from dormouse_core.clearing import Clearing
from dormouse_core.errors import Again, Unavailable

from dormouse_worker.transport.asgi import Call


class Door:
    """`begin`: what is done with a call that has waited. `active`: the calls that arrived and are not over. `quiet`: no model or handler
    runs, also for nobody who still waits."""

    def __init__(
        self, begin: Callable[[Call], None], active: Callable[[], int], quiet: Callable[[], bool], monotonic: Callable[[], float]
    ) -> None:
        self._begin = begin
        self._active = active
        self._quiet = quiet
        self._monotonic = monotonic
        self._clearing: Clearing[Call] = Clearing()
        self._waiting: dict[Call, None] = {}
        self._inside: Call | None = None  # the call for which it was cleared
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self.on_open: Callable[[], None] = _nothing
        """Called where it may have become `open`."""

    @property
    def open(self) -> bool:
        """What comes is begun at once."""
        return not (self._clearing.closed or self._waiting)

    @property
    def idle(self) -> bool:
        """It is open, nobody wants it closed, and nobody waits."""
        return self._clearing.idle and not self._waiting

    @property
    def asking(self) -> int:
        return self._clearing.asking

    def ask(self, call: Call, key: str) -> None:
        """To be cleared for the call `key`; `call` is refused when it is, or cannot be."""
        self._clearing.ask(call, key, self._monotonic())
        self.look_soon()

    def enter(self, call: Call, key: str) -> None:
        """Unavailable: it is not clear for this one."""
        if not self._clearing.enter(key, self._monotonic()):
            raise Unavailable("this worker is not clear for the call any more", Again.UNCLEAR)
        self._inside = call

    def keeps_out(self, call: Call) -> bool:
        """Whether the call waits here; it is begun later."""
        if call is self._inside or self.open:
            return False
        self._waiting[call] = None
        return True

    def gone(self, call: Call) -> None:
        """A call is over, however."""
        self._waiting.pop(call, None)
        if call.clears:
            self._clearing.leave(call, self._monotonic())
        elif call is self._inside:
            self._inside = None
            self._clearing.left(self._monotonic())
        self.look_soon()
        if self.open:
            self.on_open()

    def look_soon(self) -> None:
        """Something has ended."""
        if not (self.idle or self._looking):
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        clearing, now = self._clearing, self._monotonic()
        quiet = self._active() == len(self._waiting) + clearing.asking and self._quiet()
        for call, cleared in clearing.look(now, quiet):
            if cleared:
                call.transport.refuse(call, Unavailable("this worker is clear for the call", Again.CLEARED))
            elif cleared is None:
                call.transport.refuse(call, Unavailable("this worker was not closed for the call: others were before it", Again.UNTRIED))
            else:
                call.transport.refuse(call, Unavailable("what runs in this worker has not ended in time", Again.UNCLEAR))
        if not clearing.closed:
            waiting, self._waiting = list(self._waiting), {}
            for call in waiting:
                self._begin(call)
        if self.open:
            self.on_open()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := clearing.next_look()) < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self.look_soon)


def _nothing() -> None: ...
