"""Draws `fraud.png`: what a traveller's payments abroad score, while the card learns. Run by ``make picture``, on the handler itself; needs
no running system."""

import pathlib
import sys

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
matplotlib.use("Agg")

import fraud  # noqa: E402 - the folder comes first, as in a worker
import payments  # noqa: E402
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402


def scores(card: int, learns: bool) -> list[float]:
    context = Context(function="examples/fraud", revision="picture")
    handler, state = fraud.Fraud(), {each.name: each.first() for each in fraud.Fraud.states}
    said: dict[str, np.ndarray] = {}
    found = []
    for payment in payments.payments(card):
        found.append(float(handler.step({**payment, **said}, state, context)["score"][0]))
        said = {"was_fraud": payment["fraud"]} if learns else {}
    return found


def main() -> None:
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    for learns, color, label in ((False, "lightgrey", "the bank's weights"), (True, "tab:blue", "weights that this card learned")):
        each = np.array([scores(card, learns) for card in range(1, payments.CARDS, 2)])
        owner = np.array([[p["abroad"][0] and not p["fraud"][0] for p in payments.payments(c)] for c in range(1, payments.CARDS, 2)])
        cards, steps = np.nonzero(owner)
        axes.plot(steps, each[cards, steps], "o", markersize=3, color=color)
        means = [each[:, n : n + 10][owner[:, n : n + 10]].mean() for n in range(0, payments.PAYMENTS, 10)]
        axes.plot(np.arange(5, payments.PAYMENTS, 10), means, color="grey" if color == "lightgrey" else color, label=label)
    axes.set(xlabel="payment of the card", ylabel="score", title="What travellers pay abroad themselves", ylim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(HERE / "fraud.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
