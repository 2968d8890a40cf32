"""The workflow of `make examples`, without a network: what a claim asks of whom in which step, and what it refuses."""

import asyncio
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dormouse_core.errors import Code, DormouseError
from dormouse_core.handlers import Context, declaration_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DUE, EVERY = 1_900_000_000, 86_400


def module(use: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"claim_example_{use}", EXAMPLES / use / f"{use}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


claim, ledger = module("claim"), module("ledger")


class Others:
    """The worker, as a step sees it: the functions that it calls, the real ledger among them, and its alarms."""

    def __init__(self, text: str = "coins", fails: str = "") -> None:
        letters = {letter: number for number, letter in self.handler.letters.items()}
        self.scores = np.zeros((1, 2 * len(text), 6625), np.float32)
        self.scores[0, range(0, 2 * len(text), 2), [letters[each] for each in text]] = 1
        self.fails = fails
        self.ledger, self.balance = ledger.Ledger(), {each.name: each.first() for each in ledger.Ledger.states}
        self.asked: list[tuple[str, str | None, list[int]]] = []
        self.alarms: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self.state = {each.name: each.first() for each in claim.Claim.states}

    @property
    def handler(self) -> Any:
        made = claim.Claim()
        made.setup(Context(function="examples/claim", revision="r", model=EXAMPLES / "claim"))
        return made

    def call(self, function: str, inputs: Any, session: Any, outputs: Any, timeout: Any, key: Any) -> Any:
        self.asked.append((function, session, [int(inputs[name][0]) for name in ("payer", "payee", "cents") if name in inputs]))
        return asyncio.ensure_future(self._answer(function, inputs))  # it is on its way before it is awaited

    async def _answer(self, function: str, inputs: Any) -> Any:
        if function == self.fails:
            raise DormouseError(f"call of examples/{function}: no", Code.UNAVAILABLE)
        if function == "ledger":
            return self.ledger.step(inputs, self.balance, None)
        return {"softmax_11.tmp_0": self.scores} if function == "words" else {"score": np.array([0.25])}

    def set(self, at: Any, inputs: Mapping[str, Any], name: str) -> None:
        assert isinstance(at, int | float), "as a worker takes it"
        self.alarms[name] = at, inputs

    def cancel(self, name: str) -> None:
        self.alarms.pop(name, None)

    def step(self, inputs: Mapping[str, Any], alarm: str | None = None) -> Any:
        """As a worker runs it: a step that raises leaves the state, and the alarms, as they were."""
        self.asked, state, alarms = [], {name: value.copy() for name, value in self.state.items()}, dict(self.alarms)
        if alarm is not None:
            del self.alarms[alarm]
        context = Context(function="examples/claim", revision="r", caller=self, clock=self, alarm_name=alarm)
        try:
            found = asyncio.run(self.handler.step(inputs, state, context))
        except DormouseError:
            self.alarms = alarms
            raise
        declaration = declaration_of(claim.Claim, stateful=True)
        declaration.check_states(state)
        self.state = state
        return {name: value[0] for name, value in declaration.check_outputs(found).items()}

    def file(self, cents: int = 500) -> Any:
        return self.step({"picture": np.zeros((1, 3, 48, 192), np.float32), "filed": np.array([cents, 10, DUE, EVERY])})


def test_a_claim_is_filed_reminded_of_and_paid() -> None:
    others = Others()
    assert others.file() == {"stage": b"waits", "text": b"coins", "score": 0.25}
    assert others.asked == [("words", None, []), ("fraud", "card-10", []), ("ledger", "insurer", [0, 1, 500])]
    for number in (1, 2):
        at, inputs = others.alarms["remind"]
        assert at == DUE if number == 1 else at > EVERY
        assert {name: value.tolist() for name, value in inputs.items()} == {"reminder": [number]}
        others.step(inputs, "remind")
        assert others.asked == [("ledger", "insurer", [0, 2, 85])]
    assert others.alarms == {}, "two reminders and no more"
    assert others.step({"approved": np.array([True])})["stage"] == b"paid"
    assert others.asked == [("ledger", "insurer", [1, 10, 500])]
    assert others.balance["balance"][[0, 1, 2, 10]].tolist() == [9330, 10000, 10170, 10500]


def test_a_claim_that_is_refused_gives_the_money_back_and_nobody_is_reminded_of_it() -> None:
    others = Others()
    others.file()
    assert others.step({"approved": np.array([False])})["stage"] == b"refused"
    assert others.alarms == {}
    assert (others.balance["balance"] == ledger.OPENING).all()


@pytest.mark.parametrize("fails", ["words", "fraud", "ledger"])
def test_a_filing_that_fails_leaves_the_claim_new_and_has_moved_no_money(fails: str) -> None:
    others = Others(fails=fails)
    with pytest.raises(DormouseError, match=f"call of examples/{fails}: no"):
        others.file()
    assert (others.balance["balance"] == ledger.OPENING).all()
    assert others.state["stage"].tolist() == [b""]
    assert others.alarms == {}
    others.fails = ""
    assert others.file()["stage"] == b"waits"


def test_a_claim_that_the_insurer_cannot_cover_is_told() -> None:
    others = Others()
    with pytest.raises(DormouseError, match="cents: 10001 found, which account 0 does not hold") as refused:
        others.file(10_001)
    assert refused.value.code is Code.FAILED_PRECONDITION
    assert others.state["stage"].tolist() == [b""]


def test_what_does_not_fit_the_claims_stage_is_refused_and_asks_nobody() -> None:
    others, approved = Others(), {"approved": np.array([True])}
    reminder = {"reminder": np.array([1])}
    for inputs, told in ((approved, "approved found in a claim that is new"), ({}, "inputs:  found"), (reminder, "reminder found")):
        with pytest.raises(DormouseError, match=told):
            others.step(inputs)
        assert others.asked == []
    others.file()
    others.step(approved)
    for again in (approved, {"picture": np.zeros((1, 3, 48, 192), np.float32), "filed": np.array([1, 10, DUE, EVERY])}):
        with pytest.raises(DormouseError, match="in a claim that is paid"):
            others.step(again)
        assert others.asked == []
