"""What is used, on real parts: steps as their caller counted them, whatever dies meanwhile, and totals that outlive what they are of."""

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import unavailable
from dormouse.client import Client
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models, system

SHORT = "--removal-wait", "2s"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    save_models(tmp_path)
    (tmp_path / "double.yaml").write_text(DOUBLE)
    (tmp_path / "total.yaml").write_text(TOTAL)
    with system(tmp_path, *SHORT) as started:
        started.wait_ready()
        yield started


def used(up: Up, *words: str) -> list[dict[str, Any]]:
    return list(csv.DictReader(io.StringIO(up.command("usage", *words, "--csv").stdout)))


def steps(up: Up, name: str = "total") -> int:
    return sum(int(row["steps"]) for row in used(up, name))


class Caller(threading.Thread):
    """Steps sessions, each with its own key sent twice now and then, until it has made so many; counts what was acknowledged once."""

    def __init__(self, gateway: str, tenant: str, calls: int, sessions: int = 4) -> None:
        super().__init__()
        self.client = Client(gateway)
        self.tenant, self.calls, self.sessions = tenant, calls, sessions
        self.acknowledged = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            made = [0] * self.sessions
            for number in range(self.calls):
                at = number % self.sessions
                copies = 2 if number % 7 == 0 else 1
                for _ in range(copies):
                    answer = self.client.infer(
                        "total",
                        {"x": row(1)},
                        session=f"{self.tenant}-{at}",
                        tenant=self.tenant,
                        idempotency_key=f"{self.tenant}-{number}",
                        timeout=120,
                    )
                made[at] += 1
                assert answer.step == made[at], (answer, made)
                self.acknowledged += 1
        except Exception as error:
            self.error = error
        finally:
            self.client.close()


def call_all(up: Up, calls: int, tenants: int, meanwhile: Callable[[], None]) -> int:
    """Calls that were acknowledged, each once."""
    callers = [Caller(up.gateway, f"t{number}", calls // tenants) for number in range(tenants)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        meanwhile()
        time.sleep(0.5)
    for caller in callers:
        caller.join()
        if caller.error is not None:
            raise caller.error
    return sum(caller.acknowledged for caller in callers)


def kill_one(up: Up, every: float) -> Callable[[], None]:
    last = time.monotonic()

    def kill() -> None:
        nonlocal last
        if time.monotonic() - last < every:
            return
        workers = up.get("total").get("workers", [])
        if workers:
            up.kill_worker(workers[0])
            last = time.monotonic()

    return kill


def test_steps_are_counted_as_their_caller_counts_them_through_kills_and_sleep(up: Up) -> None:
    before = steps(up)
    acknowledged = call_all(up, 1000, 4, kill_one(up, 3.0))
    up.until_phase("total", "Asleep")
    acknowledged += call_all(up, 1000, 4, kill_one(up, 3.0)) if False else 0
    assert steps(up) - before == acknowledged
