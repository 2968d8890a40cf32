"""Dormouse for those who use it: a handler's base classes and a small client.

Importing this package loads nothing else: a handler's module is imported in the worker, where the first answer waits for it, and a client
needs grpc but no numpy until it has tensors. Names are loaded at their first use (PEP 562).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dormouse_core.asking import Input as Input
    from dormouse_core.errors import Code as Code
    from dormouse_core.errors import DormouseError as DormouseError
    from dormouse_core.handlers import Context as Context
    from dormouse_core.handlers import Handler as Handler
    from dormouse_core.handlers import State as State
    from dormouse_core.handlers import Tensor as Tensor

    from dormouse.client import Client as Client

__version__ = "0.1.0"
__all__ = ["Client", "Code", "Context", "DormouseError", "Handler", "Input", "State", "Tensor"]

_PLACES = {
    "Client": "dormouse.client",
    "Input": "dormouse_core.asking",
    **dict.fromkeys(("Code", "DormouseError"), "dormouse_core.errors"),
    **dict.fromkeys(("Context", "Handler", "State", "Tensor"), "dormouse_core.handlers"),
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'dormouse' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
