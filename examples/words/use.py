"""Image recognition: a photographed page, read word by word, by as many workers as the calls ask for."""

import numpy as np
import onnxruntime
import page
from dormouse.client import Client
from running import HERE, Place, check, say
from showing import Calls, Row, Slowest, megabytes

FUNCTIONS = ("words",)
CALLS, AT_A_TIME, KILL_AFTER = 500, 32, 150
ROWS = 16  # in one call: a reply is at most 16 MB, and a picture's scores take 0.6
SPOILT = 7
TOLERANCE = 1e-3
MODEL = HERE / "words" / "model.onnx"


def directly() -> list[np.ndarray]:
    """What the model says of each word when it is run here, alone: [steps, classes]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODEL), options)
    return [session.run(None, {"x": picture})[0][0] for picture in page.words()[1]]


def show(dormouse: Place) -> Row:
    texts, pictures = page.words()
    right = directly()
    check([page.read(scores) for scores in right] == texts, "the model run directly reads the page's words")
    dormouse.asleep("words")
    say("words: proved once, and asleep: no worker runs")
    address = dormouse.address

    slowest, off, killed, broken = Slowest(), 0.0, "", 0
    calls = Calls("words", address, CALLS, AT_A_TIME)
    for count, answer in enumerate(calls, 1):
        word = answer["n"] % len(texts)
        check(answer["text"] == texts[word], f"call {answer['n']} read {answer['text']!r}, {texts[word]!r} is right")
        off = max(off, float(np.abs(np.array(answer["scores"]) - right[word].max(1)).max()))
        slowest.take(answer["seconds"])
        broken += answer["again"]
        if count == KILL_AFTER:
            killed = calls.kill(dormouse, "words")
    check(len(calls.times) == CALLS, f"{len(calls.times)} of {CALLS} calls were answered")
    check(off <= TOLERANCE, f"scores within {TOLERANCE:g} of the model run directly: {off:.2g} found")
    workers = dormouse.workers("words")
    check(workers > 1, f"{CALLS} calls at once wake several workers: {workers} found")
    say(f"words: {CALLS} calls read as the model reads them directly (scores within {off:.1g}), by {workers} workers")
    say(f"words: worker {killed} killed with SIGKILL after {KILL_AFTER} answers: slowest call {slowest.seconds:.1f} s")
    say(f"words: replies that broke off, since they were on their way, and were asked for again: {broken}; no other call failed")

    spoilt = np.concatenate(pictures[:ROWS])
    spoilt[SPOILT] = np.nan
    with Client(address) as client:
        joined = client.infer("words", {"x": spoilt}, timeout=120).outputs["softmax_11.tmp_0"]
    beside = [n for n in range(ROWS) if n != SPOILT]
    off = max(float(np.abs(joined[n] - right[n]).max()) for n in beside)
    harmed = [texts[n] for n in beside if page.read(joined[n]) != texts[n]]
    check(not harmed and off <= TOLERANCE, f"a picture of no numbers harms no other in its call: {harmed} read otherwise, off by {off:.2g}")
    for answer in Calls("words", address, len(texts), len(texts), SPOILT):
        n = answer["n"]
        check(
            n == SPOILT or answer["text"] == texts[n],
            f"beside a spoilt picture word {n} was read as {answer['text']!r}, {texts[n]!r} is right",
        )
    say(f"words: one spoilt picture, in a call of {ROWS} and in one of {len(texts)} calls at the same time: the others are read as alone")
    dormouse.asleep("words")
    say("words: at zero again, by itself")
    return Row(
        "image recognition",
        f"PP-OCRv4, {megabytes(MODEL)}",
        "none",
        calls.rate(),
        f"{slowest.first:.1f} s",
        f"slowest call {slowest.seconds:.1f} s; {broken} replies asked for again",
    )
