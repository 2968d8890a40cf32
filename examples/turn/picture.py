"""Draws `turn.png`: a recording, when somebody speaks in it, and when its speaker has finished. Run by ``make picture``, on the models
themselves; needs no running system."""

import pathlib
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import onnxruntime

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
matplotlib.use("Agg")

import data  # noqa: E402 - the folders come first, as in a worker
import turn  # noqa: E402
from matplotlib import pyplot  # noqa: E402

EVERY = 4  # windows


def main() -> None:
    voice = onnxruntime.InferenceSession(str(HERE.parent / "vad" / "model.onnx"))
    model = turn.Turn()
    model.setup(SimpleNamespace(model=HERE))
    samples, state, speaks = data.samples(), np.zeros((2, 1, 128), np.float32), []
    for window in data.windows():
        output, state = voice.run(None, {"input": window, "state": state, "sr": np.array(data.RATE, np.int64)})
        speaks.append(output[0, 0])
    asked = np.arange(8, len(speaks), EVERY)
    finished = [model.step({"audio": samples[: (n + 1) * data.WINDOW]}, {}, None)["finished"][0] for n in asked]

    figure, axes = pyplot.subplots(figsize=(9.6, 3.2), layout="constrained")
    axes.plot(np.arange(len(samples)) / data.RATE, 0.5 + samples / 65536, color="lightgrey", linewidth=0.4)
    seconds = data.WINDOW / data.RATE
    axes.plot((np.arange(len(speaks)) + 1) * seconds, speaks, label="vad: somebody speaks")
    axes.plot((asked + 1) * seconds, finished, "o-", markersize=3, label="turn: has finished, if the recording ended here")
    axes.set(xlabel="seconds", ylim=(-0.02, 1.02), xlim=(0, len(samples) / data.RATE))
    axes.legend(fontsize=8, loc="lower center", ncols=2)
    figure.savefig(HERE / "turn.png", dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
