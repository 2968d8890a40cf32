"""Draws `words.png`: the page, and the words that the model reads on it. Run by ``make picture``; the words come from `words.json`, which
`make examples` holds the model to."""

import json
import pathlib

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402 - after the choice of where it draws


def main() -> None:
    header, rest = (HERE / "page.pgm").read_bytes().split(b"\n", 1)
    width, height = map(int, header.split()[1:3])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 2.8), layout="constrained")
    left.imshow(np.frombuffer(rest, np.uint8).reshape(height, width), cmap="gray")
    right.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    for place in json.loads((HERE / "words.json").read_text()):
        top, bottom, first, last = place["box"]
        left.add_patch(pyplot.Rectangle((first, top), last - first, bottom - top, fill=False, color="tab:orange", linewidth=0.8))
        right.text((first + last) / 2, (top + bottom) / 2, place["text"], ha="center", va="center", fontsize=7)
    left.set_title("the photograph", fontsize=10)
    right.set_title("what was read, each word by a call of its own", fontsize=10)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(HERE / "words.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
