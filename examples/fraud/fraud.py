"""A fraud score per card, which learns while it is asked: a logistic regression whose weights are the session's own.

A new card begins with the bank's weights. What its owner usually spends is a moving mean; what the owner says of the payment before
("that was me", "that was not") moves the weights by one step of gradient descent. A traveller's card soon finds little in payments
from abroad.
"""

from typing import ClassVar

import numpy as np
from dormouse import Handler, State, Tensor
from dormouse_core.errors import InvalidArgument

WEIGHTS = np.array([-4.0, 1.0, 2.5, 2.5])  # always; how unusual the amount is; abroad; at night
RATE = 0.2
MEMORY = 0.9
"""How much of the mean a new amount leaves: the last ten payments weigh two thirds."""


class Fraud(Handler):
    inputs: ClassVar = [
        Tensor("amount", "FP64", [1]),
        Tensor("hour", "FP64", [1]),
        Tensor("abroad", "BOOL", [1]),
        Tensor("was_fraud", "BOOL", [1], optional=True),  # what the owner said of the payment before this one
    ]
    outputs: ClassVar = [Tensor("score", "FP64", [1])]
    states: ClassVar = [
        State("weights", "FP64", [4], initial=WEIGHTS),
        State("usual", "FP64", [2], initial=np.array([np.log(50.0), 1.0])),  # mean and variance of the amounts' logarithms
        State("before", "FP64", [4]),  # the payment before this one, as the weights see it
    ]

    def step(self, inputs, state, ctx):
        amount, hour = float(inputs["amount"][0]), float(inputs["hour"][0])
        if not 0 < amount < 1e12:
            raise InvalidArgument(f"amount: {amount:g} found, more than 0 and less than 1e12 is allowed")
        if not 0 <= hour < 24:
            raise InvalidArgument(f"hour: {hour:g} found, 0 to 24 is allowed")
        if "was_fraud" in inputs:
            error = float(inputs["was_fraud"][0]) - logistic(state["weights"] @ state["before"])
            state["weights"] += RATE * error * state["before"]
        mean, variance = state["usual"]
        off = np.log(amount) - mean
        payment = np.array([1.0, max(0.0, off / np.sqrt(variance)), inputs["abroad"][0], hour < 6])
        score = logistic(state["weights"] @ payment)
        if score < 0.5:  # what is likely not the owner's does not say what the owner spends
            state["usual"] = np.array([mean + (1 - MEMORY) * off, MEMORY * (variance + (1 - MEMORY) * off * off)]).clip([-99, 0.01], 99)
        state["before"] = payment
        return {"score": np.array([score])}


def logistic(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))
