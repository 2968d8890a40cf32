"""Real-time analysis: is somebody speaking, window by window, and beside it: has this speaker finished?"""

import pathlib
from types import SimpleNamespace

import data
import turn
from demo import directly
from running import HERE, Place, check, say
from showing import Calls, Row, Slowest, megabytes

FUNCTIONS = ("vad", "turn")
KILL_VOICE, KILL_TURN = 60, 93  # windows; turn is asked at the second of them
TOLERANCE = 1e-6


def show(dormouse: Place) -> Row:
    right, speech = directly(), data.samples()
    model = turn.Turn()
    model.setup(SimpleNamespace(model=pathlib.Path(HERE / "turn")))
    for name in FUNCTIONS:
        dormouse.asleep(name)
    say("vad, turn: both proved once, and asleep: no worker runs")

    listening, asking, asked, off = Slowest(), Slowest(), 0, 0.0
    calls = Calls("turn", dormouse.address)
    for n, answer in enumerate(calls):
        check(answer["n"] == n, f"window {answer['n']} was answered after {n} others")
        off = max(off, abs(answer["speech"] - right[n]))
        listening.take(answer["seconds"])
        if "finished" in answer:
            asked += 1
            finished = float(model.step({"audio": speech[: (n + 1) * data.WINDOW]}, {}, None)["finished"][0])
            off = max(off, abs(answer["finished"] - finished))
            asking.take(answer["asked"])
            ends = n > 160
            check(not ends or finished > 0.5, f"turn: the reader has finished at the end: {finished:.2f} found")
        if n == KILL_VOICE:
            voice = calls.kill(dormouse, "vad", session="7")
        if n == KILL_TURN:
            other = calls.kill(dormouse, "turn")
    check(len(calls.times) == len(right), f"{len(calls.times)} of {len(right)} windows were answered")
    check(off <= TOLERANCE, f"all answers within {TOLERANCE:g} of the models run directly: {off:.2g} found")
    say(f"vad: {len(right)} windows, turn: asked {asked} times; all within {off:.1g} of the models run directly")
    say(f"vad: its session's owner {voice} killed with SIGKILL: no call failed; slowest window {listening.seconds:.1f} s")
    say(f"turn: worker {other} killed with SIGKILL: no call failed; slowest answer {asking.seconds:.1f} s")
    return Row(
        "real-time analysis",
        f"Silero VAD, {megabytes(HERE / 'vad' / 'model.onnx')}; smart-turn, {megabytes(HERE / 'turn' / 'model.onnx')}",
        "1 KB; none",
        calls.rate(),
        f"{listening.first:.1f} s; {asking.first:.1f} s",
        f"slowest window {max(listening.seconds, asking.seconds):.1f} s",
    )
