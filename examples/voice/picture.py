"""Draws `voice.png`: how alike the session's voice are the same speaker and others, second by second. Run by ``make picture``, on the model
itself; needs no running system."""

import pathlib
import sys

import matplotlib
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
matplotlib.use("Agg")

import data  # noqa: E402 - the folders come first, as in a worker
import voice  # noqa: E402
from dormouse import Context  # noqa: E402
from matplotlib import pyplot  # noqa: E402

STEP = 1600  # samples


def main() -> None:
    context = Context(function="examples/voice", revision="picture", model=HERE)
    handler, state = voice.Voice(), {each.name: each.first() for each in voice.Voice.states}
    handler.setup(context)
    speech = data.samples()
    handler.step({"enrol": speech[:40000]}, state, context)
    faster = np.interp(np.arange(0, len(speech) - 1, 1.35), np.arange(len(speech)), speech).astype(np.int16)
    noise = (np.random.default_rng(0).standard_normal(44800) * 3000).astype(np.int16)

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    others = (("the speaker who enrolled", speech[40000:]), ("the recording, faster by a third", faster[:44800]), ("noise", noise))
    for name, samples in others:
        ends = range(voice.LEAST, len(samples) + 1, STEP)
        alike = [handler.step({"audio": samples[:end]}, state, context)["same"][0] for end in ends]
        axes.plot(np.array(ends) / data.RATE, alike, "o-", markersize=3, label=name)
    axes.set(xlabel="seconds heard", ylabel="alike", ylim=(0, 1))
    axes.legend(fontsize=8)
    figure.savefig(HERE / "voice.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
