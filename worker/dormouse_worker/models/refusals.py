"""Why a model is not served, as the function's condition and its callers say it."""

from dormouse_core.errors import FailedPrecondition, Unavailable


class ModelInvalid(FailedPrecondition):
    """The model or handler cannot run, now or later. The reason for the function's condition is `ModelInvalid`."""


class ContentChanged(FailedPrecondition):
    """What lies at the model's place is not what its revision was proved with. The reason for the condition is `ContentChanged`."""


class ModelUnavailable(Unavailable):
    """The model cannot be had now. The reason for the function's condition is `ModelUnavailable`."""


class InvalidElement(Exception):
    """A BYTES element that an ONNX string cannot hold."""
