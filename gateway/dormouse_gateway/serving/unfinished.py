"""Room for the messages of streams that have begun and are not whole.

Their bytes lie in gRPC's library, which tells nobody of them. So Envoy announces each large message in front of it (messages.lua), and the
relay reads on only when there is room for it: until then gRPC's window keeps all but 64 KiB of it out.

While there is room a message may take as long as it likes. Where room is short in all, the next one waits until the oldest is a second
old, and takes its place: that stream ends, and is told why. Where a connection has its share, the next one is refused; to wait would not
do, since what waits takes the connection's window from what is under way. Only what is half a minute old makes room for it.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

from dormouse_core.errors import ResourceExhausted
from dormouse_core.limits import (
    MESSAGE_LARGE_BYTES,
    MESSAGE_STALL_SECONDS,
    PRESSED_STALL_SECONDS,
    UNFINISHED_BYTES,
    UNFINISHED_CONNECTION_BYTES,
)
from dormouse_core.seams import Clock

ENDED = "the stream's message was not whole after {:.0f} s, and others need the gateway's room for it; send it again"


def announced(message: bytes, word: str) -> int | None:
    """The size of the message that comes next, where `message` is Envoy's announcement of it. `word` '': nothing is announced."""
    mark = b"\0" + word.encode()
    if not word or not message.startswith(mark):
        return None
    size = message[len(mark) :]
    return int(size) if size.isdigit() else None


async def small(messages: AsyncIterator[bytes], word: str) -> AsyncIterator[bytes]:
    """The messages of a stream that has no large ones. ResourceExhausted: one is announced; it is not read."""
    async for message in messages:
        size = announced(message, word)
        if size is not None:
            raise ResourceExhausted(f"a message of {size} bytes found, at most {MESSAGE_LARGE_BYTES - 1} are allowed for this method")
        yield message


class Place:
    """One message's room. `end(error)` is called, once, when it is taken away."""

    __slots__ = ("connection", "end", "since", "size")

    def __init__(self, size: int, connection: str, since: float, end: Callable[[ResourceExhausted], None]) -> None:
        self.size, self.connection, self.since, self.end = size, connection, since, end


class Unfinished:
    def __init__(self, clock: Clock, limit: int = UNFINISHED_BYTES, share: int = UNFINISHED_CONNECTION_BYTES) -> None:
        """`limit`: bytes of all; `share`: of one connection. A single message always has room."""
        self._clock = clock
        self._limit = limit
        self._share = share
        self._of: Counter[str] = Counter()
        self._places: dict[Place, None] = {}  # the oldest first
        self._freed = asyncio.Event()
        self.bytes = 0

    async def begin(self, size: int, connection: str, end: Callable[[ResourceExhausted], None]) -> Place:
        """Waits until there is room. ResourceExhausted: the connection has its share."""
        while True:
            now = self._clock.monotonic()
            if self._of[connection] and self._of[connection] + size > self._share:
                oldest = next(place for place in self._places if place.connection == connection)
                if now - oldest.since < MESSAGE_STALL_SECONDS:
                    text = (
                        f"{self._of[connection]} bytes of unfinished messages of this connection found, at most {self._share} are allowed"
                    )
                    raise ResourceExhausted(f"{text}; try again later")
            elif self.bytes and self.bytes + size > self._limit:
                oldest = next(iter(self._places))
                left = oldest.since + PRESSED_STALL_SECONDS - now
                if left > 0:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(left):
                            await self._freed.wait()
                    continue
            else:
                break
            self.finish(oldest)
            oldest.end(ResourceExhausted(ENDED.format(now - oldest.since)))
        place = Place(size, connection, now, end)
        self._places[place] = None
        self._count(place, size)
        return place

    def finish(self, place: Place) -> None:
        """It is whole, or will not be."""
        if place in self._places:
            del self._places[place]
            self._count(place, -place.size)
            freed, self._freed = self._freed, asyncio.Event()
            freed.set()

    def _count(self, place: Place, size: int) -> None:
        self.bytes += size
        self._of[place.connection] += size
        if not self._of[place.connection]:
            del self._of[place.connection]
