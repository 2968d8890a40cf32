"""Made-up payments of made-up cards, the same ones for whoever asks: no bank gives away its own. numpy alone.

Half of the cards belong to travellers, who pay abroad more often than at home. Of a hundred payments about six are a thief's: larger ones,
most of them abroad, at any hour.
"""

import numpy as np

CARDS, PAYMENTS = 16, 60


def payments(card: int) -> list[dict[str, np.ndarray]]:
    """Each payment's inputs, and `fraud`: whether a thief made it."""
    rng = np.random.default_rng(card)
    usual, abroad = rng.uniform(3, 5), 0.6 if card % 2 else 0.02
    found = []
    for _ in range(PAYMENTS):
        thief = rng.random() < 0.06
        amount = np.exp(rng.normal(usual + (1.5 if thief else 0), 0.7))
        hour = rng.uniform(0, 24) if thief else rng.uniform(7, 23.5)
        found.append(
            {
                "amount": np.array([round(amount, 2)]),
                "hour": np.array([round(hour, 2)]),
                "abroad": np.array([bool(rng.random() < (0.7 if thief else abroad))]),
                "fraud": np.array([thief]),
            }
        )
    return found
