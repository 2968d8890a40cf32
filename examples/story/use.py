"""Chat: a story that is told in turns, and goes on in the middle of one: on another worker, and after a sleep."""

import json
import time

import numpy as np
import onnxruntime
from dormouse import Client
from running import HERE, Place, check, say
from showing import Calls, Row, megabytes
from story import CACHE, HEADS, READ, SIZE, TURN, WINDOW
from tokens import TOKENS, drawn, encode

FUNCTIONS = ("story",)
PROMPTS = json.loads((HERE / "story" / "prompts.json").read_text())
AWAKE = 4  # turns before the sleep
KILL_AT = 3  # parts


def directly() -> list[list[str]]:
    """By turn its tokens, of the model itself: from turn to turn nothing is kept but these variables."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(str(HERE / "story" / "model.onnx"), options)
    past = [np.zeros((1, HEADS, 0, SIZE), np.float16) for _ in CACHE]
    place, last, said = 0, 0, []
    for prompt in PROMPTS:
        ids, turn = [last, *encode(prompt)], []
        while len(turn) < TURN:
            for at in range(0, len(ids), READ):
                part = np.array([ids[at : at + READ]])
                sent = {"input_ids": part, "position_ids": np.arange(place, place + part.size)[None]}
                logits, *present = model.run(None, sent | dict(zip(CACHE, past, strict=True)))
                past, place = [each[:, :, -WINDOW:] for each in present], place + part.size
            last = drawn(logits[0, -1], 0, place)
            turn.append(TOKENS[last])
            ids = [last]
        said.append(turn)
    return said


def show(dormouse: Place) -> Row:
    right, address = directly(), dormouse.address
    dormouse.asleep("story")
    say("story: proved once, and asleep: no worker runs")
    told: list[list[str]] = []
    first, slowest, cut, key = 0.0, 0.0, 0, ""
    for turn in range(AWAKE):
        owner, kill = dormouse.aimed("story", "bedtime") if turn and not cut else ("", None)
        tries: list[list[str]] = []
        for answer in Calls("story", address, turn, turn + 1):
            first, key = first or answer["seconds"], answer["key"]
            if answer["try"] > len(tries):
                tries.append([])
            if answer["ended"]:
                slowest = max(slowest, answer["seconds"] if turn else 0.0)
                continue
            tries[-1].append(answer["text"])
            if kill and len(tries) == 1 and len(tries[0]) == KILL_AT:
                kill()
        if len(tries) == 2:  # where the turn had come to its end before its worker died, it is the next one's
            cut, part = turn, tries[0]
            check(part == right[turn][: len(part)], f"turn {turn}: the {len(part)} tokens before the kill are those of the model")
            say(
                f"story: owner {owner} killed with SIGKILL in turn {turn}, after {len(part)} of {TURN} tokens; sent again, it says the same"
            )
        told.append(tries[-1])
    check(cut > 0, "a turn was cut by the kill of its worker")

    dormouse.asleep("story")
    say("story: asleep in mid-story")
    with Client(address) as client:
        again = parts(client, AWAKE - 1, key)
        check(again == right[AWAKE - 1], f"turn {AWAKE - 1}, sent again under its key after the sleep, says the same")
        began = time.monotonic()
        rest = [parts(client, turn, f"{time.time_ns() // 1000}-turn-{turn}") for turn in range(AWAKE, len(PROMPTS))]
    rate = sum(map(len, rest)) / (time.monotonic() - began)
    told += rest
    check(told == right, f"the story is that of the model run directly, character for character: {told} and {right} found")
    whole = "".join(text for prompt, turn in zip(PROMPTS, told, strict=True) for text in (prompt, *turn))
    say(f"story: {len(PROMPTS)} turns, {len(whole)} characters as of the model run directly; it goes:")
    say(f"       {' '.join(whole.split())[:100]}…")
    model = f"a decoder of 2 M parameters, {megabytes(HERE / 'story' / 'model.onnx')}"
    return Row("chat", model, "768 KB", f"{rate:.0f} (tokens)", f"{first:.1f} s", f"slowest turn {slowest:.1f} s, the same text")


def parts(client: Client, turn: int, key: str) -> list[str]:
    """A turn's tokens, by Dormouse's own client."""
    prompt = {"prompt": np.array([PROMPTS[turn].encode()], object)}
    return [answer.outputs["text"][0].decode() for answer in client.stream("story", prompt, session="bedtime", idempotency_key=key)]
