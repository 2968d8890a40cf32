"""What the uses of `make examples` have in common: a caller in the environment of its readers, and a line of the table."""

import importlib.util
import json
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from running import HERE, ROOT, Place, check


@dataclass
class Row:
    """One use, as the table tells it."""

    use: str
    model: str
    state: str  # what a session keeps
    calls: str  # a second
    wake: str
    kill: str  # what it did


class Calls:
    """A use's `caller.py` in the environment of its readers. Iterated: its answers, one line of JSON each, as they come.

    Untrue: it ended with an error, which is how a failed call shows.
    """

    def __init__(self, use: str, address: str, *words: Any) -> None:
        self.use = use
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the caller runs
        python = ROOT / ".venv-client" / "bin" / "python"
        self.process = subprocess.Popen(
            [python, HERE / use / "caller.py", address, *map(str, words)], stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.began = time.monotonic()
        self.times: list[float] = []  # when each answer came

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout
        try:
            for line in self.process.stdout:
                self.times.append(time.monotonic())
                yield json.loads(line)
            code = self.process.wait(60)
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or [""])[-1]
            check(code == 0, f"{self.use}: no call fails; the caller ended with {code} after {len(self.times)} answers: {last}")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.process.stdout.close()
            self.errors.close()

    def kill(self, dormouse: Place, name: str, session: str | None = None) -> str:
        """Kills who serves the session, or any of the function's workers, in the middle of the calls. The worker's name.

        The caller stands still while that one is looked for: it would be done before it was found.
        """
        self.process.send_signal(signal.SIGSTOP)
        try:
            worker, kill = dormouse.aimed(name, session)
        finally:
            self.process.send_signal(signal.SIGCONT)
        kill()
        return worker

    def rate(self) -> str:
        """Answers a second, from the first one on: before it the function slept."""
        took = self.times[-1] - self.times[0]
        return f"{(len(self.times) - 1) / took:.0f}"


@dataclass
class Slowest:
    """The slowest call, and which one it was."""

    seconds: float = 0.0
    first: float = field(default=-1.0)

    def take(self, seconds: float) -> None:
        if self.first < 0:
            self.first = seconds  # it found the function asleep
        else:
            self.seconds = max(self.seconds, seconds)


def module(path: str) -> Any:
    """The code of another use, such as `ledger/ledger`."""
    spec = importlib.util.spec_from_file_location(path.rpartition("/")[2], HERE / f"{path}.py")
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def megabytes(path: pathlib.Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
