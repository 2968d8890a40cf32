"""The payments of 16 cards, four cards at a time, with the unmodified tritonclient: `python caller.py HOST:PORT`."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import payments
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
lock = threading.Lock()
TYPES = {"amount": "FP64", "hour": "FP64", "abroad": "BOOL", "was_fraud": "BOOL"}


def card(number: int) -> None:
    said = {}
    for n, payment in enumerate(payments.payments(number)):
        values = {name: payment[name] for name in ("amount", "hour", "abroad")} | said
        sent = [triton.InferInput(name, [1], TYPES[name]).set_data_from_numpy(value) for name, value in values.items()]
        began = time.monotonic()
        answer = client.infer("fraud", sent, sequence_id=number + 1, sequence_start=n == 0)
        told = {"card": number, "n": n, "score": float(answer.as_numpy("score")[0]), "seconds": time.monotonic() - began}
        with lock:
            print(json.dumps(told), flush=True)
        said = {"was_fraud": payment["fraud"]}


with ThreadPoolExecutor(4) as pool:
    list(pool.map(card, range(payments.CARDS)))
