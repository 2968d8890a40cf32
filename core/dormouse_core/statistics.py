"""Counts and times of a function's calls in Triton's form (ModelStatistics), as one worker has them and as their sum.

Triton counts since the server began; here a worker counts since its process began, and a function's figures are those of the workers that
live. Refusals that ran nothing (`dormouse-again`) and kept replies are no inferences. Times are sums over calls, in nanoseconds.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dormouse_proto import inference_pb2

from dormouse_core.describing import VERSION


@dataclass(slots=True)
class Tally:
    """Times are in seconds."""

    succeeded: int = 0
    succeeded_seconds: float = 0.0
    """From a call's first byte to its answer."""
    failed: int = 0
    failed_seconds: float = 0.0
    runs: int = 0
    rows: int = 0
    """Of calls that ran; a batch of 8 from one caller counts 8."""
    ran: int = 0
    """Calls that ran."""
    queued_seconds: float = 0.0
    ran_seconds: float = 0.0
    """For each call, the time of the run that it was part of."""
    last_ms: int = 0
    """When the last run ended, Unix time."""


def message(name: str, tally: Tally) -> inference_pb2.ModelStatistics:
    stats = inference_pb2.ModelStatistics(
        name=name, version=VERSION, last_inference=tally.last_ms, inference_count=tally.rows, execution_count=tally.runs
    )
    inner = stats.inference_stats
    _set(inner.success, tally.succeeded, tally.succeeded_seconds)
    _set(inner.fail, tally.failed, tally.failed_seconds)
    _set(inner.queue, tally.ran, tally.queued_seconds)
    # Making and cutting a batch is part of the run here.
    _set(inner.compute_input, tally.ran, 0.0)
    _set(inner.compute_infer, tally.ran, tally.ran_seconds)
    _set(inner.compute_output, tally.ran, 0.0)
    return stats


def add(name: str, parts: Iterable[inference_pb2.ModelStatistics]) -> inference_pb2.ModelStatistics:
    """The sum of several workers' figures; of none: zeros."""
    total = message(name, Tally())
    for part in parts:
        total.last_inference = max(total.last_inference, part.last_inference)
        total.inference_count += part.inference_count
        total.execution_count += part.execution_count
        for field in inference_pb2.InferStatistics.DESCRIPTOR.fields:
            mine, theirs = getattr(total.inference_stats, field.name), getattr(part.inference_stats, field.name)
            mine.count += theirs.count
            mine.ns += theirs.ns
    return total


def _set(duration: Any, count: int, seconds: float) -> None:
    duration.count = count
    duration.ns = round(seconds * 1e9)
