"""The unmodified `tritonclient` on one stream, told what to do line by line on standard input; each answer is a line of JSON.

It runs in an environment of its own and knows nothing of Dormouse (`dormouse_testing.stream_clients` is the other end).
"""

import json
import queue
import sys
import time

import numpy as np
import tritonclient.grpc as triton

DATATYPES = {"FP32": np.float32, "INT64": np.int64, "UINT8": np.uint8}


def told(at, result, error):
    if error is not None:
        return {"at": at, "error": error.message(), "status": error.status()}
    response = result.get_response()
    parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in response.parameters.items()}
    outputs = {output.name: result.as_numpy(output.name).flatten().tolist()[:16] for output in response.outputs}
    return {"at": at, "id": response.id, "outputs": outputs, "parameters": parameters}


class Session:
    def __init__(self, address):
        self.client = triton.InferenceServerClient(address)
        self.answers = queue.Queue()

    def start(self, headers=None, timeout=None, compression=None):
        self.client.start_stream(
            lambda result, error: self.answers.put((time.monotonic(), result, error)),
            headers=headers,
            stream_timeout=timeout,
            compression_algorithm=compression,
        )
        return {"at": time.monotonic()}

    def send(
        self, model, name, data=(), datatype="FP32", ident="", sequence=0, start=False, end=False, final=False, shape=None, size=0, key=""
    ):
        array = np.zeros([1, size], DATATYPES[datatype]) if size else np.array(data, DATATYPES[datatype]).reshape(shape or [1, -1])
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        at = time.monotonic()
        self.client.async_stream_infer(
            model,
            [tensor],
            request_id=ident,
            sequence_id=sequence,
            sequence_start=start,
            sequence_end=end,
            enable_empty_final_response=final,
            parameters={"dormouse_idempotency_key": key} if key else None,
        )
        return {"at": at}

    def answer(self, seconds=30.0):
        try:
            return told(*self.answers.get(timeout=seconds))
        except queue.Empty:
            return None

    def turns(self, model, name, sequence, count, first=0, warm=10):
        """`count` steps, each sent when the one before is answered. Their values, and the middle and the longest time in ms."""
        values, times = [], []
        for number in range(first, first + count):
            began = self.send(model, name, [1], ident=str(number), sequence=sequence, start=number == 0)["at"]
            found = self.answer(60)
            if found is None or "error" in found or found["id"] != str(number):
                return {"wrong": found, "at": number}
            values.append(found["outputs"]["y"][0])
            times.append(1e3 * (found["at"] - began))
        rest = sorted(times[warm:]) or [0.0]
        return {"values": values, "p50": rest[len(rest) // 2], "longest": rest[-1]}

    def interleave(self, model, name, sequences, base=0, seconds=60.0):
        """START, three steps and END of many sequences, nothing waited for; how many came back whole and in order."""
        for step in range(5):
            for sequence in range(base + 1, base + sequences + 1):
                self.send(model, name, [1], ident=f"{sequence}_{step}", sequence=sequence, start=step == 0, end=step == 4)
        found, errors = {}, []
        until = time.monotonic() + seconds
        for _ in range(5 * sequences):
            answer = self.answer(max(0.0, until - time.monotonic()))
            if answer is None:
                errors.append("no more answers")
                break
            if "error" in answer:
                errors.append(answer["error"])
                continue
            sequence, _, step = answer["id"].partition("_")
            found.setdefault(sequence, []).append([int(step), answer["outputs"]["y"][0]])
        right = [[step, step + 1.0] for step in range(5)]
        wrong = {sequence: of for sequence, of in found.items() if of != right}
        return {"right": len(found) - len(wrong), "wrong": wrong, "errors": errors[:5]}

    def stop(self, cancel=False):
        began = time.monotonic()
        self.client.stop_stream(cancel_requests=cancel)
        return {"took": time.monotonic() - began}


session = Session(sys.argv[1])
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(getattr(session, order.pop("do"))(**order)), flush=True)
session.client.close()
