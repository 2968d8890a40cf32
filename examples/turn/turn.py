"""Has this speaker finished? The last eight seconds of speech, as smart-turn wants them: Whisper's log-mel features.

Stateless on purpose: it is asked once a pause, and its caller has the speech anyway. A session would have to store 256 KB of it
at each step.
"""

from typing import ClassVar

import numpy as np
import onnxruntime
from dormouse import Handler, Tensor

RATE, SECONDS = 16000, 8
FFT, HOP, BANDS = 400, 160, 80
HANN = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FFT) / FFT)


def filters() -> np.ndarray:
    """[80, 201]: triangles at equal distances on Slaney's scale, which is linear up to 1 kHz and logarithmic above; each of area 1."""
    step = np.log(6.4) / 27
    marks = np.linspace(0, 15 + np.log(8000 / 1000) / step, BANDS + 2)
    hertz = np.where(marks < 15, marks * 200 / 3, 1000 * np.exp(step * (marks - 15)))
    at = np.linspace(0, RATE / 2, FFT // 2 + 1)
    up = (at - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - at) / (hertz[2:] - hertz[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down)) * (2 / (hertz[2:] - hertz[:-2]))[:, None]


FILTERS = filters()


def features(audio: np.ndarray) -> np.ndarray:
    """`audio`: int16 samples, 16 kHz. [1, 80, 800] FP32 of its last eight seconds; what is shorter gets silence in front."""
    samples = np.zeros(RATE * SECONDS, np.float32)
    last = audio[-len(samples) :].astype(np.float32) / 32768
    samples[len(samples) - len(last) :] = last
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    padded = np.pad(samples.astype(np.float64), FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:-1]
    power = np.abs(np.fft.rfft(frames * HANN)) ** 2
    log = np.log10(np.maximum(1e-10, FILTERS @ power.T))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).astype(np.float32)[None]


class Turn(Handler):
    inputs: ClassVar = [Tensor("audio", "INT16", [-1])]
    outputs: ClassVar = [Tensor("finished", "FP32", [1])]

    def setup(self, ctx):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = onnxruntime.InferenceSession(str(ctx.model / "model.onnx"), options)

    def step(self, inputs, state, ctx):
        return {"finished": self.model.run(None, {"input_features": features(inputs["audio"])})[0][0]}
