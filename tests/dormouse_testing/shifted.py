"""`dormouse up DIR` whose parts have clocks of a test's own.

DIR's file `clocks` says by how many seconds the wall clock of each kind of part is ahead; it is read whenever one starts.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from dormouse import main, parts, up
from dormouse_kit.clock import TEST_OFFSET

from dormouse_testing.up import Up

FILE = "clocks"
PROGRAM = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r}); from dormouse_testing import shifted; sys.exit(shifted.run())"


def ahead(folder: Path, **seconds: float) -> None:
    """`operator`, `gateway` and `worker`: of the parts that start from now on; one that is not named is right."""
    (folder / FILE).write_text(json.dumps(seconds))


def shifted(folder: Path, kind: str, command: Callable[..., list[str]]) -> Callable[..., list[str]]:
    def made(*arguments: Any) -> list[str]:
        seconds = json.loads((folder / FILE).read_text()).get(kind, 0)
        return ["env", f"{TEST_OFFSET}={seconds}", *command(*arguments)]

    return made


@contextmanager
def system(folder: Path, *more: str) -> Iterator[Up]:
    """Begins with right clocks."""
    ahead(folder)
    started = Up(folder, *more, program=("-c", PROGRAM))
    try:
        yield started
    finally:
        started.close()


def run() -> int:
    """In a process of its own."""
    directory = Path(sys.argv[2])
    with (
        patch.object(parts, "operator", shifted(directory, "operator", parts.operator)),
        patch.object(parts, "gateway", shifted(directory, "gateway", parts.gateway)),
        patch.object(up, "worker_command", shifted(directory, "worker", up.worker_command)),
    ):
        return main.main()
