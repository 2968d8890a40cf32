"""Recommendation that was learned: what does this customer put into the basket next? The session is a recurrent model's memory."""

import json

import numpy as np
import onnxruntime
from running import HERE, Place, check, say
from showing import Calls, Row, Slowest, megabytes

FUNCTIONS = ("basket",)
CUSTOMERS = 8
VISITS = ((0, 25), (25, 40))  # steps
KILL_AT = 10
POPULAR = range(1, 11)
"""Products are numbered by how often they were bought."""
TOLERANCE = 1e-6
MODEL = HERE / "basket" / "model.onnx"


def directly(customers: list[list[int]], steps: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """By customer and step the ten products and their chances, with the model run here."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(MODEL), options)
    found = []
    for products in customers:
        h, answers = np.zeros((1, 1, 128), np.float32), []
        for product in products[:steps]:
            ten, chance, h = session.run(None, {"item": np.array([product]), "h0": h})
            answers.append((ten[0], chance[0]))
        found.append(answers)
    return found


def show(dormouse: Place) -> Row:
    customers = json.loads((HERE / "basket" / "customers.json").read_text())[:CUSTOMERS]
    names = (HERE / "basket" / "products.txt").read_text().splitlines()
    right = directly(customers, VISITS[-1][1])
    slowest, off, killed, hits, popular, shown = Slowest(), 0.0, "", 0, 0, 0
    dormouse.asleep("basket")
    say("basket: proved once, and asleep: no worker runs")
    for first, last in VISITS:
        calls = Calls("basket", dormouse.address, first, last)
        for answer in calls:
            customer, step = answer["customer"], answer["step"]
            ten, chance = right[customer][step]
            check(answer["next"] == ten.tolist(), f"customer {customer}, step {step}: {answer['next']} shown, {ten.tolist()} is right")
            off = max(off, float(np.abs(np.array(answer["chance"], np.float32) - chance).max()))
            if bought := customers[customer][step + 1]:
                hits, popular, shown = hits + (bought in answer["next"]), popular + (bought in POPULAR), shown + 1
            slowest.take(answer["seconds"])
            if (step, customer) == (KILL_AT, 0):
                killed = calls.kill(dormouse, "basket", "customer-1")
        count = (last - first) * len(customers)
        check(len(calls.times) == count, f"{len(calls.times)} of {count} steps were answered")
        if first == 0:
            say(f"basket: owner {killed} killed with SIGKILL: no call failed; slowest step {slowest.seconds:.1f} s")
            dormouse.asleep("basket")
            say("basket: at zero; the customers come back")
    check(off <= TOLERANCE, f"all chances within {TOLERANCE:g} of the model run directly: {off:.2g} found")
    check(hits > popular, f"the ten shown are better than the ten most popular: {hits} and {popular} of {shown} were bought next")
    say(f"basket: all answers as the model gives them directly, chances within {off:.1g}; customer 0 is shown {names[answer['next'][0]]}")
    say(f"basket: of {shown} products {hits} were among the ten shown, {popular} are among the ten most popular")
    return Row(
        "recommendation, learned",
        f"GRU, {megabytes(MODEL)}",
        "0.5 KB",
        calls.rate(),
        f"{slowest.first:.1f} s",
        f"slowest step {slowest.seconds:.1f} s",
    )
