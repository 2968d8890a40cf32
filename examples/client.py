"""The demo's caller: the unmodified `tritonclient`, and nothing of Dormouse.

It runs in an environment of its own and takes one command a line as JSON on its standard input, answering each with one line of JSON:

    {"op": "listen", "from": 0, "to": 20, "pace": 0.05, "end": false}    step these windows through the sequence, in order
    {"op": "classify", "files": [...]}                                   one call a file; the label of each
    {"op": "crowd", "seconds": 2.0, "files": [...]}                      stateless calls from 8 threads for so long

A command that runs longer than the next one is sent (`listen` with a pace) reports when it is done; a thread a command.
"""

import json
import pathlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import data
import numpy as np
import tritonclient.grpc as triton

HERE = pathlib.Path(__file__).resolve().parent
SEQUENCE = 20260711


class Caller:
    def __init__(self, url: str) -> None:
        self.client = triton.InferenceServerClient(url)
        self.windows = data.windows()
        self.labels: list[str] = json.loads((HERE / "filetype" / "labels.json").read_text())["target_labels_space"]

    def listen(self, first: int, last: int, pace: float, end: bool) -> dict[str, Any]:
        """Steps windows [first, last) through the sequence; the first one starts it, the last one of the recording may end it."""
        speech, seconds, steps = [], [], []
        rate = triton.InferInput("sr", [], "INT64").set_data_from_numpy(np.array(data.RATE, np.int64))
        for i in range(first, last):
            window = triton.InferInput("input", [1, data.CONTEXT + data.WINDOW], "FP32").set_data_from_numpy(self.windows[i])
            began = time.monotonic()
            answer = self.client.infer(
                "vad",
                [window, rate],
                sequence_id=SEQUENCE,
                sequence_start=i == 0,
                sequence_end=end and i == last - 1,
            )
            seconds.append(time.monotonic() - began)
            speech.append(float(answer.as_numpy("output")[0, 0]))
            steps.append(i)
            time.sleep(max(0.0, pace - seconds[-1]))
        return {"windows": steps, "speech": speech, "seconds": seconds}

    def classify(self, files: list[str]) -> dict[str, Any]:
        labels, seconds = [], []
        for path in files:
            content = triton.InferInput("bytes", [1, 2048], "INT32").set_data_from_numpy(data.features(path))
            began = time.monotonic()
            answer = self.client.infer("filetype", [content])
            seconds.append(time.monotonic() - began)
            labels.append(self.labels[int(answer.as_numpy("target_label")[0].argmax())])
        return {"labels": labels, "seconds": seconds}

    def crowd(self, seconds: float, files: list[str]) -> dict[str, Any]:
        until = time.monotonic() + seconds
        expected = self.classify(files)["labels"]

        def one(thread: int) -> tuple[int, int]:
            calls = wrong = 0
            while time.monotonic() < until:
                k = (thread + calls) % len(files)
                calls += 1
                wrong += self.classify([files[k]])["labels"] != [expected[k]]
            return calls, wrong

        with ThreadPoolExecutor(8) as pool:
            done = list(pool.map(one, range(8)))
        return {"calls": sum(c for c, _ in done), "wrong": sum(w for _, w in done)}

    def do(self, command: dict[str, Any]) -> dict[str, Any]:
        match command["op"]:
            case "listen":
                return self.listen(command["from"], command["to"], command.get("pace", 0.0), command.get("end", False))
            case "classify":
                return self.classify(command["files"])
            case "crowd":
                return self.crowd(command["seconds"], command["files"])
            case other:
                raise ValueError(f"op: {other!r} found; listen, classify, crowd are known")


def main() -> None:
    caller = Caller(sys.argv[1])
    lock = threading.Lock()

    def answer(command: dict[str, Any]) -> None:
        try:
            result = caller.do(command)
        except Exception as error:  # whatever it is, the demo must hear of it: a failed call is the demo's failure
            result = {"error": f"{type(error).__name__}: {error}"}
        with lock:
            print(json.dumps({"id": command["id"], **result}), flush=True)

    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
