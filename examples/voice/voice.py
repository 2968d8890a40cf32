"""Is this the voice that enrolled? A speaker enrols once, and the session knows this voice for as long as the manifest's `ttl`."""

from typing import ClassVar

import numpy as np
import onnxruntime
import sound
from dormouse import Handler, State, Tensor
from dormouse_core.errors import FailedPrecondition, InvalidArgument

LEAST = 16000
"""Samples. A second is the least that tells one voice from another."""


class Voice(Handler):
    inputs: ClassVar = [Tensor("enrol", "INT16", [-1], optional=True), Tensor("audio", "INT16", [-1], optional=True)]
    outputs: ClassVar = [Tensor("voice", "FP32", [256]), Tensor("same", "FP32", [-1])]  # the voice that is known; -1 to 1, of `audio`
    states: ClassVar = [State("voice", "FP32", [256])]

    def setup(self, ctx):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.embedder = onnxruntime.InferenceSession(str(ctx.model / "embedder.onnx"), options)

    def step(self, inputs, state, ctx):
        heard = {name: self.heard(name, samples) for name, samples in inputs.items()}
        if "enrol" in heard:
            state["voice"] = heard["enrol"]
        if not state["voice"].any():
            raise FailedPrecondition("enrol: this session knows no voice yet; its first step sends one")
        same = [heard["audio"] @ state["voice"]] if "audio" in heard else []
        return {"voice": state["voice"], "same": np.array(same, np.float32)}

    def heard(self, name: str, samples: np.ndarray) -> np.ndarray:
        """[256] of length 1: the mean of what the model says of each window."""
        if len(samples) < LEAST:
            raise InvalidArgument(f"{name}: {len(samples)} samples found, at least {LEAST} are needed")
        each = self.embedder.run(None, {"mel_window": sound.windows(samples / 32768)})[0]
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(0)
        return (mean / np.linalg.norm(mean)).astype(np.float32)
