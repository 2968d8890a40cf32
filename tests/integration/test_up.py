"""The path, end to end, on real parts: from zero, through deaths and scaling, to sleep, and awake again; and a clean end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from dormouse_testing import models
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models, save_triple, system
from dormouse_worker.process.probing import exchange


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    return tmp_path


@pytest.fixture
def up(folder: Path) -> Iterator[Up]:
    (folder / "double.yaml").write_text(DOUBLE)
    (folder / "total.json").write_text(json.dumps(yaml.safe_load(TOTAL)))
    (folder / "wrong.yml").write_text(DOUBLE.replace("double", "wrong").replace("3s", "soon"))
    with system(folder) as started:
        started.wait_ready()
        yield started


class Stepper(threading.Thread):
    """Steps one session until told to stop, and checks every sum: a step that was lost, or ran twice, shows in the next."""

    def __init__(self, gateway: str, session: str) -> None:
        super().__init__()
        self.client = Client(gateway)
        self.session = session
        self.steps = 0
        self.slowest = 0.0
        self.error: Exception | None = None
        self.end = threading.Event()

    def run(self) -> None:
        try:
            while not self.end.is_set():
                began = time.monotonic()
                answer = self.client.infer("total", {"x": row(1)}, session=self.session, timeout=60)
                self.slowest = max(self.slowest, time.monotonic() - began)
                self.steps += 1
                assert answer.outputs["y"].tolist() == [[float(self.steps)]], (answer, self.steps)
                assert answer.step == self.steps
        except Exception as error:
            self.error = error

    def finish(self) -> None:
        self.end.set()
        self.join(90)
        self.client.close()
        if self.error is not None:
            raise self.error


def test_the_whole_path(up: Up) -> None:
    up.until_phase("double", "Asleep")
    up.until_phase("total", "Asleep")
    with Client(up.gateway) as client:
        assert client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60).outputs["y"].tolist() == [[2, 4, 6, 8]]

    steppers = [Stepper(up.gateway, f"voice-{n}") for n in range(4)]
    for stepper in steppers:
        stepper.start()
    up.until(lambda: all(s.steps > 5 or s.error for s in steppers))

    owner = next(iter(up.get("total", owners=True)["owners"].values()))
    up.kill_worker(owner)
    up.until(lambda: owner not in up.get("total")["workers"] and up.get("total")["readyReplicas"] == 1)

    up.command("scale", "total", "3")
    up.until(lambda: len(set(up.get("total", owners=True)["owners"].values())) == 3)
    owner = next(iter(up.get("total", owners=True)["owners"].values()))
    up.kill_worker(owner)
    up.until(lambda: len(set(up.get("total", owners=True)["owners"].values()) - {owner}) == 3)
    up.command("scale", "total", "1")
    up.until(lambda: len(set(up.get("total", owners=True)["owners"].values())) == 1)
    before = [s.steps for s in steppers]
    up.until(lambda: all(s.steps > b + 5 or s.error for s, b in zip(steppers, before, strict=True)))
    for stepper in steppers:
        stepper.finish()

    up.command("scale", "total", "auto")
    up.until_phase("total", "Asleep")
    assert "Exception in callback" not in up.log, "workers that drain leave no traceback"
    listed = up.command("sessions", "total").stdout
    assert all(f"/s:voice-{n}" in listed for n in range(4))
    assert "hibernated" in listed
    with Client(up.gateway) as client:
        answer = client.infer("total", {"x": row(0)}, session="voice-0", timeout=60)
    assert answer.step == steppers[0].steps + 1, "asleep, and it remembers"
    assert answer.outputs["y"].tolist() == [[float(steppers[0].steps)]]

    said = {condition["type"]: condition for condition in up.get("total")["conditions"]}
    assert (said["Batching"]["status"], said["Batching"]["reason"]) == ("True", "Independent")
    assert up.log.count(" batching rows=") == 2, "one look at each model: neither a wake nor a further worker repeats it"

    assert up.stop() == 0
    up.nobody_left()


def test_what_was_committed_survives_a_restart_of_everything(folder: Path) -> None:
    (folder / "total.yaml").write_text(TOTAL)
    with system(folder) as up:
        up.wait_ready()
        with Client(up.gateway) as client:
            client.infer("total", {"x": row(5)}, session="a", timeout=60)
        up.stop(signal.SIGTERM)
    with system(folder) as up:
        up.wait_ready()
        with Client(up.gateway) as client:
            assert client.infer("total", {"x": row(2)}, session="a", timeout=60).outputs["y"].tolist() == [[7.0]]
        os.kill(up.process.pid, signal.SIGKILL)
        up.process.wait()
        up.nobody_left()
    with system(folder) as up:
        up.wait_ready()
        with Client(up.gateway) as client:
            assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[8.0]]
        up.stop()


def test_parts_that_die_come_back_and_calls_go_on(up: Up) -> None:
    stepper = Stepper(up.gateway, "s")
    stepper.start()
    up.until(lambda: stepper.steps > 5 or stepper.error)
    workers = up.get("total")["workers"]
    os.kill(up.part("operator"), signal.SIGKILL)
    up.until(lambda: up.log.count("started part=operator") >= 2)
    up.until(lambda: up.command("get", check=False).returncode == 0)
    up.until(lambda: up.get("total")["phase"] == "Ready")
    assert up.get("total")["workers"] == workers, "workers survive the operator's SIGKILL"
    os.kill(up.part("agent"), signal.SIGKILL)
    up.until(lambda: up.log.count("started part=agent") >= 2)
    steps = stepper.steps
    up.until(lambda: stepper.steps > steps + 20 or stepper.error)
    stepper.finish()
    os.kill(up.part("envoy"), signal.SIGKILL)
    up.until(lambda: up.log.count("started part=envoy") >= 2)
    deadline = time.monotonic() + 60
    with Client(up.gateway) as client:
        while True:
            try:
                assert client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60).outputs["y"].tolist() == [[2, 4, 6, 8]]
                break
            except DormouseError as error:
                if error.code is not Code.UNAVAILABLE or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    assert up.stop() == 0
    up.nobody_left()


def test_a_leader_that_lost_its_lease_is_a_candidate_again_and_leads(up: Up) -> None:
    stepper = Stepper(up.gateway, "s")
    stepper.start()
    up.until(lambda: stepper.steps > 5 or stepper.error)
    operator, workers, steps = up.part("operator"), up.get("total")["workers"], stepper.steps
    os.kill(operator, signal.SIGSTOP)
    time.sleep(5)
    os.kill(operator, signal.SIGCONT)
    up.until(lambda: "a candidate again" in up.log and up.log.index("a candidate again") < up.log.rindex("leading functions="))
    assert up.part("operator") == operator, "the process goes on"
    assert "ended part=operator" not in up.log
    up.until(lambda: up.get("total")["phase"] == "Ready")
    assert up.get("total")["workers"] == workers
    assert stepper.steps > steps, "the data path works while nobody leads"
    stepper.finish()


def test_a_model_that_does_not_load_says_why_and_a_new_revision_that_fails_harms_nobody(up: Up) -> None:
    (up.folder / "broken.onnx").write_bytes(b"no model")
    broken = up.folder / "broken.json"
    broken.write_text(DOUBLE.replace("double", "broken"))
    up.command("apply", "-f", str(broken))
    up.until_phase("broken", "Failed")
    condition = next(c for c in up.get("broken")["conditions"] if c["type"] == "ModelReady")
    assert condition["reason"] == "ModelInvalid"
    with Client(up.gateway) as client, pytest.raises(DormouseError) as refused:
        client.infer("broken", {"x": row(1, 2, 3, 4)}, timeout=60)
    assert refused.value.code is Code.FAILED_PRECONDITION

    with Client(up.gateway) as client:
        client.infer("total", {"x": row(1)}, session="a", timeout=60)
        up.command("scale", "total", "1")
        up.until(lambda: up.get("total")["revision"] == up.get("total")["wantedRevision"])
        served = up.get("total")["revision"]
        changed = up.folder / "total.json"
        changed.write_text(TOTAL.replace("total.onnx", "broken.onnx"))
        assert "configured" in up.command("apply", "-f", str(changed)).stdout
        up.until(lambda: any(c["type"] == "ModelReady" and c["status"] == "False" for c in up.get("total")["conditions"]))
        found = up.get("total")
        assert found["phase"] == "Serving"
        assert {c["type"]: c["status"] for c in found["conditions"]}.items() >= {("Ready", "False"), ("Serving", "True")}
        assert found["revision"] == served != found["wantedRevision"]
        assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[2.0]]

        # A new revision with the same states goes on with the sessions.
        changed.write_text(TOTAL.replace("scaleToZeroAfter: 3s", "batching: {maxBatchSize: 8}"))
        up.command("apply", "-f", str(changed))
        up.until(lambda: any(c["type"] == "RolledOut" and c["status"] == "True" for c in up.get("total")["conditions"]))
        assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[3.0]]


def too_new(folder: Path) -> dict[str, tuple[str, ...]]:
    """Models that this ONNX Runtime cannot run -> the words that its condition must have, found and supported."""
    identity, tensor = [models.node("Identity", ["x"], ["y"])], ("x", models.FLOAT, ["n", 4])
    out = ("y", models.FLOAT, ["n", 4])
    models.write(folder / "ir.onnx", identity, [tensor], [out], ir_version=99)
    models.write(folder / "opset.onnx", identity, [tensor], [out], opset=99)
    models.write(folder / "domain.onnx", [models.node("Frobnicate", ["x"], ["y"], domain="com.example")], [tensor], [out])
    weights = {"w": np.ones(4, np.float32)}
    model = onnx.load(models.write(folder / "weights.onnx", [models.node("Mul", ["x", "w"], ["y"])], [tensor], [out], weights))
    onnx.save(model, str(folder / "weights.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    (folder / "weights.bin").unlink()
    ort = f"ONNX Runtime {onnxruntime.__version__}"
    return {
        "ir": ("IR version: 99", "max supported IR version: 1", ort),
        "opset": ("99", "till opset 2", ort),
        "domain": ("com.example", ort),
        "weights": ("weights.bin",),
    }


def test_a_model_that_is_newer_than_the_runtime(up: Up) -> None:
    """Cases 7.O3 and 7.O2. Told at once and not held; no worker is started over and over; revision 1 serves on, also from zero."""
    expected = too_new(up.folder)
    with Client(up.gateway) as client:
        assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[1.0]]
        for name, words in expected.items():
            manifest = up.folder / f"{name}.json"
            manifest.write_text(DOUBLE.replace("name: double", f"name: {name}").replace("double.onnx", f"{name}.onnx"))
            up.command("apply", "-f", str(manifest))
            up.until_phase(name, "Failed")
            condition = next(c for c in up.get(name)["conditions"] if c["type"] == "ModelReady")
            assert condition["reason"] == "ModelInvalid"
            for word in words:
                assert word in condition["message"]
            began = time.monotonic()
            with pytest.raises(DormouseError) as refused:
                client.infer(name, {"x": row(1, 2, 3, 4)}, timeout=60)
            assert time.monotonic() - began < 30, "not held"
            assert refused.value.code is Code.FAILED_PRECONDITION
            assert words[0] in refused.value.message

        started = {name: len([i for i in up.supervisors() if i.startswith(name)]) for name in expected}
        changes = list(expected)[:2]
        for steps, name in enumerate(changes, 2):
            changed = up.folder / "total.json"
            changed.write_text(TOTAL.replace("total.onnx", f"{name}.onnx"))
            up.command("apply", "-f", str(changed))
            up.until(lambda words=expected[name]: words[0] in str(up.get("total")["conditions"]))  # type: ignore[misc]
            assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[float(steps)]]
        up.until(lambda: not up.get("total")["workers"])
        assert client.infer("total", {"x": row(1)}, session="a", timeout=60).outputs["y"].tolist() == [[len(changes) + 2.0]], (
            "woken as revision 1"
        )
        assert {name: len([i for i in up.supervisors() if i.startswith(name)]) for name in expected} == started, "tried once"


def test_a_deleted_function_is_gone_and_its_name_is_free(up: Up) -> None:
    with Client(up.gateway) as client:
        client.infer("total", {"x": row(5)}, session="a", timeout=60)
        assert up.command("delete", "total").stdout == "default/total deleted\n"
        with pytest.raises(DormouseError) as refused:
            client.infer("total", {"x": row(5)}, session="a", timeout=60)
        assert refused.value.code is Code.NOT_FOUND
        up.command("apply", "-f", str(up.folder / "total.json"))
        answer = client.infer("total", {"x": row(1)}, session="a", timeout=60)
        assert (answer.step, answer.outputs["y"].tolist()) == (1, [[1.0]]), "the new function knows nothing of the old one's sessions"


def test_a_function_that_is_made_again_goes_on_with_kept_sessions(up: Up) -> None:
    """`reclaimPolicy: Retain`. Of another number of shards it is refused."""
    kept = up.folder / "kept.yaml"
    kept.write_text(TOTAL.replace("sessions:", "sessions:\n    reclaimPolicy: Retain"))
    up.command("apply", "-f", str(kept))
    with Client(up.gateway) as client:
        for expected in (1, 2):
            assert client.infer("total", {"x": row(1)}, session="a", timeout=60).step == expected
        assert up.command("delete", "total").stdout == "default/total deleted\n"
        with pytest.raises(DormouseError):
            client.infer("total", {"x": row(5)}, session="a", timeout=60)
        other = up.folder / "other.yaml"
        other.write_text(kept.read_text().replace("sessions:", "sessions:\n    shards: 8"))
        refused = up.command("apply", "-f", str(other), check=False)
        assert refused.returncode == 1
        assert "spec.sessions.shards: 8 found, 64 is allowed" in refused.stderr
        assert up.command("apply", "-f", str(kept)).stdout == "default/total created\n"
        answer = client.infer("total", {"x": row(1)}, session="a", timeout=60)
        assert (answer.step, answer.outputs["y"].tolist()) == (3, [[3.0]])
        assert client.infer("total", {"x": row(1)}, session="new", timeout=60).step == 1, "and sessions begin"
        assert "/s:a" in up.command("sessions", "total").stdout


def test_the_command_line_speaks_plainly(up: Up) -> None:
    def fails(*words: str) -> str:
        done = up.command(*words, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("dormouse: ")
        assert "Traceback" not in done.stderr
        return done.stderr

    up.until(lambda: "a manifest was not applied" in up.log)
    [told] = [line for line in up.log.splitlines() if "a manifest was not applied" in line]
    assert "warning a manifest was not applied" in told, "and those beside it were"
    assert "wrong.yml: spec.scaleToZeroAfter" in told
    assert "no function default/nope" in fails("scale", "nope", "1")
    assert "runs here already, pid" in _second_up(up)
    bad = up.folder / "bad.json"
    bad.write_text(DOUBLE.replace("scaleToZeroAfter: 3s", "scaleToZeroAfter: soon"))
    assert "scaleToZeroAfter" in fails("apply", "-f", str(bad))
    bad.write_text(TOTAL.replace("sessions:", "sessions:\n    shards: 8"))
    assert "shards" in fails("apply", "-f", str(bad))
    several = up.folder / "several"
    several.mkdir()
    (several / "all.yaml").write_text(f"{DOUBLE}---\nkind: ConfigMap\nmetadata: {{name: other}}\n---\n{TOTAL}")
    done = up.command("apply", "-f", str(several))
    assert (done.stdout, done.stderr) == (
        "default/double unchanged\ndefault/total unchanged\n",
        "dormouse: all.yaml, document 2: ConfigMap other is not an InferenceFunction; it is left out\n",
    )
    (several / "refused.json").write_text(bad.read_text().replace("{name: total}", "{name: total, namespace: default}"))
    (several / "all.yaml").write_text(DOUBLE)
    done = up.command("apply", "-f", str(several), check=False)
    assert (done.returncode, done.stdout) == (1, "default/double unchanged\n")
    assert done.stderr.startswith("dormouse: refused.json: spec.sessions.shards")
    (several / "refused.json").unlink()
    (several / "all.yaml").write_text(DOUBLE.rstrip() + "\n  workers: {nodeSelector: {disk: fast}}\n")
    done = up.command("apply", "-f", str(several))
    assert done.stderr == "dormouse: default/double: no effect on one machine: spec.workers.nodeSelector\n"
    assert "has no such input" in fails("call", "double", "--input", "z=[1]")
    assert "INVALID_ARGUMENT" in fails("call", "double", "--input", "x=[[1,2]]")
    done = up.command("call", "double", "--input", "x=[[1,2,3,4]]")
    assert done.stdout == "y [1, 4] [[2.0, 4.0, 6.0, 8.0]]\n"
    assert "stateless" in fails("sessions", "double")
    up.command("scale", "total", "1")  # however long the three take: it does not fall asleep, and its figures are there
    for n in range(3):
        done = up.command("call", "total", "-i", "x=[[2]]", "--sequence-id", "7", *(["--start"] if n == 0 else []))
    assert done.stdout == "y [1, 1] [[6.0]]\nstep 3\n"
    _each_part_says_its_figures(up)
    assert "FP32 [1, 1]" in up.command("sessions", "total", "/i:7").stdout
    assert "double" in up.command("get").stdout
    watching = subprocess.Popen([*up.dormouse, "get", "double", "--watch", "--dir", str(up.folder)], stdout=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    up.command("scale", "double", "0")
    assert any("Stopped" in line for line in watching.stdout)
    watching.terminate()
    watching.communicate()


def _each_part_says_its_figures(up: Up) -> None:
    """As docs/operating.md shows them: two ports that the log names, and sockets in the system's folder."""
    [ready] = [line for line in up.log.splitlines() if "  ready " in line]
    addresses = dict(word.split("=", 1) for word in ready.split() if "=" in word)
    for part, figure in (("operator", "dormouse_leading 1.0"), ("agent", "dormouse_leader_connected ")):
        with urllib.request.urlopen(f"http://{addresses[f'{part}_metrics']}/metrics", timeout=10) as answer:
            assert f"\n{figure}" in answer.read().decode()
    figures = ""
    for path in up.sockets.glob("w*-calls.sock"):
        with contextlib.suppress(OSError):  # of a worker that has just ended, nobody's any more
            figures += _asked(path, "/metrics")
    assert re.search(r'dormouse_worker_calls_total{code="OK"} 3\b', figures)
    assert "downstream_rq_total" in _asked(up.sockets / "envoy.sock", "/stats")


