"""Models that are in reach of a path."""

import pathlib

from dormouse_core.modeluris import ModelUri

from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable


def below(root: str, model: ModelUri, what: str) -> pathlib.Path:
    """`what`: the root, as people call it."""
    if not root:
        raise ModelUnavailable(f"spec.model.uri: {model.text!r} found, but this worker was given no model root")
    base = pathlib.Path(root).resolve()
    path = (base / model.path).resolve()
    if not path.is_relative_to(base):
        raise ModelInvalid(f"spec.model.uri: {model.text!r} points outside {what}")
    if not path.exists():
        raise ModelUnavailable(f"spec.model.uri: {model.text!r}: no such file below {what}{f' {base}' if model.scheme == 'file' else ''}")
    return path
