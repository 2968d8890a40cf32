"""Listens to a story with the unmodified tritonclient: `python caller.py HOST:PORT FROM TO`, the turns of `prompts.json`.

A turn whose stream breaks is sent again under its key. Only the last, empty response says that the turn is stored.
"""

import json
import pathlib
import queue
import sys
import time

import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
prompts = json.loads((pathlib.Path(__file__).parent / "prompts.json").read_text())
for turn in range(int(sys.argv[2]), int(sys.argv[3])):
    key, tries, ended, began = f"{time.time_ns() // 1000}-turn-{turn}", 0, False, time.monotonic()
    prompt = triton.InferInput("prompt", [1], "BYTES").set_data_from_numpy(np.array([prompts[turn].encode()], object))
    while not ended:
        tries += 1
        answers = queue.Queue()
        client.start_stream(lambda result, error, to=answers: to.put(error or result), headers={"dormouse-session": "bedtime"})
        client.async_stream_infer("story", [prompt], parameters={"dormouse_idempotency_key": key}, enable_empty_final_response=True)
        while not ended and not isinstance(answer := answers.get(), Exception):
            ended = answer.get_response().parameters["triton_final_response"].bool_param
            text = "" if ended else answer.as_numpy("text")[0].decode()
            told = {"turn": turn, "try": tries, "key": key, "text": text, "ended": ended, "seconds": time.monotonic() - began}
            print(json.dumps(told), flush=True)
        client.stop_stream()
        if not ended and (tries == 5 or "after a part of the reply" not in str(answer)):
            raise answer
