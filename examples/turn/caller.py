"""Listens to a recording as it comes, with the unmodified tritonclient: `python caller.py HOST:PORT`.

`vad` hears each 32 ms in one session; at a pause, and once a second, `turn` is asked about all that was said so far.
"""

import json
import pathlib
import sys
import time

import numpy as np
import tritonclient.grpc as triton

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))
import data  # the recording, which the demo's caller reads too

QUIET, SECOND = 2, 31  # windows

client = triton.InferenceServerClient(sys.argv[1])
speech = data.samples()
rate = triton.InferInput("sr", [], "INT64").set_data_from_numpy(np.array(data.RATE, np.int64))
windows, quiet = data.windows(), 0
for n, window in enumerate(windows):
    sent = triton.InferInput("input", window.shape, "FP32").set_data_from_numpy(window)
    began = time.monotonic()
    answer = client.infer("vad", [sent, rate], sequence_id=7, sequence_start=n == 0, sequence_end=n == len(windows) - 1)
    told = {"n": n, "speech": float(answer.as_numpy("output")[0, 0]), "seconds": time.monotonic() - began}
    quiet = 0 if told["speech"] > 0.5 else quiet + 1
    if n >= SECOND and (quiet == QUIET or n % SECOND == 0):
        said = speech[: (n + 1) * data.WINDOW]
        audio = triton.InferInput("audio", said.shape, "INT16").set_data_from_numpy(said)
        began = time.monotonic()
        told["finished"] = float(client.infer("turn", [audio]).as_numpy("finished")[0])
        told["asked"] = time.monotonic() - began
    print(json.dumps(told), flush=True)
