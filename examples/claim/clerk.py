"""The person who decides, with our own client: `python clerk.py HOST:PORT CLAIM yes|no`."""

import sys
import time

import dormouse
import numpy as np


def decide(client: dormouse.Client, claim: int, approved: bool, key: str) -> str:
    """What became of the claim: paid or refused. Whoever did not see the answer sends the decision again, under the same key."""
    given = {"approved": np.array([approved])}
    answer = client.infer("claim", given, session=f"claim-{claim}", idempotency_key=key, timeout=60.0)
    return answer.outputs["stage"][0].decode()


def key_of(claim: int) -> str:
    return f"{time.time_ns() // 1000:016d}-decision-{claim}"


if __name__ == "__main__":
    with dormouse.Client(sys.argv[1]) as gateway:
        print(decide(gateway, int(sys.argv[2]), sys.argv[3] == "yes", key_of(int(sys.argv[2]))))
