"""Recommendation: what a guest likes is known when the guest comes back."""

from types import SimpleNamespace

import numpy as np
import taste
from running import HERE, Place, check, say
from showing import Calls, Row, Slowest

FUNCTIONS = ("taste",)
VISITS = ((0, 8), (8, 12))  # steps
KILL_AT = 4
TOLERANCE = 1e-6


def show(dormouse: Place) -> Row:
    handler = taste.Taste()
    handler.setup(SimpleNamespace(model=HERE / "taste"))
    states: dict[int, dict[str, np.ndarray]] = {}
    slowest, off, killed = Slowest(), 0.0, ""
    dormouse.asleep("taste")
    say("taste: proved once, and asleep: no worker runs")
    for first, last in VISITS:
        calls = Calls("taste", dormouse.address, first, last)
        for answer in calls:
            state = states.setdefault(answer["guest"], {each.name: each.first() for each in handler.states})
            right = handler.step({"liked": np.array(answer["liked"])} if answer["step"] else {}, state, None)
            check(
                answer["ranked"] == right["ranked"].tolist(),
                f"guest {answer['guest']}, step {answer['step']}: {answer['ranked']} shown, not {right}",
            )
            off = max(off, float(np.abs(np.array(answer["score"], np.float32) - right["score"]).max()))
            slowest.take(answer["seconds"])
            if (answer["step"], answer["guest"]) == (KILL_AT, 0):
                killed = calls.kill(dormouse, "taste", "guest-1")
        check(len(calls.times) == (last - first) * len(states), f"{len(calls.times)} of {(last - first) * len(states)} steps were answered")
        if first == 0:
            say(f"taste: owner {killed} killed with SIGKILL: no call failed; slowest step {slowest.seconds:.1f} s")
            dormouse.asleep("taste")
            say("taste: at zero; the guests come back")
    check(off <= TOLERANCE, f"all scores within {TOLERANCE:g} of the handler run directly: {off:.2g} found")
    say(f"taste: {len(states)} guests known again; all dishes in the handler's own order, scores within {off:.1g}")
    return Row("recommendation", "a handler", "0.1 KB", calls.rate(), f"{slowest.first:.1f} s", f"slowest step {slowest.seconds:.1f} s")
