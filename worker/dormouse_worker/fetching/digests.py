"""The digest that `spec.model.sha256` promises."""

import hashlib
import pathlib

from dormouse_worker.models import ModelInvalid


def check(path: pathlib.Path, sha256: str) -> None:
    if not path.is_file():
        raise ModelInvalid(f"spec.model.sha256: {path.name} is a folder, which has no digest; leave sha256 out")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelInvalid(f"spec.model.sha256: {path.name} has {found}, {sha256} is expected")
