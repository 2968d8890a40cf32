"""Draws `ledger.png`: accounts of one ledger, step by step. Run by ``make picture``, on the handler itself; needs no running system."""

import pathlib
import sys

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
matplotlib.use("Agg")

import ledger  # noqa: E402 - the folder comes first, as in a worker
import orders  # noqa: E402
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402


def main() -> None:
    context = Context(function="examples/ledger", revision="picture")
    handler, state = ledger.Ledger(), {each.name: each.first() for each in ledger.Ledger.states}
    balances = [state["balance"].copy()]
    for step in range(orders.STEPS):
        balances.append(handler.step(orders.orders(0, step), state, context)["balance"].copy())
    every = np.array(balances) / 100
    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    axes.plot(every[:, :12], linewidth=0.9, drawstyle="steps-post")
    axes.plot(every.mean(1), color="black", linewidth=2, label="the mean of all hundred")
    axes.set(xlabel="step of the session", ylabel="money", title="Twelve accounts of a ledger: none below zero, and nothing is lost")
    axes.legend(fontsize=8)
    figure.savefig(HERE / "ledger.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
