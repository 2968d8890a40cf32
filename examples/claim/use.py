"""Workflow: claims that call three functions, wait for a person, are reminded at zero, and pay, while those who do it are killed."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import bills
import claim
import clerk
import numpy as np
from dormouse.client import Client
from running import Place, Untrue, check, say
from showing import Calls, Row, Slowest, module

fraud, ledger = module("fraud/fraud"), module("ledger/ledger")
FUNCTIONS = ("claim", "words", "fraud", "ledger")
PATIENT, FORGOTTEN = (0, 8), (8, bills.CLAIMS)
"""Claims that are decided before anybody is reminded, and those that are not. The former are filed while workers die."""
HOUR = 3600
TOLERANCE = 1e-9


def score(bill: bills.Bill) -> float:
    handler, state = fraud.Fraud(), {each.name: each.first() for each in fraud.Fraud.states}
    sent = {"amount": np.array([bill.cents / 100]), "hour": np.array([12.0]), "abroad": np.array([False])}
    return float(handler.step(sent, state, None)["score"][0])


def letters() -> int:
    return claim.REMINDERS * (FORGOTTEN[1] - FORGOTTEN[0])


def balances(made: list[bills.Bill]) -> list[int]:
    """What each account of the insurer's ledger holds when all is done, by plain arithmetic."""
    found = [ledger.OPENING] * ledger.ACCOUNTS
    postage = claim.STAMP * letters()
    found[claim.POSTAGE] += postage
    found[claim.FUND] -= postage
    for bill in made:
        if bill.approved:
            found[claim.FUND] -= bill.cents
            found[bill.account] += bill.cents
    return found


def kill(dormouse: Place, name: str) -> str:
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(Untrue):
            worker, kill_it = dormouse.aimed(name)
            kill_it()
            return worker
        check(time.monotonic() < until, f"a worker of {name} is there to be killed: none within 60 s")
        time.sleep(0.1)


def steps(dormouse: Place) -> set[int]:
    """How many steps the forgotten claims have made; empty: not known here."""
    found = dormouse.steps("claim")
    return set() if found is None else {found[f"claim-{n}"] for n in range(*FORGOTTEN)}


def reminded(dormouse: Place, times: int, killed: str) -> str:
    """Reminder number `times` comes to a function at zero, and a worker of `killed` dies of it. Who died."""
    dormouse.asleep("claim")
    before = steps(dormouse)
    check(before in (set(), {times}), f"claims sleep before reminder {times}: steps {before} found")
    until = time.monotonic() + 120
    while not dormouse.workers("claim"):
        check(time.monotonic() < until, f"nobody calls, and reminder {times} wakes it from zero: not within 120 s")
        time.sleep(0.1)
    worker = kill(dormouse, killed)
    while before and min(steps(dormouse)) < 1 + times:  # where they are not known, the ledger's steps tell in the end
        check(time.monotonic() < until, f"each claim is reminded {times} times: not in time, steps {steps(dormouse)}")
    say(f"claim: nobody called, and reminder {times} woke it from zero; a worker of {killed} was killed meanwhile")
    return worker


def filed(
    dormouse: Place, which: tuple[int, int], made: list[bills.Bill], remind: int, to_kill: list[str]
) -> tuple[Calls, Slowest, list[str]]:
    slowest, killed, off = Slowest(), [], 0.0
    calls = Calls("claim", dormouse.address, *which, remind, remind)
    for count, answer in enumerate(calls, 1):
        number, found = answer["claim"], (answer["stage"], answer["text"])
        right = "waits", made[number].text
        check(found == right, f"claim {number} was filed as {found}, {right} is right")
        off = max(off, abs(answer["score"] - score(made[number])))
        slowest.take(answer["seconds"])
        if count % 2 == 0 and to_kill:
            with contextlib.suppress(Untrue):  # it is asleep just now: after a later answer
                killed.append(calls.kill(dormouse, to_kill[0]))
                del to_kill[0]
    check(not to_kill, f"workers are killed while claims are filed: {to_kill} are not")
    check(off <= TOLERANCE, f"scores within {TOLERANCE:g} of fraud's handler run directly: {off:.2g} found")
    return calls, slowest, killed


def show(dormouse: Place) -> Row:
    made = bills.bills()
    dormouse.asleep("claim")
    say("claim: proved once, and asleep: no worker runs")
    calls, slowest, killed = filed(dormouse, PATIENT, made, HOUR, ["fraud", "ledger"])
    pace = max(slowest.first, slowest.seconds)  # this machine's
    remind = 60 if dormouse.steps("claim") is None else 5 + int(2 * pace)  # till it sleeps; elsewhere weeks
    filed(dormouse, FORGOTTEN, made, remind, [])
    say(f"claim: {len(made)} claims filed, some twice; texts and scores are right; a worker of fraud and one of ledger were killed")
    killed += [reminded(dormouse, 1, "claim"), reminded(dormouse, 2, "ledger")]

    with Client(dormouse.address) as client, ThreadPoolExecutor(4) as pool:

        def decide(number: int) -> tuple[int, set[str]]:
            key = clerk.key_of(number)
            return number, {clerk.decide(client, number, made[number].approved, key) for _ in range(2)}

        for count, done in enumerate(as_completed([pool.submit(decide, n) for n in range(len(made))]), 1):
            number, stages = done.result()
            right = "paid" if made[number].approved else "refused"
            check(stages == {right}, f"claim {number} is {stages} after two tries of one decision, {right} is right")
            if count in (2, 6):
                killed.append(kill(dormouse, "claim" if count == 2 else "ledger"))
        none = np.zeros(0, np.int64)
        insurer = client.infer("ledger", {"payer": none, "payee": none, "cents": none}, session="insurer", timeout=60.0)
    found, right = insurer.outputs["balance"].tolist(), balances(made)
    wrong = {n: (found[n], right[n]) for n in range(len(right)) if found[n] != right[n]}
    check(not wrong, f"each account as by plain arithmetic; (found, right) of those that are not: {wrong}")
    asked = 2 * len(made) + letters()
    check(insurer.step == asked + 1, f"the ledger was asked {asked} times, once for each step that asks it: {insurer.step - 1} found")
    paid = sum(bill.approved for bill in made)
    say(f"claim: {paid} paid once, {len(made) - paid} refused; {asked} calls of the ledger, each once; every account exact")
    say(f"claim: workers killed with SIGKILL: {len(killed)}, of claim and of the functions that it calls: no call failed")
    return Row(
        "workflow",
        "a handler that calls three functions",
        "0.5 KB",
        calls.rate(),
        f"{slowest.first:.1f} s",
        f"{len(killed)} kills; slowest filing {slowest.seconds:.1f} s",
    )
