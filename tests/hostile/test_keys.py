"""A worker's store user may write any key below its function's two prefixes: bytes that are no text, other scripts' digits, numbers without
end. It harms its own function at most: every part goes on, also one that is started with those keys there, and neighbours are answered."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.keys import Function, Keys
from dormouse_core.seams import Put, Txn
from dormouse_kit.etcd import EtcdStore
from dormouse_proto import state_pb2
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, save_models, system

STRANGE = ("\udcff", "²", "٣", "9" * 5000, "-1", " 1", "01", "\x00", "a/b/c", "")
PARTS = ("operator", "agent")
ENDED = "a part ended and is started again"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    save_models(folder)
    (folder / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", "replicas: 1"))
    (folder / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", "replicas: 0"))  # what sleeps is swept by the leader
    with system(folder) as started:
        started.wait_ready()
        started.until(lambda: len(started.get("double")["workers"]) == 1)
        yield started


def write(up: Up) -> int:
    """Every strange key below each prefix that a function's user may write. How many."""
    keys = Keys("local")

    async def main() -> int:
        store = EtcdStore([up.store])
        entries = (await store.list(keys.functions)).items
        [uid] = [state_pb2.FunctionEntry.FromString(item.value).uid for item in entries if item.key.endswith("/total")]
        f = Function("default", "total", uid)
        prefixes = (keys.workers(f), keys.shards(f), keys.moves(f), keys.floors(f), keys.states(f), keys.states(f, 1), keys.quarantines(f))
        count = 0
        for prefix in (*prefixes, keys.map(f), keys.data(f)):
            for name in STRANGE:
                for value in (b"", b"\xff\xff"):
                    await store.txn(Txn((), (Put(prefix + name, value),)))
                count += 1
        await store.close()
        return count

    return asyncio.run(main())


def answered(up: Up) -> bool:
    with Client(up.gateway) as client:
        return bool((client.infer("double", {"x": np.ones((1, 4), np.float32)}, timeout=60).outputs["y"] == 2).all())


def test_whatever_key_a_worker_writes_every_part_goes_on(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        before = {part: up.part(part) for part in PARTS}
        assert write(up) == 90
        for _ in range(20):
            assert answered(up)
        up.until(lambda: "expired sessions could not be removed" in up.log or up.log.count("cannot be read") > 10)
        assert {part: up.part(part) for part in PARTS} == before
        assert ENDED not in up.log
        for part in PARTS:
            os.kill(before[part], signal.SIGKILL)
        up.until(lambda: all(up.part(part) != before[part] for part in PARTS))
        up.until(lambda: up.command("get", "double", check=False).returncode == 0)
        assert answered(up), "by an agent that was started with those keys there"
        after = {part: up.part(part) for part in PARTS}
        assert up.command("scale", "double", "2").returncode == 0
        up.until(lambda: len(up.get("double")["workers"]) == 2)
        assert {part: up.part(part) for part in PARTS} == after
        assert "Traceback" not in up.log


def test_negative_control_where_a_key_must_be_text_one_ends_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    text = "from dormouse_kit.etcd import messages\nmessages.text = lambda key: key.decode()\n"
    (tmp_path / "broken" / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "up").mkdir()
    with running(tmp_path / "up") as up:
        write(up)
        up.until(lambda: ENDED in up.log)