def _asked(path: Path, what: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        status, text = exchange(sock, "GET", what)
    assert status == 200
    return text


def _second_up(up: Up) -> str:
    with system(up.folder) as second:
        assert second.process.wait(60) == 1
        return second.log


def test_a_revision_stands_for_the_bytes_that_it_was_proved_with(up: Up) -> None:
    """A model that is edited under its uri is never served as what it was: not by a worker that wakes, not after a rollback."""
    path, manifest = up.folder / "double.onnx", str(up.folder / "double.yaml")
    doubling = path.read_bytes()

    def answer() -> object:
        with Client(up.gateway) as client:
            return client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60).outputs["y"].tolist()

    def refused() -> str:
        with Client(up.gateway) as client, pytest.raises(DormouseError) as told:
            client.infer("double", {"x": row(1, 2, 3, 4)}, timeout=60)
        assert told.value.code is Code.FAILED_PRECONDITION
        return told.value.message

    up.command("scale", "double", "1")  # however long the next three take: it does not fall asleep
    assert answer() == [[2, 4, 6, 8]]
    up.until(lambda: up.get("double")["revision"] != "")  # a worker answers before its proof is written
    first = up.get("double")["revision"]
    save_triple(path)
    assert answer() == [[2, 4, 6, 8]], "a worker has what it loaded"
    up.command("scale", "double", "auto")
    up.until_phase("double", "Asleep")
    up.command("scale", "double", "1")
    up.until(lambda: "ContentChanged" in str(up.get("double")["conditions"]))
    assert first[:8] in refused()
    up.command("scale", "double", "auto")

    assert up.command("apply", "-f", manifest).stdout == "default/double refreshed\n"
    assert answer() == [[3, 6, 9, 12]]
    up.until(lambda: up.get("double")["revision"] != first)
    path.write_bytes(doubling)
    up.command("apply", "-f", manifest)
    up.until(lambda: up.get("double")["revision"] == first)
    assert answer() == [[2, 4, 6, 8]]
    assert up.command("apply", "-f", manifest).stdout == "default/double unchanged\n"

    up.until_phase("double", "Asleep")
    path.write_bytes(b"no model")
    up.command("apply", "-f", manifest)
    up.until(lambda: "ModelInvalid" in str(up.get("double")["conditions"]))
    assert "double.onnx" in refused(), "the bytes of the revision before are gone: nobody is held for them"
    began = time.monotonic()
    save_triple(path)
    up.until(lambda: up.get("double")["phase"] in ("Ready", "Asleep"))
    assert time.monotonic() - began < 20, "what was mended is tried at once"
    assert answer() == [[3, 6, 9, 12]]


