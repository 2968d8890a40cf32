"""How short of memory an Envoy is said to be, by how much is taken, and what it does then (docs/decisions/0192-shedding.md)."""

from dataclasses import dataclass
from typing import Any

from dormouse_core import limits

CLASSES = 8
"""Of Envoy's, by what is held: from `limits.RESET_BYTES` on, each twice the one before. At 0 the largest is reset, at 1 all are."""
_MORE = 1 / CLASSES / 2
_LESS = _MORE / 8


@dataclass(frozen=True, slots=True)
class Said:
    """`value`: the pressure that Envoy was told last; `level`: how far it has come in this shortage, 0 while there is room."""

    value: float = 0.0
    level: float = 0.0


def pressure(taken: float, said: Said) -> Said:
    """What is said next, when the share `taken` of what may be is taken.

    While there is room nothing new is said: each change resets somebody, one to 0 too. While it is short the value is another each time,
    and grows: who holds most is reset first, and then who holds less, until there is room.
    """
    if taken < limits.RESET_HEAP_FRACTION:
        return Said(said.value)
    share = (taken - limits.RESET_HEAP_FRACTION) / (limits.RESET_ALL_HEAP_FRACTION - limits.RESET_HEAP_FRACTION)
    level = min(1.0, max(share, said.level + _MORE))
    return Said(level if level != said.value else level - _LESS, level)


MONITOR = "envoy.resource_monitors.injected_resource"


def monitor(path: str) -> dict[str, Any]:
    """Envoy's, of the file `path`. It needs `dormouse_kit.inotify.available`."""
    kind = "type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig"
    return {"name": MONITOR, "typed_config": {"@type": kind, "filename": path}}


def action(trigger: dict[str, Any] | None = None) -> dict[str, Any]:
    """Envoy's, by that monitor, or by another `trigger`. It needs `TRACKED`."""
    own = {"name": MONITOR, "scaled": {"scaling_threshold": 0.0, "saturation_threshold": 1.0}}
    return {"name": "envoy.overload_actions.reset_high_memory_stream", "triggers": [trigger or own]}


TRACKED = {"minimum_account_to_track_power_of_two": limits.RESET_BYTES.bit_length() - 1}
"""The overload manager's `buffer_factory_config`."""
