"""A photograph of a printed page, cut into words as the model wants them, and what the model's answer says. numpy alone."""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
HEIGHT, WIDTH = 48, 192
CHARACTERS = ["", *(HERE / "characters.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"), " "]
"""By the number of the model's class; the first one says that there is none here."""


def words() -> tuple[list[str], list[np.ndarray]]:
    """What the page says at each place of `words.json`, and the picture of it: [1, 3, 48, 192] FP32 from -1 to 1, zeros on the right."""
    header, rest = (HERE / "page.pgm").read_bytes().split(b"\n", 1)
    width, height = map(int, header.split()[1:3])
    page = np.frombuffer(rest, np.uint8).reshape(height, width)
    places = json.loads((HERE / "words.json").read_text())
    return [place["text"] for place in places], [picture(page, *place["box"]) for place in places]


def picture(page: np.ndarray, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    wide = min(WIDTH, -(-HEIGHT * (right - left) // (bottom - top)))
    grey = stretched(stretched(page[top:bottom, left:right].astype(np.float64), HEIGHT).T, wide).T
    found = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    found[..., :wide] = grey / 127.5 - 1
    return found


def stretched(rows: np.ndarray, count: int) -> np.ndarray:
    """As many rows as `count`, each between the two that were nearest to it."""
    at = np.clip((np.arange(count) + 0.5) * len(rows) / count - 0.5, 0, len(rows) - 1)
    first = at.astype(int)
    part = (at - first)[:, None]
    return rows[first] * (1 - part) + rows[np.minimum(first + 1, len(rows) - 1)] * part


def read(scores: np.ndarray) -> str:
    """`scores`: [steps, classes] of one picture. The likeliest class of each step; one that lasts several steps is written once."""
    best = scores.argmax(1)
    return "".join(CHARACTERS[c] for c, before in zip(best, [-1, *best[:-1]], strict=True) if c != before)
