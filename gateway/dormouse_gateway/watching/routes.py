"""From the routing table to Envoy's snapshot: each function that changed becomes its resources, and one that cannot
be made harms no other.
"""

from dormouse_kit import log

from dormouse_gateway.envoy.bootstrap import ENTRY
from dormouse_gateway.envoy.resources import entry, resources
from dormouse_gateway.envoy.snapshot import Snapshot
from dormouse_gateway.settings import GatewaySettings
from dormouse_gateway.watching.table import Table

WORTH_US = 1_000
"""A waiting caller's next call comes later than that."""


class Routes:
    def __init__(self, table: Table, snapshot: Snapshot, settings: GatewaySettings) -> None:
        self._table = table
        self._snapshot = snapshot
        self._settings = settings
        self._waiting: set[str] = set()
        self._correction_us = 0
        snapshot.put(ENTRY, [entry(settings, 0)])

    def correct(self, correction_us: int) -> None:
        """What router.lua adds to Envoy's clock for the timestamps of its keys. Envoy is told of what is worth it: each time is an update
        of the route by which every call enters."""
        if abs(correction_us - self._correction_us) < WORTH_US:
            return
        self._correction_us = correction_us
        self._snapshot.put(ENTRY, [entry(self._settings, correction_us)])
        if self._snapshot.complete:
            self._snapshot.publish()

    def update(self, changed: set[str]) -> None:
        """Before the table is complete nothing is rendered: half a listing would send calls of every other function to the relay."""
        self._waiting |= changed
        if not self._table.complete:
            return
        labels, self._waiting = self._waiting, set()
        for label in labels:
            self._render(label)
        if labels or not self._snapshot.complete:
            self._snapshot.complete = True
            self._snapshot.publish()

    def _render(self, label: str) -> None:
        function = self._table.function(label)
        route = None if function is None else function.route()
        try:
            self._snapshot.put(label, () if route is None else resources(route, self._settings))
        except ValueError as wrong:  # protobuf's ParseError and ours are ValueErrors: a value that Envoy's messages cannot hold
            self._snapshot.put(label, ())
            log.warning("no route could be made", function=label, reason=str(wrong))
