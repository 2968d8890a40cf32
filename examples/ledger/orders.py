"""Made-up transfers, the same ones for whoever asks. numpy alone."""

import numpy as np

LEDGERS, STEPS, TRANSFERS = 8, 50, 25
ACCOUNTS = 100


def orders(ledger: int, step: int) -> dict[str, np.ndarray]:
    """25 transfers of one step; some ask for more than an account is likely to hold."""
    rng = np.random.default_rng((ledger, step))
    payer, payee = rng.integers(0, ACCOUNTS, (2, TRANSFERS))
    return {"payer": payer, "payee": payee, "cents": rng.integers(1, 9000, TRANSFERS)}
