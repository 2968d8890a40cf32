"""Text to tokens, and which one comes next."""

import json
import pathlib

import numpy as np

TOKENS: list[str] = json.loads((pathlib.Path(__file__).parent / "tokens.json").read_text())
NUMBER = {token: number for number, token in enumerate(TOKENS)}
LONGEST = max(map(len, TOKENS))
WARMTH, LIKELY = 0.7, 40
"""How much less likely tokens are said, and of how many one is chosen."""


def encode(text: str) -> list[int]:
    """The longest token that the text goes on with, again and again. ValueError: a character that no token has."""
    found, at = [], 0
    while at < len(text):
        size = next((n for n in range(LONGEST, 0, -1) if text[at : at + n] in NUMBER and at + n <= len(text)), 0)
        if not size:
            raise ValueError(f"character {text[at]!r} found, a line break and printable ASCII are allowed")
        found.append(NUMBER[text[at : at + size]])
        at += size
    return found


def drawn(logits: np.ndarray, seed: int, place: int) -> int:
    """One of the likely tokens. Seed and place alone decide which: a turn that is run again says the same."""
    likely = np.argsort(logits, kind="stable")[-LIKELY:]
    chances = np.exp((logits[likely].astype(np.float64) - logits[likely[-1]]) / WARMTH).cumsum()
    number = np.random.default_rng([seed, place]).random() * chances[-1]
    return int(likely[np.searchsorted(chances, number, side="right")])
