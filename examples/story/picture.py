"""Draws `story.png`: a story in the colours of its turns, and what its session weighs meanwhile. Run by ``make picture``, on the handler
itself; needs no running system."""

import json
import pathlib
import sys
import textwrap

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
matplotlib.use("Agg")

import story  # noqa: E402 - the folder comes first, as in a worker
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402

TURNS, LINE = 5, 62


def main() -> None:
    context = Context(function="examples/story", revision="picture", model=HERE)
    handler, state = story.Story(), {each.name: each.first() for each in story.Story.states}
    handler.setup(context)
    text, colors, read, weighs, ends = "", [], [], [], []
    for turn, prompt in enumerate(json.loads((HERE / "prompts.json").read_text())[:TURNS]):
        text, colors = text + prompt, colors + ["black"] * len(prompt)
        for part in handler.step({"prompt": np.array([prompt.encode()], object)}, state, context):
            said = part["text"][0].decode()
            text, colors = text + said, colors + [f"C{turn}"] * len(said)
            read.append(int(state["place"][0]))
            weighs.append(sum(array.nbytes for array in state.values()) / 1024)
        ends.append((read[-1], weighs[-1]))

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.35, 1), layout="constrained")
    left.set_axis_off()
    left.set_xlim(0, LINE)
    lines = [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, LINE)]
    left.set_ylim(len(lines), 0)
    at = 0
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            at = text.index(letter, at)
            left.text(column, row + 0.5, letter, color=colors[at], family="monospace", fontsize=7.5)
            at += 1
    left.set_title("A story; prompts are black, each turn has a colour", fontsize=10)
    right.plot(read, weighs, color="grey", linewidth=1)
    for turn, (place, weight) in enumerate(ends):
        right.plot(place, weight, "o", color=f"C{turn}")
    right.axhline(992, ls="--", color="lightgrey")
    right.text(0, 1000, "what a session may hold", fontsize=8, color="grey")
    right.set(xlabel="tokens read and said", ylabel="KiB", ylim=(0, 1060))
    right.set_title(f"What its session weighs: the last {story.WINDOW} tokens\n(dots: what a turn stores)", fontsize=10)
    figure.savefig(HERE / "story.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
