"""The whole system with functions of every kind, for clients that know nothing of Dormouse."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import unavailable
from dormouse.initial import manifest
from dormouse_testing import models, sequence_models
from dormouse_testing.up import Up, missing, system

ECHO = """
import asyncio
import time

import dormouse

TYPES = ["BYTES", "FP16", "BF16", "INT64", "BOOL"]

class Echo(dormouse.Handler):
    inputs = [dormouse.Tensor(t.lower(), t, [-1], optional=True) for t in TYPES]
    outputs = [dormouse.Tensor(t.lower() + "_out", t, [-1]) for t in TYPES]

    def step(self, inputs, state, ctx):
        return {t.lower() + "_out": inputs.get(t.lower(), []) for t in TYPES}

class Text(dormouse.Handler):
    inputs = [dormouse.Tensor("bytes", "BYTES", [-1])]
    outputs = [dormouse.Tensor("bytes_out", "BYTES", [-1])]

    def step(self, inputs, state, ctx):
        return {"bytes_out": inputs["bytes"]}

class Sleepy(dormouse.Handler):
    inputs = [dormouse.Tensor("seconds", "FP32", [1])]
    outputs = [dormouse.Tensor("slept", "FP32", [1])]

    async def step(self, inputs, state, ctx):
        await asyncio.sleep(float(inputs["seconds"][0]))
        return {"slept": inputs["seconds"]}

class Stuck(dormouse.Handler):
    inputs = [dormouse.Tensor("x", "FP32", [-1, 1])]
    outputs = [dormouse.Tensor("y", "FP32", [-1, 1])]

    def setup(self, ctx):
        time.sleep(600)

    def step(self, inputs, state, ctx):
        return {"y": inputs["x"]}
"""


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("conformance")
    made = {
        "double": models.double(folder / "double.onnx"),
        "counter": models.counter(folder / "counter.onnx", 1),
        "sequence": sequence_models.accumulate(folder / "sequence.onnx"),
        "three": models.three_outputs(folder / "three.onnx"),
        "half": models.identity(folder / "half.onnx", models.FLOAT16, ["n", 5]),
    }
    (folder / "code").mkdir()
    (folder / "code" / "echo.py").write_text(ECHO)
    for name, path in made.items():
        write(folder, yaml.safe_load(manifest(name, path, f"file://{path.name}")))
    for name, handler in (("echo", "echo:Echo"), ("text", "echo:Text"), ("sleepy", "echo:Sleepy")):
        spec = {"runtime": "python", "handler": handler, "model": {"uri": "file://code"}}
        write(folder, {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": name}, "spec": spec})
    stopped = yaml.safe_load(manifest("stopped", made["double"], "file://double.onnx"))
    stopped["spec"]["replicas"] = 0
    write(folder, stopped)
    spec = {"runtime": "python", "handler": "echo:Stuck", "model": {"uri": "file://code"}, "timeouts": {"hold": "1s"}}
    write(folder, {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": "stuck"}, "spec": spec})
    with system(folder) as started:
        started.wait_ready()
        for name in (*made, "echo", "text", "sleepy"):
            started.until_phase(name, "Ready", "Asleep")
        yield started


def write(folder: Path, data: dict[str, object]) -> None:
    """With a short way to sleep, so that calls also find functions at zero."""
    data["spec"] |= {"scaleToZeroAfter": "5s"}  # type: ignore[operator]
    (folder / f"{data['metadata']['name']}.yaml").write_text(yaml.safe_dump(data))  # type: ignore[index]
