"""Fraud: a score per card that learns in its session."""

import fraud
import numpy as np
import payments
from running import Place, check, say
from showing import Calls, Row, Slowest

FUNCTIONS = ("fraud",)
KILL_AFTER = 300  # answers
TOLERANCE = 1e-12


def directly(learns: bool = True) -> np.ndarray:
    """[cards, payments]: the scores of the handler run here; `learns`: whether it is told what the owners say."""
    handler, found = fraud.Fraud(), np.zeros((payments.CARDS, payments.PAYMENTS))
    for card in range(payments.CARDS):
        state, said = {each.name: each.first() for each in handler.states}, {}
        for n, payment in enumerate(payments.payments(card)):
            found[card, n] = handler.step({**payment, **said}, state, None)["score"][0]
            said = {"was_fraud": payment["fraud"]} if learns else {}
    return found


def alarm(scores: np.ndarray) -> float:
    """The mean score of what travellers themselves paid abroad, in the later half of their payments."""
    every = [
        (score, each) for card in range(1, payments.CARDS, 2) for score, each in zip(scores[card], payments.payments(card), strict=True)
    ]
    later = [pair for n, pair in enumerate(every) if n % payments.PAYMENTS >= payments.PAYMENTS // 2]
    return float(np.mean([score for score, each in later if each["abroad"][0] and not each["fraud"][0]]))


def loss(scores: np.ndarray) -> float:
    """The mean logarithmic loss of the later half of each card's payments: how far the scores are from what was true."""
    half = payments.PAYMENTS // 2
    thief = np.array([[payment["fraud"][0] for payment in payments.payments(card)] for card in range(payments.CARDS)])
    return float(-np.log(np.where(thief, scores, 1 - scores)[:, half:]).mean())


def show(dormouse: Place) -> Row:
    right = directly()
    dormouse.asleep("fraud")
    say("fraud: proved once, and asleep: no worker runs")
    slowest, off, killed = Slowest(), 0.0, ""
    calls = Calls("fraud", dormouse.address)
    for count, answer in enumerate(calls, 1):
        off = max(off, abs(answer["score"] - right[answer["card"], answer["n"]]))
        slowest.take(answer["seconds"])
        if count == KILL_AFTER:
            killed = calls.kill(dormouse, "fraud", str(answer["card"] + 1))
    check(len(calls.times) == right.size, f"{len(calls.times)} of {right.size} payments were answered")
    check(off <= TOLERANCE, f"all scores within {TOLERANCE:g} of the handler run directly: {off:.2g} found")
    fixed = directly(learns=False)
    check(loss(right) < loss(fixed), f"what the owners say helps: loss {loss(right):.3f}, {loss(fixed):.3f} without")
    check(alarm(right) < alarm(fixed), f"travellers are known: {alarm(right):.2f} for their payments abroad, {alarm(fixed):.2f} without")
    say(f"fraud: {right.size} payments within {off:.1g} of the handler run directly")
    say(f"fraud: loss {loss(right):.3f}, with fixed weights {loss(fixed):.3f}")
    say(f"fraud: travellers' own payments abroad score {alarm(right):.2f}, {alarm(fixed):.2f} with fixed weights")
    say(f"fraud: owner {killed} killed with SIGKILL: no call failed; slowest payment {slowest.seconds:.1f} s")
    return Row(
        "fraud", "a handler that learns", "0.1 KB", calls.rate(), f"{slowest.first:.1f} s", f"slowest payment {slowest.seconds:.1f} s"
    )
