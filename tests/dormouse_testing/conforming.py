"""The functions that unmodified clients call, described once: laid down as files for one machine, or as objects for a cluster."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from dormouse.initial import manifest

from dormouse_testing import models, sequence_models

Manifest = dict[str, Any]
NAME = "conformance"
"""Of the ConfigMap with every model and the handlers' code."""

CODE = """
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
SERVED = ("double", "counter", "sequence", "three", "half", "echo", "text", "sleepy")
"""Ready or asleep before a client comes; `stopped` and `stuck` never are."""


def files(folder: Path) -> None:
    """Models, code and manifests in `folder`, for `dormouse up`."""
    for function in _functions(folder, lambda path: f"file://{path.relative_to(folder)}"):
        (folder / f"{function['metadata']['name']}.yaml").write_text(yaml.safe_dump(function))


def objects(folder: Path) -> list[Manifest]:
    """For `kubectl apply`; `folder` is for the models on their way into a ConfigMap."""
    functions = _functions(folder, lambda path: f"configmap://{NAME}" + ("" if path.is_dir() else f"/{path.name}"))
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.rglob("*") if path.is_file()}
    return [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "binaryData": data}, *functions]


def _functions(folder: Path, uri: Callable[[Path], str]) -> list[Manifest]:
    """`uri`: of a file or folder below `folder`."""
    made = {
        "double": models.double(folder / "double.onnx"),
        "counter": models.counter(folder / "counter.onnx", 1),
        "sequence": sequence_models.accumulate(folder / "sequence.onnx"),
        "three": models.three_outputs(folder / "three.onnx"),
        "half": models.identity(folder / "half.onnx", models.FLOAT16, ["n", 5]),
    }
    code = folder / "code"
    code.mkdir()
    (code / "echo.py").write_text(CODE)

    def handler(name: str, **spec: Any) -> Manifest:
        spec = {"runtime": "python", "handler": f"echo:{name.title()}", "model": {"uri": uri(code)}, **spec}
        return {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": name}, "spec": spec}

    stopped = yaml.safe_load(manifest("stopped", made["double"], uri(made["double"])))
    stopped["spec"]["replicas"] = 0
    functions = [
        *(yaml.safe_load(manifest(name, path, uri(path))) for name, path in made.items()),
        handler("echo"),
        handler("text"),
        handler("sleepy"),
        handler("stuck", timeouts={"hold": "1s"}),
        stopped,
    ]
    for function in functions:
        function["spec"]["scaleToZeroAfter"] = "5s"  # so that calls also find functions at zero
    return functions
