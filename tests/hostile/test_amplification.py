"""Small messages that would become large, and calls that workers die of: what becomes of everybody else's calls, and of memory."""

import contextlib
import re
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from dormouse_testing.up import DOUBLE, Up, children, missing, save_models, system

MIB = 1 << 20
INFER = "/inference.GRPCInferenceService/ModelInfer"
ATTACKS = {
    # 15 MiB each. The first is refused by the relay, before a worker hears of it; the others are well-formed for whoever reads no deeper.
    "inputs": b"\x2a\x02\x22\x00" * (15 * MIB // 4),
    "parameters": b"\x2a\x80\x80\xc0\x07" + b"\x22\x00" * (15 * MIB // 2),
    "elements": b"\x2a\x85\x80\xc0\x07\x2a\x80\x80\xc0\x07" + b"\x42\x00" * (15 * MIB // 2),
}
ENDED = "a worker's supervisor ended"
FATAL = """
    import ctypes, os, signal, time
    import dormouse
    class Mine(dormouse.Handler):
        inputs = [dormouse.Tensor("x", "FP32", [1])]
        outputs = [dormouse.Tensor("y", "FP32", [1])]
        def step(self, inputs, state, ctx):
            if inputs["x"][0] == 14:  # as where the kernel ends a whole container: its supervisor dies, too, and says nothing
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            if inputs["x"][0] == 13:
                ctypes.string_at(0)  # here and now: a signal would be for any thread, at any time
            time.sleep(0.5 if inputs["x"][0] == 2 else 0.02)
            return {"y": inputs["x"] * 2}
"""
MANIFEST = """
apiVersion: dormouse.dev/v1alpha1
kind: InferenceFunction
metadata: {name: fatal}
spec:
  runtime: python
  model: {uri: "file://handlers"}
  handler: mine:Mine
  replicas: 3
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    save_models(folder)
    (folder / "handlers").mkdir()
    (folder / "handlers" / "mine.py").write_text(textwrap.dedent(FATAL))
    (folder / "fatal.yaml").write_text(MANIFEST)
    (folder / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", "replicas: 1"))
    with system(folder) as started:
        started.wait_ready()
        started.until(lambda: [len(started.get(name)["workers"]) for name in ("double", "fatal")] == [1, 3])
        yield started


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("up")) as started:
        yield started


def workers(up: Up) -> Iterator[int]:
    """Their processes; a keeper of a lease, which is younger, comes and goes."""
    for pid in up.supervisors().values():
        with contextlib.suppress(OSError):  # it has ended
            yield from children(pid)[:1]


class Memory:
    """How much the relay and the workers grow at most, from now on."""

    def __init__(self, up: Up) -> None:
        self.pids = [up.part("agent"), *workers(up)]
        for pid in self.pids:
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._before = self._peaks()

    def grown(self) -> int:
        """Bytes, of the one that grew most."""
        return max(after - before for before, after in zip(self._before, self._peaks(), strict=True))

    def _peaks(self) -> list[int]:
        return [_peak(pid) for pid in self.pids]


def _peak(pid: int) -> int:
    """The most that a process has had, in bytes; of one that died of it, more than any."""
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024
    return 1 << 50


class Neighbour:
    """Another caller of the same function, one call after the other."""

    def __init__(self, address: str, function: str, x: float = 1) -> None:
        self._x = x
        self.longest = 0.0
        self.answered = 0
        self.failed: list[str] = []
        self._address, self._function = address, function
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Neighbour":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        x = np.full((1, 4) if self._function == "double" else 1, self._x, np.float32)
        with Client(self._address) as client:
            while not self._end.is_set():
                began = time.monotonic()
                try:
                    assert (client.infer(self._function, {"x": x}, timeout=300).outputs["y"] == 2 * self._x).all()
                    self.answered += 1
                except DormouseError as error:
                    self.failed.append(str(error))
                self.longest = max(self.longest, time.monotonic() - began)


def send(up: Up, message: bytes, function: str = "default/double") -> grpc.RpcError:
    with grpc.insecure_channel(up.gateway, options=[("grpc.max_send_message_length", -1)]) as channel:
        call = channel.unary_unary(INFER)
        with pytest.raises(grpc.RpcError) as caught:
            call(message, metadata=[("dormouse-function", function)], timeout=60)
        return caught.value


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_message_that_would_become_much_is_refused_and_costs_no_more_than_its_bytes(up: Up, attack: str) -> None:
    message = ATTACKS[attack]
    with Neighbour(up.gateway, "double") as neighbour:
        memory = Memory(up)
        refused = [send(up, message) for _ in range(3)]
    assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert re.search(r"at most \d+ are allowed", refused[0].details())
    assert memory.grown() < 8 * len(message)
    assert not neighbour.failed
    assert neighbour.answered > 0
    print(f"{attack}: grown {memory.grown() / MIB:.0f} MiB, the neighbour's longest call {neighbour.longest:.3f} s of {neighbour.answered}")


def test_without_the_count_two_megabytes_become_hundreds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    (tmp_path / "broken").mkdir()
    text = "from dormouse_core import wire\nwire.check = lambda message: None\nwire.routing = lambda message: message\n"
    (tmp_path / "broken" / "sitecustomize.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    (tmp_path / "up").mkdir()
    with running(tmp_path / "up") as broken:
        memory = Memory(broken)
        assert send(broken, ATTACKS["inputs"][: 2 * MIB]).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert memory.grown() > 100 * MIB


def test_a_call_that_workers_die_of_takes_few_of_them_and_no_neighbour(up: Up) -> None:
    before = up.log.count("crashed (SIGSEGV)")
    with Neighbour(up.gateway, "fatal") as one, Neighbour(up.gateway, "fatal") as two, Client(up.gateway) as client:
        with pytest.raises(DormouseError) as caught:
            client.infer("fatal", {"x": np.array([13], np.float32)}, timeout=60)
        before_it = one.answered, two.answered
        up.until(lambda: one.answered > before_it[0] and two.answered > before_it[1])
    assert caught.value.code is Code.INTERNAL
    said = re.match(
        r"([23]) workers died while this call ran in them, and it is not sent to another: worker default\.fatal-", caught.value.message
    )
    assert said, caught.value.message
    assert "crashed (SIGSEGV)" in caught.value.message
    up.until(lambda: up.log.count("crashed (SIGSEGV)") >= before + int(said[1]))
    assert up.log.count("crashed (SIGSEGV)") == before + int(said[1]), "the third where a neighbour's call ran beside it in both"
    assert not one.failed + two.failed
    assert min(one.answered, two.answered) > 0


def test_a_call_that_takes_the_supervisors_along_takes_three_workers_and_no_neighbour(up: Up) -> None:
    ended = up.log.count(ENDED)
    with Neighbour(up.gateway, "fatal") as one, Neighbour(up.gateway, "fatal") as two, Client(up.gateway) as client:
        with pytest.raises(DormouseError) as caught:
            client.infer("fatal", {"x": np.array([14], np.float32)}, timeout=60)
        said = re.match(
            r"(2 workers died .* after Envoy's first try failed|3 workers died)\b.*not sent to another: why they died", caught.value.message
        )
        assert said, caught.value.message
        # `dormouse up` notices a death after the caller has its answer; where three workers serve again none is still to be noticed.
        up.until(lambda: up.log.count(ENDED) >= ended + int(said[1][0]) and len(up.get("fatal")["workers"]) == 3)
        before = one.answered, two.answered
        up.until(lambda: one.answered > before[0] and two.answered > before[1])
    assert caught.value.code is Code.UNAVAILABLE
    # Envoy's try may have met nobody where the last test's workers had just died, and counts all the same (0173): then it is two.
    assert up.log.count(ENDED) - ended in {int(said[1][0]), 3}, caught.value.message
    assert not one.failed + two.failed
    print(f"neighbours' longest calls: {one.longest:.1f} s, {two.longest:.1f} s")


def kill(up: Up, times: int) -> list[str]:
    """Sends calls that take the supervisors along, one after the other: what is said of each."""
    said: list[str] = []
    with Client(up.gateway) as client:
        for _ in range(times):
            try:
                client.infer("fatal", {"x": np.array([14], np.float32)}, timeout=600)
                said.append("it was answered")
            except DormouseError as error:
                said.append(f"{error.code.name}: {error.message}")
    return said


def attacked(up: Up, times: int, together: int) -> tuple[list[str], int, list[Neighbour]]:
    """What many such callers are told, and how many workers died, beside two whose calls take half a second."""
    ended = up.log.count(ENDED)
    neighbours = [Neighbour(up.gateway, "fatal", x=2) for _ in range(2)]
    with neighbours[0], neighbours[1], ThreadPoolExecutor(together) as callers:
        said = [each for told in callers.map(lambda _: kill(up, times), range(together)) for each in told]
        before = [each.answered for each in neighbours]
        up.until(lambda: all(each.answered > count for each, count in zip(neighbours, before, strict=True)), 120)
    up.until(lambda: len(up.get("fatal")["workers"]) == 3, 120)
    return said, up.log.count(ENDED) - ended, neighbours


@pytest.mark.parametrize(
    ("times", "together"),
    [(1, 3), pytest.param(10, 1, marks=pytest.mark.slow), pytest.param(4, 3, marks=pytest.mark.slow)],
)
def test_who_sends_such_calls_again_and_again_takes_three_workers_for_each_and_no_neighbour(up: Up, times: int, together: int) -> None:
    said, ended, neighbours = attacked(up, times, together)
    for each in said:
        assert re.match(r"UNAVAILABLE: (2 workers died .* after Envoy's first try failed|3 workers died)\b", each), each
    assert not neighbours[0].failed + neighbours[1].failed
    assert ended <= 3 * times * together
    longest, answered = max(each.longest for each in neighbours), sum(each.answered for each in neighbours)
    print(f"{len(said)} calls, {ended} workers died; neighbours: {answered} calls, the longest {longest:.1f} s")
