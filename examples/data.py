"""The voice recording and the file-type features, as the two models want them. numpy alone: both environments read it."""

import pathlib
import wave

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
WINDOW, CONTEXT, RATE = 512, 64, 16000


def samples() -> np.ndarray:
    """The recording: int16, 16 kHz."""
    with wave.open(str(HERE / "vad" / "voice.wav")) as recording:
        return np.frombuffer(recording.readframes(recording.getnframes()), np.int16)


def windows() -> list[np.ndarray]:
    """The recording as the model wants it: [1, 576] FP32 each, the window behind the last 64 samples of the one before."""
    speech = samples().astype(np.float32) / 32768
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), speech])
    return [padded[None, i : i + CONTEXT + WINDOW] for i in range(0, len(speech) - WINDOW + 1, WINDOW)]


def features(path: str) -> np.ndarray:
    """[1, 2048] INT32: 1,024 bytes of the file's beginning and 1,024 of its end, without white space around; 256 where there is none."""
    content = pathlib.Path(path).read_bytes()
    beginning = content[:4096].lstrip()[:1024]
    end = content[-4096:].rstrip()[-1024:]
    both = np.full(2048, 256, np.int32)
    both[: len(beginning)] = list(beginning)
    both[2048 - len(end) :] = list(end)
    return both[None]
