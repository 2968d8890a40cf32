"""Callers that step their own sessions, and an exact judge of what they are told.

Every step of `trail` carries a number of its own, and its state is the latest WIDTH numbers, which it answers with. So each answer says
which steps the session is made of: each acknowledged one once and in order, each of unknown outcome at most once, none that was refused as
not committed. A session that is deleted begins anew; nothing of an earlier life comes back.
"""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from dormouse.client import Client
from dormouse_core.errors import Code, DormouseError
from onnx import TensorProto, helper

WIDTH = 64
SHOWN = 60  # lines of a history that is printed


def save_trail(path: Path) -> None:
    """y = the latest WIDTH numbers that the session was given, 0 before the first."""
    ends = [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in (("from", 1), ("to", WIDTH), ("axis", 1))]
    nodes = [
        helper.make_node("Slice", ["s", "from", "to", "axis"], ["later"]),
        helper.make_node("Concat", ["later", "x"], ["t"], axis=1),
        helper.make_node("Identity", ["t"], ["y"]),
    ]
    ins, outs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name, size in tensors.items()]
        for tensors in ({"x": 1, "s": WIDTH}, {"y": WIDTH, "t": WIDTH})
    )
    graph = helper.make_graph(nodes, "g", ins, outs, ends)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Wrong(AssertionError):
    """A promise was broken; the text has the history."""


@dataclass
class Trail:
    """One session as its only caller knows it. `deletions`: how many were asked for; `deleted`: how many were told to be done."""

    name: str
    life: list[int] = field(default_factory=list)
    over: set[int] = field(default_factory=set)  # of earlier lives
    unknown: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    acked: int = 0
    lives: int = 0
    deletions: int = 0
    deleted: int = 0
    lines: list[str] = field(default_factory=list)

    def asked(self, number: int) -> int:
        """The lives that must have ended before this step runs."""
        self.lines.append(f"{number} is sent, {self.deleted} of {self.deletions} deletions are done")
        return self.deleted

    def failed(self, number: int, error: DormouseError) -> None:
        self.lines.append(f"{number}: {error.code.name}: {error.message}")
        no = error.code in (Code.RESOURCE_EXHAUSTED, Code.INVALID_ARGUMENT) or "is not committed" in error.message
        (self.refused if no else self.unknown).add(number)

    def answered(self, number: int, step: int, shown: list[int], ended: int) -> None:
        """`ended`: what `asked` said."""
        self.lines.append(f"{number}: step {step} of {shown}")
        if step != len(self.life) + 1 and step <= len(shown) and not set(shown) & set(self.life) and self.lives < self.deletions:
            self.over |= set(self.life)
            self.life, self.lives = [], self.lives + 1
        if self.lives < ended:
            self._wrong(f"{ended} deletions were done before it was sent, and it goes on with life {self.lives}")
        new = shown[len(shown) - min(step - len(self.life), WIDTH) :]
        if step <= len(self.life) or step - len(self.life) > WIDTH or (self.life + new)[-WIDTH:] != shown or len(shown) != min(step, WIDTH):
            self._wrong(f"the session is not {self.life[-WIDTH:]} ({len(self.life)} steps) and what followed")
        if new[-1] != number:
            self._wrong("it is not the last")
        for one in new[:-1]:
            if one not in self.unknown:
                kind = "refused as not committed" if one in self.refused else "not of unknown outcome"
                self._wrong(f"{one} is in it, which was {kind}")
        if set(new) & (self.over | set(self.life)) or len(set(new)) < len(new):
            self._wrong("a step counts twice")
        self.unknown -= set(new)
        self.life += new
        self.acked += 1

    def _wrong(self, why: str) -> None:
        raise Wrong("\n".join([f"{self.name}: {why}", *self.lines[-SHOWN:]]))


class Trails:
    """Callers of `function`, each of a session of its own, as fast as they are answered. `deadlines`, in turn, and `pause`, between steps:
    seconds. `wrong`: what was found; `failures`: what callers were told instead of an answer."""

    def __init__(
        self, gateway: str, callers: int, *, function: str = "trail", deadlines: tuple[float, ...] = (30.0,), pause: float = 0.005
    ) -> None:
        self.trails = [Trail(f"trail{n}") for n in range(callers)]
        self.failures: Counter[tuple[Code, str]] = Counter()
        self.wrong: list[Wrong] = []
        self._gateway = gateway
        self._function = function
        self._deadlines = deadlines
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._step, args=(trail,)) for trail in self.trails]

    @property
    def acked(self) -> list[int]:
        return [trail.acked for trail in self.trails]

    def delete(self, n: int, delete: Callable[[str], bool]) -> None:
        """`delete(session)`: whether it was said to be deleted."""
        trail = self.trails[n]
        trail.deletions += 1
        trail.lines.append("is to be deleted")
        if delete(f"/s:{trail.name}"):
            trail.deleted = trail.deletions
            trail.lines.append("is deleted")

    def _step(self, trail: Trail) -> None:
        number = 0
        with Client(self._gateway) as client:
            while not self._stop.wait(self._pause):
                number += 1
                ended = trail.asked(number)
                x = np.array([[number]], dtype=np.float32)
                try:
                    answer = client.infer(
                        self._function, {"x": x}, session=trail.name, timeout=self._deadlines[number % len(self._deadlines)]
                    )
                except DormouseError as error:
                    self.failures[error.code, error.message.partition("(")[0][:120]] += 1
                    trail.failed(number, error)
                    continue
                try:
                    trail.answered(number, answer.step, [int(one) for one in answer.outputs["y"][0] if one], ended)
                except Wrong as wrong:
                    self.wrong.append(wrong)
                    return

    def __enter__(self) -> "Trails":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)
