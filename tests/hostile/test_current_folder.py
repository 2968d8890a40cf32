"""Somebody else's folder: `dormouse up .` runs none of its modules, and a handler's folder replaces none of ours."""

import re
import subprocess
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dormouse import parts
from dormouse.supervisors import worker_command
from dormouse_kit.processes import python
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.up import DOUBLE, Up, row, save_models
from dormouse_testing.workers import Client, WorkerProcess, outputs_of, request_of, spec_file

PLANTED = (
    "yaml",
    "json",
    "asyncio",
    "grpc",
    "numpy",
    "msgspec",
    "google",
    "envoy",
    "uvloop",
    "aetcd",
    "onnxruntime",
    "dormouse_core",
    "wave",
)
"""Of the standard library, of what is installed, and of ours."""
ROOT = Path(__file__).resolve().parents[2]


def plant(folder: Path) -> Path:
    """Modules that say when they are imported. Where they say it."""
    mark = folder / "imported"
    for name in PLANTED:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r} + ' ')\n")
    return mark


def commands(folder: Path) -> list[list[str]]:
    """The beginning of each command of `dormouse up` that starts a Python."""
    ports = parts.choose(0)
    gateways = (parts.gateway(module, ["x:1"], folder, ports, "i", 1) for module in ("dormouse_gateway", "dormouse_gateway.envoy"))
    all_of_it = [*gateways, parts.operator(["x:1"], 1, folder, ports, folder, "i", ""), worker_command("i", folder, folder, folder)]
    return [command[: len(python("m"))] for command in all_of_it]


def test_up_imports_nothing_from_the_current_folder(tmp_path: Path) -> None:
    """The whole system, in the folder, with a call, so that a worker runs too."""
    save_models(tmp_path)
    (tmp_path / "double.manifest.yaml").write_text(DOUBLE)
    mark = plant(tmp_path)
    up = Up(tmp_path, program=("-P", "-m", "dormouse.main"), cwd=tmp_path)
    try:
        up.wait_ready()
        with Client(up.gateway) as client:
            assert outputs_of(client.infer(request_of("double", x=row(1, 2, 3, 4)), timeout=90))["y"].tolist() == [[2, 4, 6, 8]]
        assert up.stop() == 0
    finally:
        up.close()
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize("number", range(4))
def test_negative_control_without_the_flag_each_part_would(tmp_path: Path, number: int) -> None:
    mark = plant(tmp_path)
    command = [*commands(tmp_path)[number], "--help"]
    assert "-P" in command
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=90, check=True)
    assert not mark.exists()
    command.remove("-P")
    subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=90, check=False)
    assert mark.exists()


def test_no_command_of_ours_runs_a_module_beside_the_current_folders() -> None:
    """Also the chart's and the pods': every `-m` of a list of words has its `-P`."""
    sources = [path for part in ("cli", "kit", "operator", "gateway", "worker") for path in (ROOT / part).rglob("*.py")]
    found = 0
    for path in [*sources, *(ROOT / "deploy").rglob("*.yaml")]:
        for line in path.read_text().splitlines():
            words = re.sub(r'[][",]', " ", line).split()
            if re.search(r"(\[|, )\"?-[mc]\"?[],]", line):
                found += 1
                assert {"-P", "-I"} & set(words), f"{path}: {line}"
    assert found > 5


# ------------------------------------------------------------------------------------------------------------------- a handler's folder

Start = Callable[[str], WorkerProcess]
HANDLER = """
    import dormouse, utils, helpers.numbers, grpc, wave
    from helpers import more
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "BYTES", [4])]
        def step(self, inputs, state, ctx):
            import late
            return {"y": [utils.WHO, helpers.numbers.WHO, more.WHO, late.WHO]}
"""
FILES = {
    "utils.py": "WHO = b'utils'",
    "late.py": "WHO = b'late'",
    "helpers/__init__.py": "",
    "helpers/numbers.py": "WHO = b'numbers'",
    "helpers/more.py": "from .numbers import WHO as BEFORE\nWHO = b'more of ' + BEFORE",
}


@pytest.fixture
def worker(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Callable[[str, str], WorkerProcess]:
    """worker(module's name, its text): not started; FILES and the planted modules lie beside it."""

    def make(name: str, text: str) -> WorkerProcess:
        folder = tmp_path / "handlers"
        (folder / "helpers").mkdir(parents=True)
        plant(folder)
        for path, content in {**FILES, f"{name}.py": textwrap.dedent(text)}.items():
            (folder / path).write_text(content)
        spec = {"runtime": "python", "model": {"uri": "file://handlers"}, "handler": f"{name}:Mine"}
        return WorkerProcess(tmp_path, "--spec", str(spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)))

    return make


def call(running: WorkerProcess) -> list[bytes]:
    with running.client() as client:
        return list(outputs_of(client.infer(request_of("fn", x=np.array([1], np.float32)), timeout=90))["y"])


def test_a_handlers_folder_replaces_no_module_and_its_own_are_found(worker: Callable[[str, str], WorkerProcess], tmp_path: Path) -> None:
    """Several files, a package, one that is imported in a step; `utils`, which is nobody else's."""
    with worker("mine", HANDLER) as running:
        assert call(running) == [b"utils", b"numbers", b"more of numbers", b"late"]
        log = (tmp_path / "test.log").read_text()
    assert not (tmp_path / "handlers" / "imported").exists()
    assert "are hidden by others of the same names" in log
    assert "json is the standard library's" in log


def test_negative_control_in_front_it_would_replace_them(
    worker: Callable[[str, str], WorkerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    patch = "import sys, dormouse_worker.runtimes.own as own\nown.search = lambda folder: sys.path.insert(0, str(folder))\n"
    (broken / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", str(broken))
    running = worker("mine", HANDLER)
    running.start()
    try:
        limit = time.monotonic() + 60
        while not (tmp_path / "handlers" / "imported").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
    finally:
        running.kill()


def test_a_handler_with_a_name_that_is_taken_is_told_so(worker: Callable[[str, str], WorkerProcess], tmp_path: Path) -> None:
    running = worker("queue", "import dormouse\nclass Mine(dormouse.Handler): ...\n")
    running.start()
    assert running.process is not None
    assert running.process.wait(90) == 1
    assert "the module queue is the standard library's: rename the handler's own" in running.reason.read_text()
