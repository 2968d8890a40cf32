"""Transfers between the accounts of one ledger, in the order in which they come. What an account does not hold is not moved.

A step's transfers and its answer are stored together, once, whoever dies and however often the call is sent: so no cent is lost or made.
There is no transaction over two sessions: accounts between which money moves belong into one ledger.
"""

from typing import ClassVar

import numpy as np
from dormouse import Handler, State, Tensor
from dormouse_core.errors import InvalidArgument

ACCOUNTS = 100
OPENING = 10_000
"""Cents in each account of a new ledger."""


class Ledger(Handler):
    inputs: ClassVar = [Tensor("payer", "INT64", [-1]), Tensor("payee", "INT64", [-1]), Tensor("cents", "INT64", [-1])]
    outputs: ClassVar = [Tensor("done", "BOOL", [-1]), Tensor("balance", "INT64", [ACCOUNTS])]
    states: ClassVar = [State("balance", "INT64", [ACCOUNTS], initial=np.full(ACCOUNTS, OPENING, np.int64))]

    def step(self, inputs, state, ctx):
        payers, payees, cents = (inputs[name] for name in ("payer", "payee", "cents"))
        if not len(payers) == len(payees) == len(cents):
            found = f"{len(payers)}, {len(payees)} and {len(cents)} found"
            raise InvalidArgument(f"payer, payee, cents: {found}, one of each for every transfer is allowed")
        for name, accounts in (("payer", payers), ("payee", payees)):
            if wrong := [int(a) for a in accounts if not 0 <= a < ACCOUNTS]:
                raise InvalidArgument(f"{name}: account {wrong[0]} found, 0 to {ACCOUNTS - 1} is allowed")
        if wrong := [int(c) for c in cents if c <= 0]:
            raise InvalidArgument(f"cents: {wrong[0]} found, at least 1 is allowed")
        balance, done = state["balance"], np.zeros(len(payers), bool)
        for n, (payer, payee, amount) in enumerate(zip(payers, payees, cents, strict=True)):
            if balance[payer] >= amount:
                balance[payer] -= amount
                balance[payee] += amount
                done[n] = True
        return {"done": done, "balance": balance}
