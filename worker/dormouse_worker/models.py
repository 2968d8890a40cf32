"""Bringing a model's files to this worker.

One machine knows file:// alone, and only below the model root: a manifest must not make a worker read what its author could not. The file
is loaded from where it lies, not from bytes, so that weights in a second file beside it are found (and ONNX Runtime itself refuses ones
outside the model's folder).
"""

import hashlib
import pathlib

from dormouse_core.errors import FailedPrecondition, Unavailable


class ModelInvalid(FailedPrecondition):
    """The model or handler cannot run, now or later. The reason for the function's condition is `ModelInvalid`."""


class ModelUnavailable(Unavailable):
    """The model cannot be had now. The reason for the function's condition is `ModelUnavailable`."""


def fetch(uri: str, sha256: str | None, root: str) -> pathlib.Path:
    """The local file or folder of `uri`."""
    scheme, _, rest = uri.partition("://")
    if scheme != "file":
        raise ModelUnavailable(f"spec.model.uri: {uri!r} found; {scheme}:// is not supported on one machine yet, file:// is")
    if not root:
        raise ModelUnavailable(f"spec.model.uri: {uri!r} found, but this worker was given no model root")
    base = pathlib.Path(root).resolve()
    path = (base / rest.lstrip("/")).resolve()
    if not path.is_relative_to(base):
        raise ModelInvalid(f"spec.model.uri: {uri!r} leads out of the model root")
    if not path.exists():
        raise ModelUnavailable(f"spec.model.uri: {uri!r}: no such file below the model root {base}")
    if sha256 is not None:
        check(path, sha256)
    return path


def check(path: pathlib.Path, sha256: str) -> None:
    if not path.is_file():
        raise ModelInvalid(f"spec.model.sha256: {path.name} is a folder, which has no digest; leave sha256 out")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelInvalid(f"spec.model.sha256: {path.name} has {found}, {sha256} is expected")
