"""A claim for a bill: filed, reminded of, decided, paid out. It is a session, and sleeps between its steps, for weeks if need be.

What a step asks of `words` (what does the bill say?), `fraud` and `ledger` (money set aside, a letter's postage, the payment) counts once.
"""

import json
import time
from typing import ClassVar

import numpy as np
from dormouse import Code, DormouseError, Handler, State, Tensor

FUND, SET_ASIDE, POSTAGE = 0, 1, 2  # the insurer's accounts in the ledger
STAMP, REMINDERS = 85, 2


class Claim(Handler):
    inputs: ClassVar = [
        Tensor("picture", "FP32", [1, 3, 48, -1], optional=True),  # filed with: a word of the bill, as `words` takes it;
        Tensor("filed", "INT64", [4], optional=True),  # cents, account, when to remind of it (seconds since 1970), after how many again
        Tensor("approved", "BOOL", [1], optional=True),  # decided with;
        Tensor("reminder", "INT64", [1], optional=True),  # reminded with, by itself
    ]
    outputs: ClassVar = [Tensor(name, kind, [1]) for name, kind in (("stage", "BYTES"), ("text", "BYTES"), ("score", "FP64"))]
    states: ClassVar = [*(State(each.name, each.datatype, [1]) for each in outputs), State("filed", "INT64", [4])]

    def setup(self, ctx):
        self.letters = {number: letter for letter, number in json.loads((ctx.model / "letters.json").read_text()).items()}

    async def step(self, inputs, state, ctx):
        stage, (cents, account, first, every) = state["stage"][0], inputs.get("filed", state["filed"])
        if ctx.alarm_name:
            await self.move(ctx, FUND, POSTAGE, STAMP)  # a letter to whoever has to decide
            if inputs["reminder"][0] < REMINDERS:
                ctx.alarm(time.time() + every, {"reminder": inputs["reminder"] + 1}, "remind")
        elif stage == b"" and {"picture", "filed"} == inputs.keys():
            bill = ctx.call("words", {"x": inputs["picture"]})  # beside the next one
            payment = {"amount": np.array([cents / 100]), "hour": np.array([12.0]), "abroad": np.array([False])}
            state["score"] = (await ctx.call("fraud", payment, session=f"card-{account}"))["score"]
            state["text"][0] = self.read((await bill)["softmax_11.tmp_0"][0])
            await self.move(ctx, FUND, SET_ASIDE, cents)  # last: what is refused before has moved no money
            state["stage"][0], state["filed"] = b"waits", inputs["filed"]
            ctx.alarm(int(first), {"reminder": np.array([1])}, "remind")
        elif stage == b"waits" and {"approved"} == inputs.keys():
            await self.move(ctx, SET_ASIDE, account if inputs["approved"][0] else FUND, cents)
            state["stage"][0] = b"paid" if inputs["approved"][0] else b"refused"
            ctx.cancel_alarm("remind")
        else:
            raise DormouseError(f"inputs: {', '.join(inputs)} found in a claim that is {stage.decode() or 'new'}", Code.FAILED_PRECONDITION)
        return {each.name: state[each.name] for each in self.outputs}

    async def move(self, ctx, payer, payee, cents):
        sent = {"payer": np.array([payer]), "payee": np.array([payee]), "cents": np.array([cents])}
        if not (await ctx.call("ledger", sent, session="insurer", outputs=["done"]))["done"][0]:
            raise DormouseError(f"cents: {cents} found, which account {payer} does not hold", Code.FAILED_PRECONDITION)

    def read(self, scores):
        best = scores.argmax(1)
        return "".join(self.letters.get(int(c), "") for c, before in zip(best, [-1, *best[:-1]], strict=True) if c != before).encode()
