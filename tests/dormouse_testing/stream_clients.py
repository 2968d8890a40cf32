"""`tritonclient` in an environment of its own, driven line by line: tests/clients/triton_stream.py is its end."""

import contextlib
import json
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-client" / "bin" / "python"
SCRIPT = ROOT / "tests" / "clients" / "triton_stream.py"


def missing() -> str:
    return "" if PYTHON.exists() else "no .venv-client (make setup)"


class TritonStream:
    """One client, one stream. `do` returns what it answers; `begin` does not wait for it, `result` does."""

    def __init__(self, address: str) -> None:
        self._process = subprocess.Popen([PYTHON, SCRIPT, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def begin(self, order: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": order, **arguments}) + "\n")
        self._process.stdin.flush()

    def result(self, seconds: float = 90.0) -> Any:
        line = self._lines.get(timeout=seconds)
        assert line, "the client has ended"
        return json.loads(line)

    def do(self, order: str, *, seconds: float = 90.0, **arguments: Any) -> Any:
        self.begin(order, **arguments)
        return self.result(seconds)

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def triton_stream(address: str, **options: Any) -> Iterator[TritonStream]:
    """A client whose stream is open."""
    client = TritonStream(address)
    try:
        client.do("start", **options)
        yield client
    finally:
        client.close()
