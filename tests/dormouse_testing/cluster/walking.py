"""Sessions that are walked step by step at one gateway, and whether what was answered can be the truth: each acknowledged step counted
once, whoever asked for it.

Also a program, `python -m dormouse_testing.cluster.walking ADDRESS NAMESPACE FUNCTION SESSION…`, for a caller in the network of one node:
it says what it sees, a line of JSON each, until its input ends.
"""

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import Dormouse
from dormouse_testing.cluster.layout import ROOT, Node

PAUSE = 0.5  # seconds between the steps of a session: 20 calls/s of ten
PATIENCE = 120.0  # seconds of one try
SHORT_PATIENCE = 5.0  # of the program's


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """One step: when its answer came, in monotonic seconds of this machine, and the session's total after it."""

    session: str
    at: float
    total: int


@dataclass(frozen=True, slots=True)
class Failed:
    """One try, or with `given_up` a step of which nobody can say whether it counts."""

    session: str
    at: float
    text: str
    given_up: bool = False


Seen = Acknowledged | Failed


class Walk:
    """What was seen, in the order in which it was."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    @property
    def answers(self) -> list[Acknowledged]:
        return [each for each in self.seen if isinstance(each, Acknowledged)]

    @property
    def failures(self) -> list[Failed]:
        return [each for each in self.seen if isinstance(each, Failed)]

    def between(self, begin: float, end: float = float("inf")) -> list[Acknowledged]:
        return [each for each in self.answers if begin <= each.at < end]

    def gap(self) -> float:
        """The longest time without an answer of anybody."""
        return _gap([each.at for each in self.answers])

    def longest(self) -> float:
        """The longest time without an answer of one session."""
        return max(_gap(times) for times in self._times().values())

    def rises(self) -> None:
        last: dict[str, int] = {}
        for each in self.answers:
            assert each.total > last.get(each.session, 0), f"{each.session}: {each.total} after {last.get(each.session, 0)}"
            last[each.session] = each.total

    def _times(self) -> dict[str, list[float]]:
        times: dict[str, list[float]] = {}
        for each in self.answers:
            times.setdefault(each.session, []).append(each.at)
        return times


def _gap(times: list[float]) -> float:
    return max((after - before for before, after in itertools.pairwise(sorted(times))), default=0.0)


def totals(*walks: Walk) -> dict[str, tuple[int, int]]:
    """session -> the least and the most that it can count now. AssertionError where two steps were answered with one total, which is a
    fork, where a later step was answered with less, or a total is more than what was asked for can make."""
    found = {}
    for walk in walks:
        walk.rises()
    for session in sorted({each.session for walk in walks for each in walk.seen}):
        answered = sorted(each.total for walk in walks for each in walk.answers if each.session == session)
        unknown = sum(each.given_up for walk in walks for each in walk.failures if each.session == session)
        twice = [before for before, after in itertools.pairwise(answered) if before == after]
        assert not twice, f"{session}: {twice} were each answered to two steps"
        most = len(answered) + unknown
        assert not answered or answered[-1] <= most, (
            f"{session}: {answered[-1]} found after {len(answered)} steps and {unknown} unknown ones"
        )
        found[session] = (max([len(answered), *answered]), most)
    return found


class Walking(Walk):
    """Walks `sessions` of a function in threads of its own, until it is closed. `again`: a step that fails is sent again under its key
    until it is answered, nobody can say whether it ran (ABORTED), or the end. `timeout`: of one try."""

    def __init__(
        self,
        dormouse: Dormouse,
        name: str,
        sessions: Sequence[str],
        *,
        again: bool = False,
        timeout: float = PATIENCE,
        heard: Callable[[Seen], None] = lambda seen: None,
    ) -> None:
        super().__init__()
        self._dormouse, self._name, self._again, self._timeout, self._heard = dormouse, name, again, timeout, heard
        self._ended = threading.Event()
        self._keys = itertools.count()
        self._maker = f"walk-{id(self):x}-{time.time_ns():x}"
        self._threads = [threading.Thread(target=self._walk, args=(session,)) for session in sessions]

    def __enter__(self) -> "Walking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._dormouse.close()

    def _walk(self, session: str) -> None:
        while not self._ended.is_set():
            self._step(session, f"{time.time_ns() // 1000:016d}-{self._maker}-{next(self._keys)}" if self._again else "")
            self._ended.wait(PAUSE)

    def _step(self, session: str, key: str) -> None:
        while True:
            try:
                total = self._dormouse.call(self._name, 1, session=session, key=key, timeout=self._timeout)
            except grpc.RpcError as error:
                final = not self._again or error.code() == grpc.StatusCode.ABORTED or self._ended.is_set()
                self._note(Failed(session, time.monotonic(), f"{error.code().name}: {error.details()}", given_up=final))
                if final:
                    return
                time.sleep(PAUSE)
            else:
                self._note(Acknowledged(session, time.monotonic(), total))
                return

    def _note(self, seen: Seen) -> None:
        self.seen.append(seen)
        self._heard(seen)


def at(dormouse: Dormouse, gateway: str, name: str, sessions: Sequence[str], *, again: bool = False) -> Walking:
    """At the gateway with this address, on a connection of its own."""
    return Walking(Dormouse(dormouse.cluster, f"{gateway}:8001", dormouse.space), name, sessions, again=again)


@contextlib.contextmanager
def inside(node: Node, gateway: str, space: str, name: str, sessions: Sequence[str]) -> Iterator[Walk]:
    """A caller on `node`, cut off from the others with it; each step is sent again under its key."""
    words = [sys.executable, "-m", "dormouse_testing.cluster.walking", f"{gateway}:8001", space, name, *sessions]
    found = Walk()
    with subprocess.Popen([*node.inside, *words], cwd=ROOT / "tests", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        reading = threading.Thread(target=_read, args=(process, found))
        reading.start()
        try:
            yield found
        finally:
            process.stdin.close()
            reading.join()


def _read(process: subprocess.Popen[str], found: Walk) -> None:
    for line in process.stdout or ():
        fields = json.loads(line)
        found.seen.append(Acknowledged(**fields) if "total" in fields else Failed(**fields))


def _said(seen: Seen) -> None:
    """In one piece: threads say it at once."""
    sys.stdout.write(json.dumps({name: getattr(seen, name) for name in seen.__slots__}) + "\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> None:
    address, space, name, *sessions = words
    dormouse = Dormouse(Cluster(Path()), address, space)
    with Walking(dormouse, name, sessions, again=True, timeout=SHORT_PATIENCE, heard=_said):
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
