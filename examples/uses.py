"""`make examples`: each use on its real model, on this machine, with a worker killed in the middle of it.

Every use starts from zero, is called by the client that its readers have, has its answers compared with the model run directly here, loses
the process that serves it to SIGKILL, and goes on: no call fails. It exits non-zero if a sentence is untrue. `make examples USES="words
ledger"` shows these alone.
"""

import hashlib
import importlib.util
import pathlib
import re
import sys
import time
from typing import Any

from dormouse_core.errors import DormouseError
from running import HERE, Untrue, check, say, system
from showing import Row

USES = ("words", "turn", "voice", "taste", "basket", "ledger", "fraud", "claim")
"""Folders here with a `use.py`: the names of its FUNCTIONS, and `show`, which tells its story and returns its line of the table."""


def loaded(use: str) -> Any:
    folder = str(HERE / use)
    sys.path.insert(0, folder)  # its own modules, as its caller and its handler find them
    try:
        spec = importlib.util.spec_from_file_location(f"use_{use}", HERE / use / "use.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(folder)


def there(name: str) -> None:
    """Untrue: a model file that the function's manifest names is not there, or another one than it says."""
    manifest = (HERE / f"{name}.yaml").read_text()
    for part, stated in re.findall(r"file://([^\s,}\"]+\.onnx)(?:\s+sha256: (\S+))?", manifest):
        path = pathlib.Path(HERE / part)
        check(path.exists(), f"examples/{part} is there (`make models` fetches it)")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        check(stated in ("", found), f"examples/{part}: sha256 {found} found, {name}.yaml says {stated} (`make models` fetches that one)")


def table(rows: list[Row]) -> str:
    head = Row("use", "model", "state a session", "calls a second", "wake", "what the kill did")
    cells = [list(vars(row).values()) for row in (head, *rows)]
    cells.insert(1, ["---"] * len(cells[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(asked: list[str]) -> None:
    unknown = sorted(set(asked) - set(USES))
    if unknown:
        sys.exit(f"use: {', '.join(unknown)} found, {', '.join(USES)} are known")
    rows = []
    try:
        for use in asked or USES:
            module = loaded(use)
            for name in module.FUNCTIONS:
                there(name)
            began = time.monotonic()
            with system(*module.FUNCTIONS) as dormouse:
                rows.append(module.show(dormouse))
                dormouse.stop()
            say(f"{use}: shown in {time.monotonic() - began:.0f} s")
    except Untrue as untrue:
        sys.exit(f"untrue: {untrue}")
    except DormouseError as error:
        sys.exit(f"untrue: no call fails: {error.message}")
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
