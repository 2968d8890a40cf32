"""Draws `basket.png`: how often the next product is among the ten shown, the more the session remembers. Run by ``make picture``, on
the model itself and customers that it did not learn from; needs no running system."""

import itertools
import json
import pathlib

import matplotlib
import numpy as np
import onnxruntime

HERE = pathlib.Path(__file__).resolve().parent
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

PLACES = (1, 6, 11, 21, 41, 81, 200)
"""Of the next product among all that a customer bought."""


def main() -> None:
    session = onnxruntime.InferenceSession(str(HERE / "model.onnx"))
    nothing = np.zeros((1, 1, 128), np.float32)
    found: dict[str, list[list[bool]]] = {name: [[] for _ in PLACES[1:]] for name in ("model", "forgetting", "popular")}
    for products in json.loads((HERE / "customers.json").read_text()):
        h, bought = nothing, 0
        for product, following in itertools.pairwise(products):
            ten, _, h = session.run(None, {"item": np.array([product]), "h0": h})
            alone = session.run(["next"], {"item": np.array([product]), "h0": nothing})[0]
            if following:
                bought += 1
                place = int(np.searchsorted(PLACES, bought, side="right")) - 1
                for name, hit in (("model", following in ten[0]), ("forgetting", following in alone[0]), ("popular", following <= 10)):
                    found[name][place].append(bool(hit))

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    x = np.arange(len(PLACES) - 1)
    labels = {"model": "the session's memory", "forgetting": "the last product alone", "popular": "the ten most popular"}
    for n, (name, color) in enumerate((("model", "tab:blue"), ("forgetting", "tab:cyan"), ("popular", "lightgrey"))):
        axes.bar(x + (n - 1) * 0.27, [100 * np.mean(hits) for hits in found[name]], 0.27, color=color, label=labels[name])
    axes.set_xticks(x, [f"{a} to {b - 1}" for a, b in itertools.pairwise(PLACES)])
    axes.set(xlabel="which of the customer's products is next", ylabel="% among the ten shown", ylim=(0, 45))
    axes.legend(fontsize=8, ncols=3, loc="upper left")
    figure.savefig(HERE / "basket.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
