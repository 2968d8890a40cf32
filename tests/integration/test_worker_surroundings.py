"""What a handler finds around it is what a script finds; what it prints, logs and raises is in the log with the function's name."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.workers import WorkerProcess, outputs_of, request_of, spec_file

SEEN = """
    import json, multiprocessing, os, signal, subprocess, sys
    def seen():
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if line.startswith("Sig"))
        return {
            "executable": sys.executable, "prefix": sys.prefix, "base": sys._base_executable,
            "cwd": os.getcwd(), "blocked": status["SigBlk"], "ignored": status["SigIgn"],
            "path": [path for path in sys.path if path not in ("", os.getcwd(), os.path.dirname(__file__))],
            "environment": {name: value for name, value in sorted(os.environ.items()) if name not in ("LC_CTYPE", "PWD", "SHLVL", "_")},
        }
    PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import seen, json; print(json.dumps(seen.seen()))"
    def run(*command):
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    def all_of_it(folder):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            spawned = pool.apply(seen)
        ours = run(sys.executable, "-c", PROGRAM, folder)
        other = run("/usr/bin/env", "-i", OTHER, "-c", "import json, sys; print(json.dumps(list(sys.version_info[:3])))")
        inherited = run(OTHER, "-c", "import json, sys; print(json.dumps([list(sys.version_info[:3]), sys.prefix, sys.path[1:]]))")
        files = subprocess.run(["ls", "/proc/self/fd"], close_fds=False, capture_output=True, text=True).stdout.split()
        tool = subprocess.run("kill -TERM $$; sleep 5", shell=True).returncode
        pipe = subprocess.run("yes | head -1", shell=True, capture_output=True, text=True).stdout
        return {
            "ours": ours, "spawned": spawned, "here": {k: v for k, v in seen().items() if k not in ("blocked", "ignored")},
            "other": other, "inherited": inherited, "files": files, "tool": tool, "pipe": pipe,
        }
"""
HANDLER = """
    import os, pathlib, sys
    import dormouse, seen
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "BYTES", [1])]
        def step(self, inputs, state, ctx):
            import json
            return {"y": [json.dumps(seen.all_of_it(str(ctx.model))).encode()]}
