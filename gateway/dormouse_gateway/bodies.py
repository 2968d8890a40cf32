"""How many bytes of request messages the relay may hold: of all callers together, since memory is one."""

from dormouse_core.errors import ResourceExhausted

from dormouse_gateway import metrics


class Bodies:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.held = 0

    def take(self, size: int) -> None:
        """ResourceExhausted: no room; nothing is taken then."""
        if self.held + size > self._limit:
            raise ResourceExhausted(f"the gateway holds {self._limit} bytes of waiting messages; try again later")
        self._set(self.held + size)

    def give(self, size: int) -> None:
        self._set(self.held - size)

    def _set(self, held: int) -> None:
        self.held = held
        metrics.BODIES.set(held)
