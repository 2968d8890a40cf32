"""Draws `taste.png`: what the handler learns of a guest, and how soon. Run by ``make picture``; needs matplotlib, and no running system.

The guests are made up: each loves three traits, and of what is shown to it likes the dish that has most of them.
"""

import json
import pathlib
import sys

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
matplotlib.use("Agg")

import taste  # noqa: E402 - the folder comes first, as in a worker
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402

STEPS = 10
GUESTS = 200


def visit(handler: taste.Taste, loves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The taste after each step, and how well it tells the guest's dishes from the others."""
    state = {each.name: each.first() for each in handler.states}
    context = Context(function="examples/taste", revision="picture")
    has = (handler.dishes > 0) @ loves
    tastes, told = [], []
    inputs: dict[str, np.ndarray] = {}
    for _ in range(STEPS):
        shown = handler.step(inputs, state, context)["ranked"]
        tastes.append(state["taste"].copy())
        scores = handler.dishes @ state["taste"]
        good, bad = scores[has >= 2][:, None], scores[has == 0]
        told.append(((good > bad) + 0.5 * (good == bad)).mean())
        inputs = {"liked": shown[[int(np.argmax(has[shown]))]]}
    return np.array(tastes), np.array(told)


def main() -> None:
    handler = taste.Taste()
    handler.setup(Context(function="examples/taste", revision="picture", model=HERE))
    traits = json.loads((HERE / "dishes.json").read_text())["traits"]
    rng = np.random.default_rng(3)
    guests = [np.isin(np.arange(taste.TRAITS), rng.choice(taste.TRAITS, 3, replace=False)).astype(float) for _ in range(GUESTS)]
    told = [visit(handler, loves)[1] for loves in guests if ((handler.dishes > 0) @ loves >= 2).any()]
    one = np.isin(traits, ["noodles", "spicy", "nuts"]).astype(float)
    tastes, _ = visit(handler, one)

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 4.2), width_ratios=(1.25, 1), layout="constrained")
    left.imshow(tastes.T, aspect="auto", cmap="viridis")
    left.set_yticks(range(taste.TRAITS), [f"{name} \u2665" if loved else name for name, loved in zip(traits, one, strict=True)], fontsize=8)
    left.set_xlabel("step of the session")
    left.set_title("One guest's taste: the session's state (\u2665 loved)", fontsize=10)
    low, middle, high = np.percentile(told, (10, 50, 90), axis=0)
    right.fill_between(range(STEPS), low, high, alpha=0.2, label="eight guests of ten")
    right.plot(middle, "o-", markersize=4, label="the median guest")
    right.axhline(0.5, ls="--", color="grey", label="no memory")
    right.set_xlabel("step of the session")
    right.set_ylim(0.3, 1.02)
    right.set_title(f"How often a dish with two loved traits\nis ranked above one with none ({len(told)} guests)", fontsize=10)
    right.legend(fontsize=8, loc="lower right")
    figure.savefig(HERE / "taste.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
