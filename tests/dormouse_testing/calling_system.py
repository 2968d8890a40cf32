"""What the tests of `ctx.call` share: functions that call each other, on one machine."""

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dormouse_testing.system import System, manifest

HANDLERS = '''
import asyncio
import pathlib
import time

import dormouse
import numpy as np

HERE = pathlib.Path(__file__).parent
ONE = {"x": np.ones((1, 1), np.float32)}

def tell(text):
    with (HERE / ".told").open("a") as file:
        file.write(text + "\\n")

class Base(dormouse.Handler):
    inputs = [dormouse.Tensor("x", "FP32", [1, 1]), dormouse.Tensor("what", "BYTES", [1], optional=True)]
    outputs = [dormouse.Tensor("y", "FP32", [1, 1])]

class Ledger(Base):
    """Adds up what it is given; tells each step that it runs, and waits as long as `what` says."""
    states = [dormouse.State("sum", "FP32", [1, 1])]

    def step(self, inputs, state, ctx):
        tell(f"ledger {ctx.tenant}/{ctx.session} {ctx.step} {inputs['x'][0, 0]:g}")
        if "what" in inputs:
            until = time.monotonic() + float(inputs["what"][0])
            while time.monotonic() < until and not ctx.cancelled():
                time.sleep(0.01)
            if ctx.cancelled():
                tell("ledger cancelled")
        state["sum"] += inputs["x"]
        return {"y": state["sum"].copy()}

class Slow(Ledger):
    """Takes its time to start; its first start, which proves it, does not."""
    def setup(self, ctx):
        if (HERE / ".proved").exists():
            tell("slow starts")
            time.sleep(3.0)
        (HERE / ".proved").touch()

def act(inputs):
    """(function, inputs, session, further) of the call that `what` asks for: function|session|x|seconds."""
    function, session, x, seconds = inputs["what"][0].decode().split("|")
    wrong = {"wide": {"x": np.ones((1, 2), np.float32)}, "int": {"x": np.ones((1, 1), np.int32)}, "other": {"z": ONE["x"]}}
    given = wrong.get(x) or {"x": np.full((1, 1), float(x), np.float32)}
    if seconds:
        given["what"] = np.array([seconds.encode()], dtype=object)
    return function, given, session or None

class Shop(Base):
    """Calls whom it is told to, waits where the file `.hold` is, and keeps the sum of the answers."""
    states = [dormouse.State("sum", "FP32", [1, 1])]

    def step(self, inputs, state, ctx):
        tell(f"shop {ctx.session} {ctx.step}")
        state["sum"] += ctx.call(*act(inputs))["y"]
        tell(f"shop {ctx.session} {ctx.step} called")
        while (HERE / ".hold").exists():
            time.sleep(0.01)
        return {"y": state["sum"].copy()}

class Kiosk(Base):
    """The same on the event loop, without sessions, twice at once."""
    async def step(self, inputs, state, ctx):
        first, second = ctx.call(*act(inputs)), ctx.call(*act(inputs))
        return {"y": (await first)["y"] + (await second)["y"]}

class Pass(Base):
    """Passes on what it is asked: what = function;rest, where rest is for the next one."""
    def step(self, inputs, state, ctx):
        function, _, rest = inputs["what"][0].decode().partition(";")
        if not function:
            return {"y": inputs["x"]}
        return ctx.call(function, {"x": inputs["x"], "what": np.array([rest.encode()], dtype=object)})

class Rogue(Base):
    """Goes past its worker's checks, with its proof: what = function|path."""
    async def step(self, inputs, state, ctx):
        function, path = inputs["what"][0].decode().split("|")
        says = {"dormouse-function": function, "dormouse-path": path, "dormouse-session": "rogue"}
        await ctx.caller._way.infer(b"", says, time.monotonic() + 20)
        return {"y": inputs["x"]}
'''


def spec(handler: str, *, sessions: bool = True, **more: Any) -> dict[str, Any]:
    found = {"runtime": "python", "model": {"uri": "file://handlers"}, "handler": f"handlers:{handler}", "scaleToZeroAfter": "10m", **more}
    return {**found, "sessions": {}} if sessions else found


FUNCTIONS = {
    "ledger": spec("Ledger"),
    "shop": spec("Shop"),
    "kiosk": spec("Kiosk", sessions=False),
    "ping": spec("Pass", sessions=False),
    "pong": spec("Pass", sessions=False),
    "rogue": spec("Rogue", sessions=False),
}


@contextlib.contextmanager
def handlers_system(folder: Path, handlers: str, functions: Mapping[str, Mapping[str, Any]]) -> Iterator[System]:
    """A system in `folder` with these functions, by name, of one module of handlers; each is proved."""
    (folder / "handlers").mkdir()
    (folder / "handlers" / "handlers.py").write_text(handlers)
    for name, each in functions.items():
        (folder / f"{name}.yaml").write_text(manifest(name, **each))
    with System(folder) as started:
        for name in functions:
            started.wait_proved(name)
        yield started


def calling_system(folder: Path) -> AbstractContextManager[System]:
    return handlers_system(folder, HANDLERS, FUNCTIONS)


def told(system: System) -> list[str]:
    path = system.folder / "handlers" / ".told"
    return path.read_text().splitlines() if path.exists() else []
