"""Parts in a machine of their own that has IPv6, as in a pod of an IPv6-only or dual-stack cluster: 0.0.0.0 answers both families."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import unavailable

ROOT = Path(__file__).resolve().parents[2]
SET_UP = "ip link set lo up && ip -6 addr add fd00::17/128 dev lo nodad && exec "
PROGRAM = """
import asyncio, subprocess, sys, time, urllib.request
import grpc
from dormouse_kit import metrics
from dormouse_operator.dialing import GrpcDialer
from dormouse_operator.kubernetes.health import Health
from dormouse_proto import inference_pb2, inference_pb2_grpc

HOSTS = ("[fd00::17]", "127.0.0.1")

def reads(address):
    with urllib.request.urlopen(f"http://{address}", timeout=10) as reply:
        return reply.status

async def main():
    if sys.argv[2:]:
        from dormouse_operator.kubernetes import health as without
        without.wildcard = metrics.wildcard = lambda host: host
    health = Health()
    await health.start(9090)
    for host in HOSTS:
        print("operator", host, await asyncio.to_thread(reads, f"{host}:9090/healthz"))
    await health.close()
    served = metrics.serve(9091, host="0.0.0.0")
    for host in HOSTS:
        print("agent", host, await asyncio.to_thread(reads, f"{host}:9091/metrics"))
    served.close()
    worker = subprocess.Popen([sys.executable, "-m", "dormouse_worker", "--standalone", sys.argv[1], "--listen", "0.0.0.0:9000"])
    try:
        for host in HOSTS:
            async with grpc.aio.insecure_channel(f"{host}:9000", options=[("grpc.enable_http_proxy", 0)]) as channel:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
                ready = await stub.ServerReady(inference_pb2.ServerReadyRequest(), timeout=60, wait_for_ready=True)
                print("worker", host, ready.ready)
            _, writer = await GrpcDialer()._connect(f"{host}:9000")
            writer.close()
            print("dialled", host)
    finally:
        worker.terminate()
        worker.wait(30)

asyncio.run(main())
"""


def test_every_part_that_listens_everywhere_answers_both_families(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    hosts = ("[fd00::17]", "127.0.0.1")
    expected = {f"operator {host} 200" for host in hosts} | {f"agent {host} 200" for host in hosts}
    assert set(done.stdout.splitlines()) == expected | {f"worker {host} True" for host in hosts} | {f"dialled {host}" for host in hosts}


def test_negative_control_an_ipv4_wildcard_refuses_ipv6(tmp_path: Path) -> None:
    assert "Connection refused" in run(tmp_path, "without").stderr


def run(tmp_path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    model = ROOT / "examples" / "vad" / "model.onnx"
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        unavailable("a network namespace with IPv6 needs root, unshare and ip")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = ["unshare", "--net", "sh", "-c", f'{SET_UP} "$0" "$@"', sys.executable, str(program), str(model), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
