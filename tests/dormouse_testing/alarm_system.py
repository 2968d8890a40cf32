"""What the tests of alarms share: functions that set them, on one machine."""

from contextlib import AbstractContextManager
from pathlib import Path

from dormouse_testing.calling_system import handlers_system, spec
from dormouse_testing.system import System

HANDLERS = '''
import pathlib
import time
from datetime import datetime, timedelta, timezone

import dormouse
import numpy as np

HERE = pathlib.Path(__file__).parent

def tell(text):
    with (HERE / ".told").open("a") as file:
        file.write(text + "\\n")

class Base(dormouse.Handler):
    inputs = [dormouse.Tensor("x", "FP32", [1]), dormouse.Tensor("what", "BYTES", [1], optional=True)]
    outputs = [dormouse.Tensor("y", "FP32", [1])]
    states = [dormouse.State("sum", "FP32", [1])]

class Ledger(Base):
    """Adds up what it is given."""
    def step(self, inputs, state, ctx):
        state["sum"] += inputs["x"]
        return {"y": state["sum"].copy()}

class Claim(Base):
    """Adds up what it is given; `what` is NAME|SECONDS|X|THEN: sets an alarm, or cancels it where there are no seconds. In an alarm's step
    THEN: `call` the ledger, `raise`, `hold` while there is a file."""
    def step(self, inputs, state, ctx):
        now = datetime.now(timezone.utc)
        what = inputs["what"][0].decode() if "what" in inputs else ""
        tell(f"{ctx.session} {ctx.step} {ctx.alarm_name} {ctx.key} {now.timestamp():.3f} {what}")
        if ctx.alarm_name is not None:
            if what == "call":
                ctx.call("ledger", {"x": inputs["x"]}, session=ctx.session)
                tell(f"{ctx.session} called")
            while what == "call" and (HERE / ".hold").exists():
                time.sleep(0.01)
            if what == "raise":
                raise dormouse.DormouseError("not today", dormouse.Code.UNAVAILABLE)
        elif what:
            name, seconds, x, then = what.split("|")
            given = {"x": np.array([float(x or 0)], np.float32)}
            if then:
                given["what"] = np.array([then.encode()], dtype=object)
            if seconds:
                ctx.alarm(now + timedelta(seconds=float(seconds)), given, name)
            else:
                ctx.cancel_alarm(name)
        state["sum"] += inputs["x"]
        return {"y": state["sum"].copy()}

class Wrong(Base):
    """Runs what it is told, as an expression: what an alarm cannot be."""
    def step(self, inputs, state, ctx):
        eval(inputs["what"][0].decode(), {**globals(), "ctx": ctx, "inputs": inputs})
        return {"y": inputs["x"]}
'''

FUNCTIONS = {
    "claim": spec("Claim", scaleToZeroAfter="1s"),
    "ledger": spec("Ledger"),
    "wrong": spec("Wrong"),
    "kept": {**spec("Claim"), "sessions": {"reclaimPolicy": "Retain"}},
}


def alarm_system(folder: Path) -> AbstractContextManager[System]:
    return handlers_system(folder, HANDLERS, FUNCTIONS)
