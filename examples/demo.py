"""The demo: one machine, two real models, the unmodified tritonclient, and everything that may go wrong in between.

Run by ``make demo``. It starts `dormouse up` in a folder of its own, lets both functions fall asleep, and then tells a story in which every
sentence is checked: it exits non-zero if one of them is untrue. The caller is `client.py`, in an environment of its own.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import data
import numpy as np
import onnxruntime
from running import System, Untrue, check, say, system

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
KINDS = {
    "README.md": "markdown",
    "pyproject.toml": "toml",
    "examples/client.py": "python",
    "examples/vad.yaml": "yaml",
    "examples/vad/voice.wav": "wav",
    "proto/control.proto": "proto",
    "gateway/dormouse_gateway/envoy/router.lua": "lua",
}
FILES = [str(ROOT / name) for name in KINDS]


class Caller:
    """client.py in its own environment; commands may overlap."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        python = ROOT / ".venv-client" / "bin" / "python"
        self.process = subprocess.Popen(
            [python, HERE / "client.py", f"{host}:{port}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers: dict[int, dict[str, Any]] = {}
        self.sent = 0

    def send(self, op: str, **arguments: Any) -> int:
        assert self.process.stdin
        self.sent += 1
        print(json.dumps({"id": self.sent, "op": op, **arguments}), file=self.process.stdin, flush=True)
        return self.sent

    def result(self, command: int) -> dict[str, Any]:
        assert self.process.stdout
        while command not in self.answers:
            line = self.process.stdout.readline()
            check(bool(line), "the caller died")
            answer = json.loads(line)
            self.answers[answer["id"]] = answer
        answer = self.answers[command]
        check("error" not in answer, f"a call failed: {answer.get('error')}")
        return answer

    def call(self, op: str, **arguments: Any) -> dict[str, Any]:
        return self.result(self.send(op, **arguments))


def directly() -> list[float]:
    """What the voice model says of each window when it is run here, without Dormouse."""
    session = onnxruntime.InferenceSession(str(HERE / "vad" / "model.onnx"))
    state, said = np.zeros((2, 1, 128), np.float32), []
    for window in data.windows():
        output, state = session.run(None, {"input": window, "state": state, "sr": np.array(data.RATE, np.int64)})
        said.append(float(output[0, 0]))
    return said


def tell(dormouse: System) -> None:
    expected = directly()
    heard: list[float] = []

    def hear(result: dict[str, Any]) -> float:
        """Compares these windows with the model run directly; the slowest step in seconds."""
        for index, speech in zip(result["windows"], result["speech"], strict=True):
            check(index == len(heard), f"window {index} came after {len(heard)} others")
            off = abs(speech - expected[index])
            check(off <= 1e-6, f"window {index}: {speech} heard, {expected[index]} is right")
            heard.append(speech)
        return float(max(result["seconds"]))

    for name in ("vad", "filetype"):
        dormouse.asleep(name)
    say("both functions were proved once and sleep: no worker runs")
    caller = Caller(dormouse.port)

    first = caller.call("classify", files=FILES[:1])
    say(f"filetype: the first call found zero workers and was answered after {first['seconds'][0]:.2f} s")
    kinds = caller.call("classify", files=FILES)
    check(kinds["labels"] == list(KINDS.values()), f"files recognised as {kinds['labels']}, {list(KINDS.values())} is right")
    say(f"filetype: {len(FILES)} real files recognised: {', '.join(kinds['labels'])}")

    dormouse.asleep("vad")
    first = caller.call("listen", **{"from": 0, "to": 1})
    hear(first)
    say(f"vad: the first window found zero workers and was answered after {first['seconds'][0]:.2f} s")
    slowest = hear(caller.call("listen", **{"from": 1, "to": 30}))
    say(f"vad: windows 1 to 29 as the model gives them when run directly; slowest step {slowest * 1e3:.1f} ms")

    listening = caller.send("listen", **{"from": 30, "to": 70, "pace": 0.1})
    owner, pid = dormouse.owner("vad")
    os.kill(pid, signal.SIGKILL)
    slowest = hear(caller.result(listening))
    now = dormouse.moved("vad", owner)
    say(f"vad: owner {owner} killed with SIGKILL in mid-sequence: no call failed; slowest step {slowest:.2f} s; {now} owns now")

    listening = caller.send("listen", **{"from": 70, "to": 130, "pace": 0.15})
    dormouse.command("scale", "filetype", "3")
    for count in (3, 1):
        dormouse.command("scale", "vad", str(count))
        dormouse.ready("vad", count)
    slowest = hear(caller.result(listening))
    say(f"vad: scaled 1 → 3 → 1 meanwhile: no call failed; slowest step {slowest:.2f} s")

    dormouse.ready("filetype", 3)
    before = {name: int(calls) for name, calls in dormouse.get("filetype").get("calls", {}).items()}
    crowd = caller.call("crowd", seconds=3.0, files=FILES)
    check(crowd["wrong"] == 0, f"{crowd['wrong']} of {crowd['calls']} stateless calls answered wrong")

    def shared() -> list[int]:
        """How many calls each worker has reported since; they report each second."""
        after = {name: int(calls) for name, calls in dormouse.get("filetype").get("calls", {}).items()}
        return sorted(after[name] - before.get(name, 0) for name in after)

    until = time.monotonic() + 30
    while sum(shares := shared()) < crowd["calls"] and time.monotonic() < until:
        time.sleep(0.2)
    check(len(shares) == 3 and shares[0] > crowd["calls"] / 10, f"{crowd['calls']} stateless calls spread over workers as {shares}")
    say(f"filetype: {crowd['calls']} calls from 8 threads spread over 3 workers: {', '.join(map(str, shares))}")

    for name in ("vad", "filetype"):
        dormouse.command("scale", name, "auto")
    dormouse.asleep("vad")
    say("vad: at zero, in mid-sequence")
    woken = caller.call("listen", **{"from": 130, "to": 131})
    hear(woken)
    rest = hear(caller.call("listen", **{"from": 131, "to": len(expected), "end": True}))
    say(f"vad: woke after {woken['seconds'][0]:.2f} s, remembering; slowest step of the rest {rest * 1e3:.1f} ms")
    say(f"vad: all {len(heard)} windows within 1e-6 of the model run directly")

    for name in ("vad", "filetype"):
        dormouse.asleep(name)
    say("both functions sleep again: no worker runs")
    dormouse.stop()
    until = time.monotonic() + 10  # what is killed with another takes a moment to be gone
    while (left := dormouse.processes()) and time.monotonic() < until:
        time.sleep(0.1)
    check(not left, f"processes left: {left}")
    say("Ctrl-C: everything stopped, no process left")


def main() -> None:
    try:
        with system("vad", "filetype") as running:
            tell(running)
    except Untrue as untrue:
        sys.exit(f"untrue: {untrue}")


if __name__ == "__main__":
    main()
