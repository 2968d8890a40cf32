"""The digest that `spec.model.sha256` promises: of all files of the model, as `dormouse_kit.contents` has it."""

import pathlib
from collections.abc import Sequence

from dormouse_kit import contents

from dormouse_worker.models.refusals import ModelInvalid


def compare(name: str, names: Sequence[str], found: str, sha256: str) -> None:
    """ModelInvalid: it is another."""
    if found == sha256:
        return
    several = f", the digest of its {len(names)} files ({contents.some(names)})"
    raise ModelInvalid(f"spec.model.sha256: {name} has {found}{several if len(names) > 1 else ''}; {sha256} is expected")


def check(path: pathlib.Path, name: str, sha256: str) -> None:
    """ModelInvalid: what lies there has another. OSError: it cannot be read."""
    found = contents.read(path)
    compare(name, list(found), contents.digest_of(found, path), sha256)
