"""Draws `claim.png`: one claim's steps, and what each asked of the other functions. Run by ``make picture``, on the handlers themselves;
needs no running system. The bill's picture is answered as its text says: the model is not run."""

import asyncio
import importlib.util
import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
matplotlib.use("Agg")

import bills  # noqa: E402 - the folder comes first, as in a worker
import claim  # noqa: E402
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402

DAYS = (0, 14, 28, 31)  # filed, reminded, reminded, decided


def handler(use: str, kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    spec = importlib.util.spec_from_file_location(use, HERE.parent / use / f"{use}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = getattr(module, kind)()
    return made, {each.name: each.first() for each in made.states}


class Others:
    """What stands for the worker: the functions that the claim calls, and its alarm."""

    def __init__(self, text: str, letters: dict[str, int]) -> None:
        self.scores = np.zeros((1, 2 * len(text), 6625), np.float32)
        for n, letter in enumerate(text):
            self.scores[0, 2 * n, letters[letter]] = 1
        self.fraud, self.ledger = handler("fraud", "Fraud"), handler("ledger", "Ledger")
        self.alarm: dict[str, Any] = {}

    def call(self, function: str, inputs: Any, session: Any, outputs: Any, timeout: Any, key: Any) -> Any:
        async def answer() -> Any:
            if function == "words":
                return {"softmax_11.tmp_0": self.scores}
            made, state = self.fraud if function == "fraud" else self.ledger
            return made.step(inputs, state, None)

        return answer()

    def set(self, at: Any, inputs: Any, name: str) -> None:
        self.alarm = dict(inputs)

    def cancel(self, name: str) -> None:
        self.alarm = {}


def main() -> None:
    bill = bills.bills()[9]
    made = claim.Claim()
    base = Context(function="examples/claim", revision="picture", model=HERE)
    made.setup(base)
    others = Others(bill.text, {letter: number for number, letter in made.letters.items()})
    state = {each.name: each.first() for each in made.states}
    ledger = others.ledger[1]["balance"]
    money = [ledger[[claim.FUND, claim.SET_ASIDE, claim.POSTAGE, bill.account]] / 100]
    filed = {"picture": bill.picture, "filed": np.array([bill.cents, bill.account, 14, 14])}
    for sent in (filed, None, None, {"approved": np.array([True])}):
        step = Context(
            function="examples/claim",
            revision="picture",
            caller=others,
            clock=others,
            alarm_name="remind" if sent is None else None,
        )
        asyncio.run(made.step(others.alarm if sent is None else sent, state, step))
        money.append(ledger[[claim.FUND, claim.SET_ASIDE, claim.POSTAGE, bill.account]] / 100)
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    days, names = (-3, *DAYS, 36), ("the insurer's", "set aside", "postage", "the customer's")
    for name, line in zip(names, (np.array(money) - money[0]).T, strict=True):
        axes.step(days, [*line, line[-1]], where="post", label=name)
    for day, what in zip(DAYS, ("filed", "reminded", "reminded", "decided: paid"), strict=True):
        axes.axvline(day, color="0.6", linewidth=0.8, linestyle=":")
        axes.annotate(what, (day, -1.5), rotation=90, va="center", ha="right", fontsize=8, color="0.3")
    axes.set(xlabel="day", ylabel="money, since before", title="A claim's accounts: each step counts once; between the steps nothing runs")
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(HERE / "claim.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
