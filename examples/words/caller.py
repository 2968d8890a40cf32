"""Reads a page word by word with the unmodified tritonclient: `python caller.py HOST:PORT CALLS AT_A_TIME [SPOILT]`: with
picture SPOILT one of no numbers."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import page
import tritonclient.grpc as triton

INPUT, OUTPUT = "x", "softmax_11.tmp_0"  # as the model's authors named them

client = triton.InferenceServerClient(sys.argv[1])
texts, pictures = page.words()
for spoilt in sys.argv[4:]:
    pictures[int(spoilt)][:] = np.nan
lock = threading.Lock()


def call(n: int) -> None:
    picture = triton.InferInput(INPUT, pictures[n % len(texts)].shape, "FP32").set_data_from_numpy(pictures[n % len(texts)])
    began = time.monotonic()
    for again in (False, True):  # a reply of 0.6 MB breaks off where its worker dies while it is on its way
        try:
            scores = client.infer("words", [picture]).as_numpy(OUTPUT)[0]
            break
        except triton.InferenceServerException as error:
            if again or "RST_STREAM" not in str(error):
                raise
    told = {"n": n, "seconds": time.monotonic() - began, "again": again, "text": page.read(scores)}
    told["scores"] = scores.max(1).astype(np.float64).tolist()
    with lock:
        print(json.dumps(told), flush=True)


with ThreadPoolExecutor(int(sys.argv[3])) as pool:
    list(pool.map(call, range(int(sys.argv[2]))))  # an exception of a call is ours
