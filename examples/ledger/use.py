"""Transactions: 10,000 transfers, many of them sent again, while workers die; every balance is exact."""

import ledger
import orders
from running import Place, check, say
from showing import Calls, Row, Slowest

FUNCTIONS = ("ledger",)
KILL_AFTER = (100, 250, 400)  # answers


def directly() -> dict[tuple[int, int], tuple[list[bool], list[int]]]:
    """By ledger and step what was done and what each account holds, when each transfer happens once and in its order."""
    found, handler = {}, ledger.Ledger()
    for number in range(orders.LEDGERS):
        state = {each.name: each.first() for each in handler.states}
        for step in range(orders.STEPS):
            answer = handler.step(orders.orders(number, step), state, None)
            found[number, step] = answer["done"].tolist(), answer["balance"].tolist()
    return found


def show(dormouse: Place) -> Row:
    right = directly()
    dormouse.asleep("ledger")
    say("ledger: proved once, and asleep: no worker runs")
    slowest, seen, again, killed = Slowest(), set(), 0, []
    calls = Calls("ledger", dormouse.address)
    for count, answer in enumerate(calls, 1):
        which = answer["ledger"], answer["step"]
        found = answer["done"], answer["balance"]
        check(
            found == right[which],
            f"ledger {which[0]}, step {which[1]}, {answer['again']} times sent again: {found} found, {right[which]} is right",
        )
        seen.add(which)
        again += answer["again"]
        slowest.take(answer["seconds"])
        if count in KILL_AFTER:
            killed.append(calls.kill(dormouse, "ledger", f"branch-{answer['ledger']}"))
    check(seen == set(right), f"{len(seen)} of {len(right)} steps were answered")
    transfers = len(right) * orders.TRANSFERS
    done = sum(sum(done) for done, _ in right.values())
    total = sum(sum(right[number, orders.STEPS - 1][1]) for number in range(orders.LEDGERS))
    opening = ledger.OPENING * ledger.ACCOUNTS * orders.LEDGERS
    check(total == opening, f"{total} cents are there, {opening} were at the beginning")
    say(f"ledger: {transfers} transfers, {done} done, the others not covered; {again} of {len(right)} steps sent again: each counted once")
    say(f"ledger: owners killed with SIGKILL {len(killed)} times: no call failed; {total} cents as before")
    rate = f"{calls.rate()} ({int(float(calls.rate()) * orders.TRANSFERS)} transfers)"
    return Row(
        "transactions", "a handler", "0.8 KB", rate, f"{slowest.first:.1f} s", f"{len(killed)} kills; slowest step {slowest.seconds:.1f} s"
    )
