"""Guests who choose from what is shown to them, with the unmodified tritonclient: `python caller.py HOST:PORT FROM TO`.

Each of eight guests makes the steps FROM to TO of a visit; in step 0 nothing is known of a guest, and the menu is asked for.
"""

import json
import sys
import time

import numpy as np
import tritonclient.grpc as triton

GUESTS = 8

client = triton.InferenceServerClient(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    for guest in range(GUESTS):
        dish = np.array([(guest * 5 + step * 11) % 48])
        sent = [triton.InferInput("liked", [1], "INT64").set_data_from_numpy(dish)] if step else []
        began = time.monotonic()
        answer = client.infer("taste", sent, headers={"dormouse-session": f"guest-{guest}"})
        told = {"guest": guest, "step": step, "liked": dish.tolist(), "seconds": time.monotonic() - began}
        told |= {name: answer.as_numpy(name).tolist() for name in ("ranked", "score")}
        print(json.dumps(told), flush=True)
