"""What `dormouse get NAME -o json` prints, without a process for it: tests that wait for a status ask ten times a second, and each such
process takes as much of the machine as a worker's start."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dormouse.control import TIMEOUT, control
from dormouse.home import Home
from dormouse.printing import functions
from dormouse_core.errors import DormouseError
from dormouse_proto import control_pb2


def status(folder: Path, name: str, *, owners: bool = False) -> dict[str, Any]:
    """Of a function of namespace `default`; `folder` is that of `dormouse up`. DormouseError where the command would fail."""
    request = control_pb2.GetRequest(namespace="default", name=name, owners=owners)
    with control(Home(folder)) as stub:
        found: dict[str, Any] = json.loads(functions(stub.Get(request, timeout=TIMEOUT).functions, "json"))
    return found


def until(true: Callable[[], object], seconds: float, log: Callable[[], str]) -> None:
    """An error that a caller or a person is told is no answer yet: a leader may be on its way. `log`: for who looks into a failure."""
    limit, refusal = time.monotonic() + seconds, ""
    while True:
        try:
            if true():
                return
        except DormouseError as error:
            refusal = str(error)
        assert time.monotonic() < limit, f"{refusal}\n{log()[-8000:]}"
        time.sleep(0.05)
