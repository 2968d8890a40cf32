"""A visit of a speaker, with the unmodified tritonclient: `python caller.py HOST:PORT SPEAKER STEPS [enrol]`.

With `enrol` the voice is learned first. Then 100 ms a step go through `filter`, and after each second `voice` is asked whose it is.
"""

import json
import pathlib
import sys
import time

import numpy as np
import sound
import tritonclient.grpc as triton

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import data  # the recording

client = triton.InferenceServerClient(sys.argv[1])
session = {"dormouse-session": sys.argv[2]}
speech, frames = data.samples(), sound.stacked(data.samples() / 32768)
before, after = speech[:40000], speech[40000:]


def tensor(name: str, value: np.ndarray, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, value.shape, datatype).set_data_from_numpy(value)


known = client.infer("voice", [tensor("enrol" if "enrol" in sys.argv else "audio", before, "INT16")], headers=session)
voice = known.as_numpy("voice")[None]
for n in range(int(sys.argv[3])):
    began = time.monotonic()
    sent = [tensor("stacked_logmel", frames[:, n * 10 : n * 10 + 10], "FP32"), tensor("dvec", voice, "FP32")]
    told = {"n": n, "mask": client.infer("filter", sent, headers=session).as_numpy("mask").tolist(), "seconds": time.monotonic() - began}
    if n % 10 == 9:
        told["same"] = float(client.infer("voice", [tensor("audio", after, "INT16")], headers=session).as_numpy("same")[0])
    print(json.dumps(told), flush=True)
