"""Which instances belong to no function, so that they are stopped. Pure.

An instance whose function the registry lacks is one of two things: it was left by a function that was deleted while nobody led, or it is
another installation's, which keeps its functions in another registry. Labels do not always tell them apart: two installations may have the
same name. Where this installation does not serve, or does not know whether it does, it cannot be told, and what is stopped loses its work.
"""

from collections.abc import Callable, Container, Iterable

from dormouse_core.seams import Instance

Serves = Callable[[str], bool | None]
"""Of a namespace: whether this installation serves it now; None: that is not known."""


def strangers(instances: Iterable[Instance], registered: Container[str], serves: Serves) -> list[Instance]:
    """`registered`: uids of a complete registry."""
    return [
        each for each in instances if each.uid not in registered and not each.stopping and serves(each.function.partition("/")[0]) is True
    ]
