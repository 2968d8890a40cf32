"""How short of memory a gateway's Envoy is said to be, by how full its heap is. (docs/decisions/0192-shedding.md)"""

from dormouse_core import limits

_LESS = 1 / 64  # an eighth of the pressure is one of Envoy's classes by size: this is still the same class


def pressure(filled: float, before: float) -> float:
    """0: nobody is reset; at 1 it is who holds `limits.RESET_BYTES` and more, and below only who holds more. Never the same twice, unless
    it is 0: Envoy acts on what changes. `filled`: the share of the heap that is taken; `before`: what was said last."""
    share = (filled - limits.RESET_HEAP_FRACTION) / (limits.RESET_ALL_HEAP_FRACTION - limits.RESET_HEAP_FRACTION)
    if share <= 0:
        return 0.0
    found = min(share, 1.0)
    return found if found != before else found * (1 - _LESS)