"""
OTHER = "/usr/bin/python3"
Start = Callable[..., WorkerProcess]


@pytest.fixture
def start(tmp_path: Path, etcd_server: EtcdServer, installation: str) -> Iterator[Start]:
    """start(text of the handler's module) -> a ready worker."""
    running: list[WorkerProcess] = []

    def begin(text: str) -> WorkerProcess:
        (tmp_path / "handlers").mkdir(exist_ok=True)
        (tmp_path / "handlers" / "mine.py").write_text(textwrap.dedent(text))
        spec = {"runtime": "python", "model": {"uri": "file://handlers"}, "handler": "mine:Mine"}
        worker = WorkerProcess(tmp_path, "--spec", str(spec_file(tmp_path, spec, etcd_server.endpoint, installation=installation)))
        running.append(worker)
        return worker.__enter__()

    yield begin
    for worker in running:
        worker.kill()


def call(worker: WorkerProcess, value: float = 1.0) -> np.ndarray:
    with worker.client() as client:
        return outputs_of(client.infer(request_of("fn", x=np.array([value], np.float32)), timeout=60))["y"]


def test_a_handler_finds_what_a_script_finds(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """11.O4. Its own interpreter again, another one, a system's tool; environment, modules, folder, open files, signals."""
    if not Path(OTHER).exists():
        pytest.skip(f"no {OTHER}")
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # ignored where a shell started the tests in the background, or by nohup
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "theirs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    folder = tmp_path / "handlers"
    folder.mkdir()
    (folder / "seen.py").write_text(textwrap.dedent(SEEN).replace("OTHER", repr(OTHER)))
    script = "import sys, json; sys.path.insert(0, sys.argv[1]); import seen; print(json.dumps(seen.all_of_it(sys.argv[1])))"
    ran = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True, timeout=60)
    expected: dict[str, Any] = json.loads(ran.stdout)
    found: dict[str, Any] = json.loads(bytes(call(start(HANDLER))[0]))
    assert found == expected


def test_without_restoring_another_python_runs_as_ours(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import dormouse_worker.process.surroundings as module\nmodule.restore = lambda *_: None\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    worker = start("""
        import os, subprocess, sys
        import dormouse
        class Mine(dormouse.Handler):
            inputs = [dormouse.Tensor("x", "FP32", [1])]
            outputs = [dormouse.Tensor("y", "BYTES", [1])]
            def step(self, inputs, state, ctx):
                return {"y": [f"{sys.executable} {sorted(os.environ)}".encode()]}
    """)
    text = bytes(call(worker)[0]).decode()
    assert "LD_PRELOAD" in text
    assert not text.startswith(sys.executable + " ")


LOUD = """
    import ctypes, logging, os, subprocess, sys, threading, warnings
    import dormouse
    print("imported")
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "FP32", [1])]
        def step(self, inputs, state, ctx):
            value = inputs["x"][0]
            if value < 0:
                raise KeyError("the reason")
            if value > 1000:
                for n in range(int(value)):
                    print("line", n)
                return {"y": inputs["x"]}
            print("to stdout")
            print("to stderr", file=sys.stderr)
            print("no end", end="", flush=True)
            logging.getLogger("mine").warning("through logging")
            logging.getLogger("mine").info("at info")
            warnings.warn("a warning")
            thread = threading.Thread(target=print, args=("from a thread",))
            thread.start()
            thread.join()
            os.write(1, b"from native code\\n")
            subprocess.run(["echo", "from a child"])
            return {"y": inputs["x"]}
"""


def test_what_a_handler_prints_logs_and_raises_is_in_the_log(start: Start) -> None:
    worker = start(LOUD)
    call(worker)
    with pytest.raises(grpc.RpcError) as raised:
        call(worker, -1)
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "the reason" in raised.value.details()
    wanted = [
        r"\| imported", r"\| to stdout", r"\| to stderr", r"\| no endfrom a thread",
        r"\| from native code", r"\| from a child",
        r"warning mine: through logging", r"warning py\.warnings: .*mine\.py:\d+: UserWarning: a warning.*",
        r'warning a step raised error=.*the reason.* trace="Traceback .*mine\.py.*, line 11, in step.*',
    ]  # fmt: skip
    limit = time.monotonic() + 60
    while missing := [text for text in wanted if not re.search(rf"^\S+Z worker tests/fn  {text}$", worker.log, re.MULTILINE)]:
        assert time.monotonic() < limit, (missing, worker.log)
        time.sleep(0.05)
    assert "at info" not in worker.log
    lines = worker.log.splitlines()
    assert [line for line in lines if not re.match(r"\S+Z (worker tests/fn|supervisor)  ", line)] == []


def test_the_level_of_the_log_is_a_setting(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DORMOUSE_LOG_LEVEL", "info")
    worker = start(LOUD)
    call(worker)
    until(lambda: re.search(r"worker tests/fn  info mine: at info$", worker.log, re.MULTILINE))


def test_a_flood_stops_nobody(start: Start) -> None:
    """200,000 lines at once: the step ends, the worker lives, the last lines are there or counted as dropped."""
    worker = start(LOUD)
    child = worker.child
    assert call(worker, 200_000).tolist() == [200_000]
    assert call(worker).tolist() == [1]
    assert worker.child == child

    def told() -> int:
        lines = len(re.findall(r"\| line \d+$", worker.log, re.MULTILINE))
        return lines + sum(int(number) for number in re.findall(r"\((\d+) lines were printed faster", worker.log))

    limit = time.monotonic() + 60
    while told() < 200_000:
        assert time.monotonic() < limit
        time.sleep(0.2)


EVIL = """
    import asyncio, logging, logging.config, multiprocessing, os, subprocess, sys, time
    import dormouse
    from dormouse_core.errors import DormouseError
    class NoText(DormouseError):
        def __init__(self):
            pass
    class Evil(Exception):
        def __str__(self):
            raise SystemExit(3)
        def __getattribute__(self, name):
            raise KeyboardInterrupt(name)
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "FP32", [1])]
        {kind} step(self, inputs, state, ctx):
            value = inputs["x"][0]
            if value == 1:
                raise Evil()
            if value == 8:
                raise NoText()
            if value == 2:
                sys.stdout.close()
                sys.stderr = None
                logging.basicConfig(force=True, level=logging.CRITICAL)
                logging.config.dictConfig(dict(version=1))
                logging.disable(logging.CRITICAL)
            if value == 3:
                asyncio.get_running_loop().call_soon(sys.exit, 7)
            if value == 4:
                asyncio.get_running_loop().stop()
            if value == 5 and not os.fork():
                time.sleep(600)
            if value == 6:
                sys.pool = multiprocessing.get_context("fork").Pool(1)
                subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600 & wait; wait"], start_new_session=True)
            return dict(y=inputs["x"])
"""


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_a_handler_raises_ends_its_call_whatever_its_own_methods_do(start: Start, kind: str) -> None:
    """And is in the log, however the handler sets up logging and its streams."""
    worker = start(EVIL.format(kind=kind))
    child = worker.child
    for calls in (1, 2):
        with pytest.raises(grpc.RpcError) as raised:
            call(worker, 1)
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert raised.value.details() == "Evil, which has no text: its __str__ raises"
        until(lambda: len(re.findall(r'worker tests/fn  warning a step raised error="Evil, .* trace=".*mine\.py', worker.log)) == calls)  # noqa: B023
        assert call(worker, 2).tolist() == [2]
    with pytest.raises(grpc.RpcError, match="NoText: "):
        call(worker, 8)
    assert worker.child == child


@pytest.mark.parametrize(("value", "said"), [(3, 'event loop failed error="SystemExit: 7"'), (4, "event loop was stopped")])
def test_a_worker_whose_event_loop_is_ended_ends_at_once(start: Start, value: float, said: str) -> None:
    """It would look like one whose interpreter is held by a step that may run, and be kept for as long as that."""
    worker = start(EVIL.format(kind="async def"))
    child = worker.child
    with contextlib.suppress(grpc.RpcError):
        call(worker, value)
    until(lambda: worker.children[:1] not in ([], [child]), 10.0)
    until(lambda: said in worker.log)
    until(lambda: worker.log.count("worker ready") == 2, 60)


def test_no_process_that_a_handler_left_behind_outlives_the_worker_or_holds_its_port(start: Start) -> None:
    """One that was forked had the worker's listener, and took connections that nobody answers."""
    worker = start(EVIL.format(kind="def"))
    for value in (5, 6):
        call(worker, value)
    child = worker.child
    until(lambda: len(descendants(child)) == 4)
    left = descendants(child)
    ours = {os.readlink(f"/proc/{child}/fd/{fd}") for fd in listening(child, worker.port)}
    assert ours
    for pid in left:
        assert not ours & links(pid)
    os.kill(child, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))
    until(lambda: worker.log.count("worker ready") == 2, 60)
    for _ in range(10):
        assert call(worker, 7).tolist() == [7]
    found = re.search(r"(\d) processes that worker \S+ had left behind were ended", worker.log)
    assert found, worker.log
    assert 2 <= int(found[1]) <= 4, "a pool's process, and one whose parent has ended, may end by themselves"


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in map(int, (task / "children").read_text().split()):
                    found += [child, *descendants(child)]
    return found


def links(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(os.readlink(entry))
    return found


def listening(pid: int, port: int) -> set[int]:
    """Its files that are sockets which listen at the port."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    return {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(entry) in sockets}


def test_a_handler_that_cannot_be_imported_says_where(tmp_path: Path, start: Start) -> None:
    with pytest.raises(AssertionError):
        start("import dormouse\nraise RuntimeError('not today')\n")
    log = next(tmp_path.glob("*.log")).read_text()
    assert re.search(r'worker tests/fn  warning the worker cannot start .*not today.*trace="Traceback.*mine\.py.*line 2', log), log
