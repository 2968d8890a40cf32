"""How short of memory an Envoy of ours is said to be, by how much is taken, and what it does then (docs/decisions/0192-shedding.md)."""

from typing import Any

from dormouse_core import limits

_LESS = 1 / 64  # an eighth of the pressure is one of Envoy's classes by size: this is still the same class


def pressure(taken: float, before: float) -> float:
    """0: nobody is reset; at 1 it is who holds `limits.RESET_BYTES` and more, and below only who holds more. Never the same twice, unless
    it is 0: Envoy acts on what changes. `taken`: the share of what may be that is taken; `before`: what was said last."""
    share = (taken - limits.RESET_HEAP_FRACTION) / (limits.RESET_ALL_HEAP_FRACTION - limits.RESET_HEAP_FRACTION)
    if share <= 0:
        return 0.0
    found = min(share, 1.0)
    return found if found != before else found * (1 - _LESS)


MONITOR = "envoy.resource_monitors.injected_resource"


def monitor(path: str) -> dict[str, Any]:
    """Envoy's, of the file `path`."""
    kind = "type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig"
    return {"name": MONITOR, "typed_config": {"@type": kind, "filename": path}}


def action() -> dict[str, Any]:
    """Envoy's, by that monitor. It needs `TRACKED`."""
    trigger = {"name": MONITOR, "scaled": {"scaling_threshold": 0.0, "saturation_threshold": 1.0}}
    return {"name": "envoy.overload_actions.reset_high_memory_stream", "triggers": [trigger]}


TRACKED = {"minimum_account_to_track_power_of_two": limits.RESET_BYTES.bit_length() - 1}
"""The overload manager's `buffer_factory_config`."""
