"""Made-up claims, the same ones for whoever asks: whose, for how much, and what a word of the bill says. numpy alone.

The bills are words of the photographed page of `words`, cut out as that function takes them.
"""

import importlib.util
import pathlib
from typing import Any, NamedTuple

import numpy as np

CLAIMS = 12


class Bill(NamedTuple):
    picture: np.ndarray
    text: str
    cents: int
    account: int
    approved: bool


def bills() -> list[Bill]:
    texts, pictures = _page().words()
    return [Bill(pictures[n], texts[n], 100 + 37 * n, 10 + n, n % 4 != 3) for n in range(CLAIMS)]


def _page() -> Any:
    spec = importlib.util.spec_from_file_location("words_page", pathlib.Path(__file__).resolve().parents[1] / "words" / "page.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
