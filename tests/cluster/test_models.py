"""Models from where they lie: fetched in the worker's own pod, whole and checked, by each scheme that can be had without a cloud.

gs:// takes the way of s3:// through one library, and no server for it can be had: tests/unit/test_worker_fetching.py has what is ours."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse_proto import inference_pb2_grpc
from dormouse_testing import models
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import Dormouse
from dormouse_testing.cluster.serving import Files, files
from dormouse_testing.workers import outputs_of, request_of

ROW = np.array([[1, 2, 3, 4]], np.float32)
LISTING = """<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>models</Name><KeyCount>2</KeyCount>
<IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
ENTRY = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag><Size>{}</Size></Contents>"


@pytest.fixture(scope="module")
def base(dormouse: Dormouse) -> Dormouse:
    if not dormouse.cluster.own:
        pytest.skip("pods of another cluster reach neither this process nor this disk")
    return dormouse


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model whose weights are in a second file: y = 3 x."""
    folder = tmp_path_factory.mktemp("weighted")
    models.scaled(folder / "model.onnx", 3.0, "weights/w.bin")
    return folder


@pytest.fixture
def server(base: Dormouse, tmp_path: Path) -> Iterator[Files]:
    with files(tmp_path) as found:
        base.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "trust"}, "data": {"ca": found.certificate.read_text()}})
        yield found


def function(name: str, uri: str, sha256: str | None = None, **workers: Any) -> dict[str, Any]:
    model = {"uri": uri, **({"sha256": sha256} if sha256 else {})}
    return {
        "apiVersion": "dormouse.dev/v1alpha1",
        "kind": "InferenceFunction",
        "metadata": {"name": name},
        "spec": {"runtime": "onnx", "model": model, "workers": workers, "timeouts": {"hold": "30s"}},
    }


def trusting(*more: dict[str, str]) -> dict[str, Any]:
    """`workers` that know the server's certificate."""
    return {
        "env": [{"name": "SSL_CERT_FILE", "value": "/trust/ca"}, *more],
        "volumes": [{"name": "trust", "mountPath": "/trust", "configMap": {"name": "trust"}}],
    }


def answer(dormouse: Dormouse, name: str) -> list[float]:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(dormouse.channel)
    metadata = [("dormouse-function", f"{dormouse.space}/{name}")]
    values: list[float] = outputs_of(stub.ModelInfer(request_of(name, x=ROW), timeout=60, metadata=metadata))["y"][0].tolist()
    return values


def test_https_with_a_digest(base: Dormouse, server: Files, tmp_path: Path) -> None:
    """The wrong digest is refused, and what is at fault is said; the right one serves."""
    body = models.double(tmp_path / "double.onnx").read_bytes()
    server.files["/double.onnx"] = body
    right, wrong = hashlib.sha256(body).hexdigest(), "0" * 64
    base.apply(function("web", f"{server.url}/double.onnx", wrong, **trusting()))
    message = base.reason("web", "ModelReady", "ModelInvalid", 60)
    assert right in message
    assert wrong in message
    with pytest.raises(grpc.RpcError) as refused:
        answer(base, "web")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    base.apply(function("web", f"{server.url}/double.onnx", right, **trusting()))
    base.phase("web", "Ready", "Asleep")
    assert answer(base, "web") == [2, 4, 6, 8]
    base.delete("web")


def test_an_unknown_certificate_is_said(base: Dormouse, server: Files, tmp_path: Path) -> None:
    server.files["/double.onnx"] = models.double(tmp_path / "double.onnx").read_bytes()
    base.apply(function("stranger", f"{server.url}/double.onnx"))
    assert "CERTIFICATE_VERIFY_FAILED" in base.reason("stranger", "ModelReady", "ModelUnavailable", 60)
    base.delete("stranger")


def test_s3_a_folder(base: Dormouse, server: Files, weighted: Path) -> None:
    """As much of S3 as a reader needs, on this machine."""
    names = ("model.onnx", "weights/w.bin")
    for name in names:
        server.files[f"/models/v1/{name}"] = (weighted / name).read_bytes()
    entries = "".join(ENTRY.format(f"v1/{name}", (weighted / name).stat().st_size) for name in names)
    server.files["/models"] = LISTING.format(entries).encode()
    options = {"AWS_ENDPOINT_URL": server.url, "AWS_SKIP_SIGNATURE": "true"}
    base.apply(function("bucket", "s3://models/v1/", **trusting(*({"name": key, "value": value} for key, value in options.items()))))
    base.phase("bucket", "Ready", "Asleep")
    assert answer(base, "bucket") == [3, 6, 9, 12]
    base.delete("bucket")


@pytest.fixture
def disk(base: Dormouse) -> Iterator[Path]:
    """Of a claim "weights"."""
    name = f"{base.space}-weights"
    base.cluster.volume(name)
    resources = {"requests": {"storage": "1Gi"}}
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": resources}
    base.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"}, "spec": spec})
    yield base.cluster.volumes[-1]
    base.cluster.kubectl("delete", "pvc", "weights", "-n", base.space)
    base.cluster.kubectl("delete", "pv", name)


def test_a_claim(base: Dormouse, disk: Path, weighted: Path) -> None:
    """7.O2: weights beside the model, on a volume that two functions share; it is mounted read-only."""
    shutil.copytree(weighted, disk / "net", copy_function=shutil.copyfile)
    (disk / "net").chmod(0o755)
    base.apply(function("claim-a", "pvc://weights/net/"), function("claim-b", "pvc://weights/net/model.onnx"))
    for name in ("claim-a", "claim-b"):
        base.phase(name, "Ready", "Asleep")
        assert answer(base, name) == [3, 6, 9, 12]
    pod = base.cluster.get("pods", "", base.space, "-l", "dormouse.dev/function=claim-a")[0]["spec"]
    assert [each["persistentVolumeClaim"]["readOnly"] for each in pod["volumes"] if "persistentVolumeClaim" in each] == [True]
    base.delete("claim-a", "claim-b")
    eventually("no pod holds the claim", lambda: not base.pods("claim-a") + base.pods("claim-b"), 60)


def test_the_image(base: Dormouse) -> None:
    """file:// lies below /models of the worker's own image."""
    base.apply(function("baked", "file://none.onnx", image=base.cluster.models_image))
    assert "none.onnx" in base.reason("baked", "ModelReady", "ModelUnavailable", 60)
    base.apply(function("baked", "file://filetype/model.onnx", image=base.cluster.models_image))
    base.phase("baked", "Ready", "Asleep")
    base.delete("baked")
