"""Where a handler's own modules are found: last, behind the standard library and what is installed.

A handler's folder in front would replace modules under Dormouse's feet: `yaml.py` beside a handler is not the YAML reader. The price: a
handler's module with the name of an installed one is not found. That is told, for it would otherwise show as a missing attribute.
"""

import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder, all_suffixes
from pathlib import Path

TOLD = 10
"""Names in one line."""


def search(folder: Path) -> None:
    """The folder becomes the last place where modules are looked for."""
    sys.path.append(str(folder))


def hidden(folder: Path) -> dict[str, str]:
    """Modules and packages in `folder` that an import does not find there -> whose they are."""
    before = [path for path in sys.path if path != str(folder)]
    found: dict[str, str] = {}
    for name in sorted(_names(folder)):
        if name in sys.stdlib_module_names:
            found[name] = "the standard library's"
        elif (spec := PathFinder.find_spec(name, before)) is not None and spec.origin is not None:
            found[name] = f"an installed one ({spec.origin})"
    return found


def told(found: Mapping[str, str]) -> str:
    names = [f"{name} is {whose}" for name, whose in found.items()]
    more = [f"{len(names) - TOLD} more"] if len(names) > TOLD else []
    return "; ".join([*names[:TOLD], *more])


def _names(folder: Path) -> set[str]:
    found = set()
    for entry in folder.iterdir():
        if entry.is_dir():
            if any((entry / f"__init__{suffix}").is_file() for suffix in all_suffixes()):
                found.add(entry.name)
        else:
            found.update(entry.name.removesuffix(suffix) for suffix in all_suffixes() if entry.name.endswith(suffix))
    return {name for name in found if name.isidentifier()}
