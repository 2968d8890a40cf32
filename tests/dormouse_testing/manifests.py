"""Manifests for tests: small valid ones, and changes of them."""

import copy
from typing import Any

Data = dict[str, Any]

STATE: Data = {"input": "state", "output": "stateN", "shape": [2, -1, 128], "batchAxis": 1}


def manifest(spec: Data, name: str = "vad") -> Data:
    return {"apiVersion": "dormouse.dev/v1alpha1", "kind": "InferenceFunction", "metadata": {"name": name}, "spec": copy.deepcopy(spec)}


def onnx(**more: Any) -> Data:
    """A stateless function of the runtime onnx. A field that is None is left out."""
    return _manifest({"runtime": "onnx", "model": {"uri": "file://vad.onnx"}, **more})


def python(**more: Any) -> Data:
    return _manifest({"runtime": "python", "handler": "chat:Chat", **more})


def stateful(*states: Data, **more: Any) -> Data:
    """A stateful function of the runtime onnx: its states (one by default), and other fields of `sessions`."""
    return onnx(sessions={"states": [{**STATE, **state} for state in states or ({},)], **more})


def _manifest(spec: Data) -> Data:
    return manifest({key: item for key, item in spec.items() if item is not None})
