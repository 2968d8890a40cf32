"""Simulated histories use fewer kept keys than the product, so that short histories evict them and meet the horizon."""

import logging
from collections.abc import Iterator

import pytest
from dormouse_core import steps


@pytest.fixture(autouse=True)
def _few_kept_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(steps, "KEPT_KEYS", 2)
    logging.disable(logging.CRITICAL)  # thousands of workers die here
    yield
    logging.disable(logging.NOTSET)
