"""What one connection of a caller may have open here: so that one that opens without end is refused before it is everybody's trouble.

Envoy names the connection in `dormouse-connection`, over whatever a caller wrote there. Whoever dials the relay itself has none, and no
quota: nobody but Envoy can.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping

from dormouse_core import headernames, limits
from dormouse_core.errors import ResourceExhausted

MOST = {
    "streams": limits.CONNECTION_STREAMS,
    "watches": limits.CONNECTION_WATCHES,
    "reflections": limits.CONNECTION_REFLECTIONS,
}
"""Of each kind, on one connection."""


class Quotas:
    def __init__(self) -> None:
        self._open: Counter[tuple[str, str]] = Counter()

    @contextlib.contextmanager
    def taken(self, kind: str, metadata: Mapping[str, str]) -> Iterator[None]:
        """One more of `kind`, until it is left. ResourceExhausted: there are as many as may be."""
        connection = metadata.get(headernames.CONNECTION, "")
        key = (kind, connection)
        if connection and self._open[key] >= MOST[kind]:
            raise ResourceExhausted(f"{MOST[kind]} {kind} are open on this connection, which is what is allowed")
        self._open[key] += 1
        try:
            yield
        finally:
            self._open[key] -= 1
            if not self._open[key]:
                del self._open[key]

    def __len__(self) -> int:
        return self._open.total()
