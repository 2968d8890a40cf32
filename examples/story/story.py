"""Tells a story, token by token. The KV cache, what the transformer has read and said, is the session: a turn goes on where the last was.

The model looks back WINDOW tokens at most: the cache slides, and the record stays below 1 MiB.
"""

from typing import ClassVar

import numpy as np
import onnxruntime
from dormouse import Handler, State, Tensor
from dormouse_core.errors import InvalidArgument
from tokens import TOKENS, drawn, encode

LAYERS, HEADS, SIZE, WINDOW = 4, 6, 32, 256  # 768 KiB in FP16
READ = 32  # tokens of a prompt, at once
PROMPT, TURN = 2000, 100  # characters; tokens: the parts of a reply are kept with the record, up to 16 KiB
CACHE = [f"past_key_values.{n}.{what}" for n in range(LAYERS) for what in ("key", "value")]


class Story(Handler):
    inputs: ClassVar = [
        Tensor("prompt", "BYTES", [1], optional=True),  # left out: go on
        Tensor("tokens", "INT64", [1], optional=True),
        Tensor("seed", "INT64", [1], optional=True),  # another one tells another story; the session keeps it
    ]
    outputs: ClassVar = [Tensor("text", "BYTES", [1])]
    states: ClassVar = [
        *(State(name, "FP16", [1, HEADS, -1, SIZE], initial_shape=[1, HEADS, 0, SIZE]) for name in CACHE),
        *(State(name, "INT64", [1]) for name in ("place", "last", "seed")),  # last: the token that was said, and is to be read yet
    ]

    def setup(self, ctx):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.model = onnxruntime.InferenceSession(str(ctx.model / "model.onnx"), options)

    def step(self, inputs, state, ctx):
        prompt, count = inputs.get("prompt", [b""])[0], int(inputs.get("tokens", [TURN])[0])
        if not 1 <= count <= TURN:
            raise InvalidArgument(f"tokens: {count} found, 1 to {TURN} are allowed")
        if len(prompt) > PROMPT:
            raise InvalidArgument(f"prompt: {len(prompt)} characters found, at most {PROMPT} are allowed")
        try:
            ids = [int(state["last"][0]), *encode(prompt.decode())]
        except ValueError as error:  # of UTF-8, too
            raise InvalidArgument(f"prompt: {error}") from None
        state["seed"] = inputs.get("seed", state["seed"]) & (2**63 - 1)
        for _ in range(count):
            for at in range(0, len(ids), READ):
                logits = self.read(np.array(ids[at : at + READ]), state)
            ids = [drawn(logits, state["seed"][0], state["place"][0])]
            state["last"] = np.array(ids)
            yield {"text": np.array([TOKENS[ids[0]].encode()], object)}

    def read(self, ids, state):
        sent = {"input_ids": ids[None], "position_ids": (state["place"] + np.arange(len(ids)))[None]}
        logits, *present = self.model.run(None, sent | {name: state[name] for name in CACHE})
        state |= {name: array[:, :, -WINDOW:] for name, array in zip(CACHE, present, strict=True)}
        state["place"] = state["place"] + len(ids)
        return logits[0, -1]
