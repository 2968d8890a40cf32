"""How large a session is at least, from the declared shapes of its states.

At creation datatypes are not known: one byte an element then refuses only what no datatype makes fit in a record. The worker, which has
loaded the model, asks again with the true sizes.
"""

import math
from collections.abc import Sequence


def state_elements(shape: Sequence[int], batch_axis: int | None) -> int:
    """Elements of one session's state of this declared shape, if no dimension is 0: one that varies counts as 1."""
    return math.prod(1 if size < 0 or axis == batch_axis else size for axis, size in enumerate(shape))


def state_bytes(states: Sequence[tuple[Sequence[int], int | None, int]]) -> int:
    """The least bytes of a session: (declared shape, batch axis or None, bytes an element) of each state."""
    return sum(state_elements(shape, batch_axis) * itemsize for shape, batch_axis, itemsize in states)
