"""Customers who file claims, with the unmodified tritonclient: `python caller.py HOST:PORT FROM TO FIRST AGAIN`: claims
FROM to TO, of which whoever decides is reminded FIRST seconds after they are filed, and again AGAIN seconds later."""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import bills
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
first, again = int(sys.argv[4]), int(sys.argv[5])
made, lock = bills.bills(), threading.Lock()


def file(number: int) -> None:
    bill = made[number]
    sent = [
        triton.InferInput("picture", bill.picture.shape, "FP32").set_data_from_numpy(bill.picture),
        triton.InferInput("filed", [4], "INT64").set_data_from_numpy(np.array([bill.cents, bill.account, int(time.time()) + first, again])),
    ]
    headers = {"dormouse-session": f"claim-{number}", "dormouse-idempotency-key": f"{time.time_ns() // 1000:016d}-claim-{number}"}
    began = time.monotonic()
    for sent_again in range(2 if number % 3 == 0 else 1):  # as by somebody who did not see the answer
        answer = client.infer("claim", sent, headers=headers)
        told = {"claim": number, "again": sent_again, "seconds": time.monotonic() - began}
        told |= {name: answer.as_numpy(name)[0].decode() for name in ("stage", "text")} | {"score": float(answer.as_numpy("score")[0])}
        with lock:
            print(json.dumps(told), flush=True)


with ThreadPoolExecutor(4) as pool:
    list(pool.map(file, range(int(sys.argv[2]), int(sys.argv[3]))))
