"""What one tenant's callers may hold in a gateway, from however many connections, where several namespaces share it: streams that are open,
calls that wait and the bytes of their messages.

A quarter of what may be held is kept in equal parts for the namespaces that have functions; of the rest, one holds at most as much as is
left for all others. So of two the first gets half, the second three in ten; and however many others take what they can get, the last has
its part. A namespace that is alone has everything.

A call of a function that the gateway has not heard of is nobody's: its namespace is what its caller wrote, and callers make up names
without end. All of them together have at most as much as that quarter, of what is not kept for others, and no part of their own. Where no
namespace has functions they have everything.

A stream is somebody's once it has named a function that there is: its namespace's, to its end.
Streams that are nobody's take what room there is and keep nobody out: where the gateway is full, the connection that has most of them loses
its oldest to the next that opens. So who names a function at once is let in, and who opens silent streams without end loses his own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Set

from dormouse_core.errors import ResourceExhausted
from dormouse_core.limits import HELD_CALLS, HELD_STREAMS, KEPT_FRACTION, WAITING_FUNCTIONS

NOBODY = ""
"""In place of a namespace: those of functions that are not known."""


def admits(held: Mapping[str, int], namespace: str, known: Set[str], limit: int, size: int = 1) -> bool:
    """Whether `size` more of `namespace` leave room for all others. `held`: by namespace, together at most `limit`; `known`: the namespaces
    that have functions."""
    new = namespace not in known and namespace not in held and namespace != NOBODY
    sharing = len(known) + sum(other not in known for other in held if other != NOBODY) + new
    if sharing == 0 or (sharing == 1 and namespace != NOBODY):
        return True
    kept = int(KEPT_FRACTION * limit)
    part = kept // sharing
    others = sum(count if other == NOBODY else max(count - part, 0) for other, count in held.items() if other != namespace)
    if namespace == NOBODY:
        mine = held.get(NOBODY, 0) + size
        return mine <= kept and mine + others <= limit - part * sharing
    mine = held.get(namespace, 0) + size - part
    return mine <= 0 or 2 * mine <= limit - part * sharing - others


class WaitingCalls:
    """Calls that wait in a gateway, of whatever method: for a worker, or for what a worker says of its model."""

    def __init__(self, limit: int = WAITING_FUNCTIONS * HELD_CALLS) -> None:
        self._limit = limit
        self._of: Counter[str] = Counter()  # by namespace
        self._all = 0

    def __len__(self) -> int:
        return self._all

    def enter(self, namespace: str, known: Set[str]) -> None:
        """One more; `leave` ends it. `known`: the namespaces that have functions. ResourceExhausted: there is no room for it."""
        whose = f"the namespace {namespace}" if namespace else "functions that it has not heard of"
        if self._all >= self._limit:
            raise ResourceExhausted(f"{self._limit} calls wait in this gateway, which is its limit; try again later")
        if not admits(self._of, namespace, known, self._limit):
            raise ResourceExhausted(
                f"{self._of[namespace]} calls of {whose} wait in this gateway, {'its' if namespace else 'the'} share of {self._limit}: "
                "the rest is left for other namespaces; try again later"
            )
        self._all += 1
        self._of[namespace] += 1

    def leave(self, namespace: str) -> None:
        self._all -= 1
        self._of[namespace] -= 1
        if not self._of[namespace]:
            del self._of[namespace]


class OpenStream:
    """One that is open. `end(error)` is called, once, when its place goes to another."""

    __slots__ = ("connection", "end", "namespace")

    def __init__(self, connection: str) -> None:
        self.connection = connection
        self.namespace = ""
        """'': nobody's yet."""
        self.end: Callable[[ResourceExhausted], object] = lambda error: None


class OpenStreams:
    def __init__(self, limit: int = HELD_STREAMS) -> None:
        self._limit = limit
        self._held: Counter[str] = Counter()  # by namespace
        self._open: set[OpenStream] = set()
        self._nobodys: dict[str, dict[OpenStream, None]] = {}  # by connection, the oldest first
        self._ranks: dict[int, dict[str, None]] = {}  # how many of them -> the connections that have so many
        self._most = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self, connection: str) -> OpenStream:
        """One more, nobody's yet. ResourceExhausted: there is no room for it."""
        if len(self._open) >= self._limit:
            most = self._ranks.get(self._most, {})
            if not most:
                raise ResourceExhausted(f"{self._limit} streams are open in this gateway, which is its limit; try again later")
            # Also where who opens has as many: with one on each connection it is no worse than the others. Its own, where nobody else has.
            loser = next((other for other in most if other != connection), connection)
            lost = next(iter(self._nobodys[loser]))
            self.leave(lost)
            lost.end(
                ResourceExhausted(
                    f"{self._limit} streams are open in this gateway, and this one, which has named no function that exists, "
                    "is closed to make room for others; open it again with a message"
                )
            )
        made = OpenStream(connection)
        self._open.add(made)
        self._nobodys.setdefault(connection, {})[made] = None
        self._rank(connection, len(self._nobodys[connection]) - 1)
        return made

    def name(self, stream: OpenStream, namespace: str, known: Set[str]) -> None:
        """It is `namespace`'s from now on, if it was nobody's. ResourceExhausted: that has its share."""
        if stream.namespace or stream not in self._open:
            return
        if not admits(self._held, namespace, known, self._limit):
            raise ResourceExhausted(
                f"{self._held[namespace]} streams of the namespace {namespace} are open in this gateway, its share of {self._limit}: "
                "the rest is left for other namespaces; try again later"
            )
        self._forget(stream)
        stream.namespace = namespace
        self._held[namespace] += 1

    def leave(self, stream: OpenStream) -> None:
        """It has ended. Again: nothing."""
        if stream not in self._open:
            return
        self._open.remove(stream)
        if not stream.namespace:
            self._forget(stream)
            return
        self._held[stream.namespace] -= 1
        if not self._held[stream.namespace]:
            del self._held[stream.namespace]

    def _forget(self, stream: OpenStream) -> None:
        of = self._nobodys[stream.connection]
        del of[stream]
        self._rank(stream.connection, len(of) + 1)
        if not of:
            del self._nobodys[stream.connection]

    def _rank(self, connection: str, before: int) -> None:
        """The connection has one more or one less than `before`."""
        if before:
            del self._ranks[before][connection]
            if not self._ranks[before]:
                del self._ranks[before]
        if now := len(self._nobodys[connection]):
            self._ranks.setdefault(now, {})[connection] = None
        self._most = max(self._most, now)
        if self._most and self._most not in self._ranks:
            self._most -= 1
