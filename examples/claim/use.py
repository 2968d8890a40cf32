"""Workflow: claims that call three functions, wait for a person, are reminded at zero, and pay, while those who do it are killed."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import bills
import claim
import clerk
import numpy as np
from dormouse.client import Client
from running import System, check, say
from showing import Calls, Row, Slowest, module

fraud, ledger = module("fraud/fraud"), module("ledger/ledger")
FUNCTIONS = ("claim", "words", "fraud", "ledger")
REMIND = 10, 8  # seconds until the first, and the second one; weeks, elsewhere
KILLS = {2: "claim", 4: "ledger", 6: "fraud"}  # after so many answers, whose owner
TOLERANCE = 1e-9


def score(bill: bills.Bill) -> float:
    handler, state = fraud.Fraud(), {each.name: each.first() for each in fraud.Fraud.states}
    sent = {"amount": np.array([bill.cents / 100]), "hour": np.array([12.0]), "abroad": np.array([False])}
    return float(handler.step(sent, state, None)["score"][0])


def balances(made: list[bills.Bill]) -> list[int]:
    """What each account of the insurer's ledger holds when all is done, by plain arithmetic."""
    found = [ledger.OPENING] * ledger.ACCOUNTS
    postage = claim.STAMP * claim.REMINDERS * len(made)
    found[claim.POSTAGE] += postage
    found[claim.FUND] -= postage
    for bill in made:
        if bill.approved:
            found[claim.FUND] -= bill.cents
            found[bill.account] += bill.cents
    return found


def kill(dormouse: System, name: str) -> str:
    worker, pid = dormouse.server(name)
    os.kill(pid, signal.SIGKILL)
    return worker


def steps(dormouse: System) -> set[int]:
    """How many steps the claims have made. Asking wakes nobody."""
    return {each["step"] for each in dormouse.sessions("claim")}


def reminded(dormouse: System, times: int) -> None:
    until = time.monotonic() + 60
    while min(steps(dormouse)) < 1 + times:
        check(time.monotonic() < until, f"each claim is reminded {times} times: not within 60 s, steps {steps(dormouse)}")


def show(dormouse: System) -> Row:
    made = bills.bills()
    dormouse.asleep("claim")
    say("claim: proved once, and asleep: no worker runs")
    slowest, off, killed = Slowest(), 0.0, []
    calls = Calls("claim", f"127.0.0.1:{dormouse.port}", *REMIND)
    for count, answer in enumerate(calls, 1):
        bill, number = made[answer["claim"]], answer["claim"]
        found = answer["stage"], answer["text"]
        check(found == ("waits", bill.text), f"claim {number} was filed as {found}, {('waits 0', bill.text)} is right")
        off = max(off, abs(answer["score"] - score(bill)))
        slowest.take(answer["seconds"])
        if (name := KILLS.get(count)) is not None:
            killed.append(
                calls.kill(dormouse, name, {"claim": f"claim-{number}", "ledger": "insurer", "fraud": f"card-{bill.account}"}[name])
            )
    check(off <= TOLERANCE, f"scores within {TOLERANCE:g} of fraud's handler run directly: {off:.2g} found")
    say(f"claim: {len(made)} claims filed, some twice; texts and scores are right; {len(killed)} owners were killed meanwhile")

    reminded(dormouse, 1)
    dormouse.asleep("claim")
    check(max(steps(dormouse)) == 2, "claims sleep between their reminders")
    say("claim: each was reminded once; at zero")
    dormouse.ready("claim", 1)
    killed.append(kill(dormouse, "claim"))
    reminded(dormouse, 2)
    say("claim: nobody called; the second reminder woke it, it was killed, and each was reminded again")

    with Client(f"127.0.0.1:{dormouse.port}") as client, ThreadPoolExecutor(4) as pool:

        def decide(number: int) -> tuple[int, set[str]]:
            key = clerk.key_of(number)
            return number, {clerk.decide(client, number, made[number].approved, key) for _ in range(2)}

        for count, done in enumerate(as_completed([pool.submit(decide, n) for n in range(len(made))]), 1):
            number, stages = done.result()
            right = "paid" if made[number].approved else "refused"
            check(stages == {right}, f"claim {number} is {stages} after two tries of one decision, {right} is right")
            if (name := KILLS.get(count)) in ("claim", "ledger"):
                killed.append(kill(dormouse, name))
        none = np.zeros(0, np.int64)
        insurer = client.infer("ledger", {"payer": none, "payee": none, "cents": none}, session="insurer", timeout=60.0)
    found, right = insurer.outputs["balance"].tolist(), balances(made)
    wrong = {n: (found[n], right[n]) for n in range(len(right)) if found[n] != right[n]}
    check(not wrong, f"each account as by plain arithmetic; (found, right) of those that are not: {wrong}")
    asked = len(made) * (2 + claim.REMINDERS)
    check(insurer.step == asked + 1, f"the ledger was asked {asked} times, once for each step that asks it: {insurer.step - 1} found")
    paid = sum(bill.approved for bill in made)
    say(f"claim: {paid} paid once, {len(made) - paid} refused; {asked} calls of the ledger, each once; every account exact")
    say(f"claim: workers killed with SIGKILL: {len(killed)}, of claim and of the functions that it calls: no call failed")
    return Row(
        "workflow",
        "a handler that calls three functions",
        "0.2 KB",
        calls.rate(),
        f"{slowest.first:.1f} s",
        f"{len(killed)} kills; slowest filing {slowest.seconds:.1f} s",
    )
