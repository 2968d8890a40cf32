"""A caller that asks a worker for large replies and never reads them: its memory is the function's, and others' calls need it."""

import asyncio
import contextlib
import os
import shutil
import struct
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse_core import limits
from dormouse_kit.envoyadmin import admin
from dormouse_proto import inference_pb2
from dormouse_testing import models
from dormouse_testing.hostile import Attacker, headers, message
from dormouse_testing.workers import WorkerProcess

SIZE, CALLS = 4_200_000, 48
"""Together more than `ROOM`, from which on some are dropped."""
ROOM = limits.RESET_HEAP_FRACTION * limits.REPLY_MEMORY_BYTES
LOOKS = 20
"""In a row with room: all replies are there."""
PENDING, RESET = "http2.pending_send_bytes", "envoy.overload_actions.reset_high_memory_stream.count"


def in_container(folder: Path, memory: int) -> list[str]:
    """Words before a command that will find itself in a container with so many bytes of memory; nobody holds it to them."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        unavailable("a container of its own needs root and `unshare`")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{memory}\n")
    return ["unshare", "--mount", "sh", "-ec", f'mount --bind {folder} /sys/fs/cgroup; exec "$@"', "sh"]


def asking() -> inference_pb2.ModelInferRequest:
    """For zeros, as many as it says."""
    call = inference_pb2.ModelInferRequest(model_name="zeros", raw_input_contents=[struct.pack("<q", SIZE // 4)])
    call.inputs.add(name="n", datatype="INT64", shape=[1])
    return call


class Held:
    """What a worker's Envoy says of replies."""

    def __init__(self, worker: WorkerProcess, socket: Path) -> None:
        self.worker = worker
        self._socket = str(socket)

    async def figure(self, name: str) -> int:
        text = await admin(self._socket, "GET", f"/stats?filter=^{name.replace('.', '%5C.')}$")
        return int(text.rpartition(":")[2])


@contextlib.asynccontextmanager
async def attacked(folder: Path, under: Sequence[str] = ()) -> AsyncIterator[Held]:
    zeros = models.write(
        folder / "zeros.onnx", [models.node("ConstantOfShape", ["n"], ["y"])], [("n", models.INT64, [1])], [("y", models.FLOAT, ["m"])]
    )
    socket = folder / "envoy.sock"
    with contextlib.ExitStack() as ends:
        arguments = ("--standalone", str(zeros), "--name", "zeros", "--admin", str(socket))
        worker = await asyncio.to_thread(ends.enter_context, WorkerProcess(folder, *arguments, under=under))
        held = Held(worker, socket)
        attacker = Attacker(worker.address, reads=False)
        ends.callback(attacker.close)
        block, body = headers(), message(asking())
        await attacker.many(CALLS, lambda: attacker.call(block, body, end=True))
        yield held


async def test_replies_that_nobody_reads_are_dropped_where_they_take_a_workers_memory(tmp_path: Path) -> None:
    """And who reads gets the answer."""
    own = tmp_path / "cgroup"
    async with attacked(tmp_path, in_container(own, 8 * limits.REPLY_MEMORY_BYTES)) as held:
        looks = 0
        async with asyncio.timeout(60):
            while not await held.figure(RESET) or looks < LOOKS:
                looks = looks + 1 if await held.figure(PENDING) < ROOM else 0
                await asyncio.sleep(0.1)
        with held.worker.client() as client:
            reply = await asyncio.to_thread(client.stub.ModelInfer, asking(), timeout=60)
        assert len(reply.raw_output_contents[0]) == SIZE


@pytest.mark.slow
async def test_negative_control_with_more_memory_they_stay_for_as_long_as_their_caller(tmp_path: Path) -> None:
    async with attacked(tmp_path, in_container(tmp_path / "cgroup", 32 * limits.REPLY_MEMORY_BYTES)) as held:
        async with asyncio.timeout(60):
            while await held.figure(PENDING) < 0.95 * CALLS * SIZE:  # noqa: ASYNC110 - Envoy's figure
                await asyncio.sleep(0.1)
        await asyncio.sleep(3.0)
        assert await held.figure(PENDING) >= 0.95 * CALLS * SIZE
        assert await held.figure(RESET) == 0
