"""What lies in a model's folder and is not of the model: `.dormouseignore`.

A line is a name within the folder, or a pattern of `fnmatch`; one that ends in / is a folder with all that is in it. Lines that begin with
# say nothing. People write it, and a worker adds what its own handler writes (`dormouse_worker.fetching.written`).
"""

import fnmatch
import re
from collections.abc import Callable
from pathlib import Path

NAME = ".dormouseignore"
LINES_MAX = 2000
"""Lines that are followed; a folder that needs more is no place to write to."""


def read(folder: Path) -> Callable[[str], bool]:
    """Whether a name within `folder` is left out. OSError: the file is there and cannot be read."""
    try:
        text = (folder / NAME).read_text(errors="surrogateescape")
    except FileNotFoundError:
        return lambda name: False
    return parse(text)


def parse(text: str) -> Callable[[str], bool]:
    lines = [line for line in text.splitlines()[:LINES_MAX] if line.strip() and not line.startswith("#")]
    if not lines:
        return lambda name: False
    patterns = [fnmatch.translate(f"{line}*" if line.endswith("/") else line) for line in lines]
    return re.compile("|".join(patterns)).match  # type: ignore[return-value]


def escape(name: str) -> str:
    """The line that leaves out `name` alone. Empty: there is none."""
    return "" if len(name.splitlines()) != 1 or name != name.strip() else re.sub(r"([*?[#])", r"[\1]", name)
