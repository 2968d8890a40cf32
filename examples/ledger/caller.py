"""10,000 transfers in 8 ledgers at a time, with the unmodified tritonclient: `python caller.py HOST:PORT`.

Every call has a key of its own. Every third is sent once more, as by somebody who did not see the answer: it must be the same answer.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import orders
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
lock = threading.Lock()


def ledger(number: int) -> None:
    for step in range(orders.STEPS):
        sent = [triton.InferInput(k, v.shape, "INT64").set_data_from_numpy(v) for k, v in orders.orders(number, step).items()]
        key = f"{time.time_ns() // 1000:016d}-{number}-{step}"
        headers = {"dormouse-session": f"branch-{number}", "dormouse-idempotency-key": key}
        for again in range(2 if step % 3 == 0 else 1):
            began = time.monotonic()
            answer = client.infer("ledger", sent, headers=headers)
            told = {"ledger": number, "step": step, "again": again, "seconds": time.monotonic() - began}
            told |= {name: answer.as_numpy(name).tolist() for name in ("done", "balance")}
            with lock:
                print(json.dumps(told), flush=True)


with ThreadPoolExecutor(orders.LEDGERS) as pool:
    list(pool.map(ledger, range(orders.LEDGERS)))