HANDLER = """
import pathlib, subprocess
import dormouse

class Keep(dormouse.Handler):
    inputs = outputs = [dormouse.Tensor("x", "FP32", [-1, 4])]

    def setup(self, ctx):
        (ctx.model / "cache").mkdir(exist_ok=True)

    def step(self, inputs, state, ctx):
        with (ctx.model / "calls.log").open("a") as log:
            log.write("called\\n")
        subprocess.run(["touch", ctx.model / "cache" / "of_a_child"], check=True)
        return {"x": inputs["x"]}
"""
KEEP = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: keep}
spec: {runtime: python, handler: "keep:Keep", model: {uri: "file://code"}, scaleToZeroAfter: 1s}
"""


def test_a_handler_writes_beside_its_code_and_stays_the_same_revision(up: Up) -> None:
    """A person's file beside it is a new one; a file of its own that changed is refused by its name."""
    code, manifest = up.folder / "code", up.folder / "keep.yaml"
    code.mkdir()
    (code / "keep.py").write_text(HANDLER)
    manifest.write_text(KEEP)
    apply = ("apply", "-f", str(manifest))
    up.command(*apply)
    with Client(up.gateway) as client:
        for calls in (1, 2):
            assert client.infer("keep", {"x": row(1, 2, 3, 4)}, timeout=60).outputs["x"].tolist() == [[1, 2, 3, 4]]
            assert (code / "calls.log").read_text() == "called\n" * calls
            up.until_phase("keep", "Asleep")
    first = up.get("keep")["revision"]
    assert up.command(*apply).stdout == "default/keep unchanged\n"
    (code / "data.txt").write_text("by a person")
    assert up.command(*apply).stdout == "default/keep refreshed\n"
    up.until(lambda: up.get("keep")["revision"] not in (first, ""))
    up.until_phase("keep", "Asleep")
    (code / "data.txt").write_text("and edited")
    up.command("scale", "keep", "1")
    up.until(lambda: "(data.txt changed)" in str(up.get("keep")["conditions"]))
