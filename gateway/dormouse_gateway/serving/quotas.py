"""What one connection of a caller, and one namespace, may have open here: so that one that opens without end is refused before it is
everybody's trouble. Whether a namespace has its share: `dormouse_core.shares`.

Envoy names the connection in `dormouse-connection`, over whatever a caller wrote there. Whoever dials the relay itself has none, and no
quota: nobody but Envoy can.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set

from dormouse_core import headernames, limits
from dormouse_core.errors import ResourceExhausted
from dormouse_core.shares import OpenStream, OpenStreams

MOST = {
    "streams": limits.CONNECTION_STREAMS,
    "watches": limits.CONNECTION_WATCHES,
    "reflections": limits.CONNECTION_REFLECTIONS,
}
"""Of each kind, on one connection."""


class Quotas:
    """Of one agent: all of its streams together."""

    def __init__(self, sharing: Callable[[str], Set[str]], max_streams: int = limits.HELD_STREAMS) -> None:
        """`sharing`: the namespaces that have functions, by the label of one; none where it is not known as one's."""
        self._sharing = sharing
        self._open: Counter[tuple[str, str]] = Counter()
        self._streams = OpenStreams(max_streams)

    @contextlib.contextmanager
    def taken(self, kind: str, metadata: Mapping[str, str]) -> Iterator[OpenStream]:
        """One more of `kind`, until it is left. ResourceExhausted: there are as many as may be. Its `end` is to be set before anything is
        awaited."""
        connection = metadata.get(headernames.CONNECTION, "")
        key = (kind, connection)
        if connection and self._open[key] >= MOST[kind]:
            raise ResourceExhausted(f"{MOST[kind]} {kind} are open on this connection, which is its limit")
        opened = self._streams.open(connection)
        self._open[key] += 1
        try:
            yield opened
        finally:
            self._streams.leave(opened)
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def named(self, opened: OpenStream, label: str) -> None:
        """The stream has named this function: it is its namespace's, if it was nobody's and the function is known. ResourceExhausted: that
        namespace has its share."""
        if not opened.namespace and (sharing := self._sharing(label)):
            self._streams.name(opened, label.partition("/")[0], sharing)

    def __len__(self) -> int:
        return self._open.total() + len(self._streams)
