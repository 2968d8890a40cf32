"""A recommender with a memory: each dish that a guest likes moves the guest's taste towards it, and the menu is ranked anew.

The session's state is the taste, one number a trait of `dishes.json`, and which dishes were chosen already. A guest who comes back, after a
night at zero or on another worker, is known.
"""

import json
from typing import ClassVar

import numpy as np
from dormouse import Handler, State, Tensor
from dormouse_core.errors import InvalidArgument

TRAITS = 16
DISHES = 48
SHOWN = 10
STEP = 0.3
"""How far one dish moves the taste. 0.3: the last three weigh two thirds."""


class Taste(Handler):
    inputs: ClassVar = [Tensor("liked", "INT64", [1], optional=True)]  # left out: what is on the menu for me?
    outputs: ClassVar = [Tensor("ranked", "INT64", [-1]), Tensor("name", "BYTES", [-1]), Tensor("score", "FP32", [-1])]
    states: ClassVar = [State("taste", "FP32", [TRAITS]), State("chosen", "BOOL", [DISHES])]

    def setup(self, ctx):
        menu = json.loads((ctx.model / "dishes.json").read_text())
        self.names = np.array(list(menu["dishes"]), object)
        has = np.array([[trait in traits for trait in menu["traits"]] for traits in menu["dishes"].values()], np.float32)
        assert has.shape == (DISHES, TRAITS)
        self.dishes = has / np.linalg.norm(has, axis=1, keepdims=True)

    def step(self, inputs, state, ctx):
        if "liked" in inputs:
            dish = int(inputs["liked"][0])
            if not 0 <= dish < DISHES:
                raise InvalidArgument(f"liked: {dish} found, 0 to {DISHES - 1} is allowed")
            state["taste"] += STEP * (self.dishes[dish] - state["taste"])
            state["chosen"][dish] = True
        scores = self.dishes @ state["taste"]
        order = np.argsort(-scores, kind="stable")
        ranked = order[~state["chosen"][order]][:SHOWN]
        return {"ranked": ranked, "name": self.names[ranked], "score": scores[ranked]}
