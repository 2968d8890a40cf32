"""How many bytes of request messages the relay may hold: of all callers together, since memory is one; of one connection, so that no caller
takes all of it; and for one namespace, so that calls of one tenant's functions leave room for those of others'."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Set

from dormouse_core.errors import ResourceExhausted
from dormouse_core.shares import admits

from dormouse_gateway import metrics


class Bodies:
    def __init__(self, limit: int, share: float = 1.0) -> None:
        """`limit`: bytes of all; `share`: of it, what one connection may have."""
        self._limit = limit
        self._most = int(limit * share)
        self._of: Counter[str] = Counter()
        self._for: Counter[str] = Counter()
        self.held = 0

    def take(self, size: int, connection: str = "") -> None:
        """ResourceExhausted: no room; nothing is taken then. `connection` '': not known, and without a limit of its own."""
        if self.held + size > self._limit:
            raise ResourceExhausted(f"the gateway holds {self._limit} bytes of waiting messages; try again later")
        if connection and self._of[connection] + size > self._most:
            raise ResourceExhausted(f"the gateway holds {self._most} bytes of waiting messages of this connection; try again later")
        self._add(size, connection)

    def give(self, size: int, connection: str = "") -> None:
        self._add(-size, connection)

    @contextlib.contextmanager
    def within(self, size: int, namespace: str, known: Set[str]) -> Iterator[None]:
        """A message that was taken is for `namespace`, until this is left; NOBODY: for a function that is not known. `known`: the
        namespaces that have functions. ResourceExhausted: it has its share (`dormouse_core.shares`). A single message is always taken."""
        found = self._for[namespace]
        whose = f"the namespace {namespace}" if namespace else "functions that it has not heard of"
        if found and not admits(self._for, namespace, known, self._limit, size):
            raise ResourceExhausted(
                f"the gateway holds {found} bytes of waiting messages for {whose}, {'its' if namespace else 'the'} share of {self._limit}: "
                "the rest is left for other namespaces; try again later"
            )
        self._for[namespace] += size
        try:
            yield
        finally:
            self._for[namespace] -= size
            if not self._for[namespace]:
                del self._for[namespace]

    def _add(self, size: int, connection: str) -> None:
        self.held += size
        metrics.BODIES.set(self.held)
        if connection:
            self._of[connection] += size
            if not self._of[connection]:
                del self._of[connection]
