"""Customers of a shop, one product after the other, with the unmodified tritonclient: `python caller.py HOST:PORT FROM TO`.

Each of eight customers makes the steps FROM to TO of all their visits. A step says what was put into the basket, 0 when a visit begins, and
is answered with the ten products that are likely to be next.
"""

import json
import pathlib
import sys
import time

import numpy as np
import tritonclient.grpc as triton

CUSTOMERS = 8

customers = json.loads((pathlib.Path(__file__).resolve().parent / "customers.json").read_text())
client = triton.InferenceServerClient(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    for customer, products in enumerate(customers[:CUSTOMERS]):
        item = triton.InferInput("item", [1], "INT64").set_data_from_numpy(np.array([products[step]]))
        began = time.monotonic()
        answer = client.infer("basket", [item], headers={"dormouse-session": f"customer-{customer}"})
        told = {"customer": customer, "step": step, "seconds": time.monotonic() - began}
        told |= {name: answer.as_numpy(name)[0].tolist() for name in ("next", "chance")}
        print(json.dumps(told), flush=True)
