"""The operator's Prometheus series."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from dormouse_core import usages
from dormouse_core.autoscaling import Decision, Workers
from dormouse_core.coordination import Action
from dormouse_core.keys import Function
from dormouse_core.limits import USAGE_SERIES_TENANTS
from dormouse_core.usages import SECOND_US, Totals, Usage
from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

WANTED = Gauge("dormouse_workers_wanted", "Workers that the autoscaler wants", ["function"])
READY = Gauge("dormouse_workers_ready", "Workers of the target revision that serve", ["function"])
STARTING = Gauge("dormouse_workers_starting", "Workers that were started and have not registered", ["function"])
DECISIONS = Counter("dormouse_autoscaler_decisions", "Decisions by whether enough was known to scale down", ["function", "valid"])
SHARDS = Counter("dormouse_shards_moved", "Shards written by the coordinator: assign, failover, plan, cancel", ["function", "action"])
LEADING = Gauge("dormouse_leading", "1 while this process leads")
SESSIONS = Gauge("dormouse_sessions", "Live sessions, in memory or in the store, as counted last", ["function"])
HIBERNATED = Gauge("dormouse_hibernated_bytes", "Bytes of records in the store that no worker has in memory", ["function"])
REMOVED = Counter("dormouse_removed_records", "Records of sleeping functions that were removed after their expiry")
CLOCK_DEVIATION = Gauge("dormouse_leader_clock_deviation_seconds", "The leader's clock minus the median of all clocks; NaN: not known")
EVENT_AGE = Gauge("dormouse_event_age_seconds", "Seconds since the store's watch was last heard", ["watch"])
STORE_USED = Gauge("dormouse_store_used_fraction", "Fraction of etcd's quota that keys take; NaN: not known")
STORE_BYTES = Gauge("dormouse_store_bytes", "Bytes of a member's file: all of it (what the quota counts), in use", ["endpoint", "part"])
STORE_FULL = Gauge("dormouse_store_full", "1 while etcd refuses writes because it is full (NOSPACE)")
COMPACTIONS = Counter("dormouse_store_compactions", "Compactions of the store's history that this process asked for")
DEFRAGMENTED = Counter("dormouse_store_defragmentation_seconds", "Seconds for which this process had a member defragment its file")


_USAGE: Mapping[str, tuple[str, Callable[[Usage], float]]] = {
    "dormouse_usage_steps_total": ("Steps of sessions that were committed", lambda it: it.steps),
    "dormouse_usage_calls_total": ("Calls of functions without sessions that succeeded", lambda it: it.calls),
    "dormouse_usage_failed_calls_total": ("Calls that a worker ended with an error", lambda it: it.failed),
    "dormouse_usage_refused_calls_total": ("Calls that a worker sent elsewhere before anything ran", lambda it: it.refused),
    "dormouse_usage_repeated_calls_total": ("Copies of calls that were answered with a kept reply", lambda it: it.repeated),
    "dormouse_usage_busy_seconds_total": ("Time in the model or handler", lambda it: it.busy_us / SECOND_US),
    "dormouse_usage_received_bytes_total": ("Bytes of messages", lambda it: it.bytes_in),
    "dormouse_usage_sent_bytes_total": ("Bytes of replies", lambda it: it.bytes_out),
    "dormouse_usage_live_byte_seconds_total": ("Bytes of state times seconds, in a worker's memory", lambda it: it.live_us // SECOND_US),
    "dormouse_usage_hibernated_byte_seconds_total": (
        "Bytes of state times seconds, in the store alone",
        lambda it: it.hibernated_us // SECOND_US,
    ),
    "dormouse_usage_worker_seconds_total": ("Time for which workers were registered", lambda it: it.worker_us / SECOND_US),
}


class UsageSeries(Collector):
    """What was used, by function and tenant, as it was summed last. A function that was not summed yet has no series: not known is not
    zero. No counter of a function goes down (`usages.counters`), and callers who make up tenants make no scrape longer than
    USAGE_SERIES_TENANTS allow. Read in another thread than written: what was put is replaced, not changed."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[Totals, float]] = {}
        self._of: dict[str, str] = {}  # by label: whose totals they are

    def put(self, function: Function, totals: Totals, at: float) -> None:
        """`at`: Unix time in seconds."""
        label, path = function.label, function.data_path
        before = self._found[label][0] if self._of.get(label) == path else None  # one made again under its name begins at nothing
        others = sum(_named(found) for other, (found, _) in self._found.items() if other != label)
        self._found[label] = (usages.counters(before, totals, max(0, USAGE_SERIES_TENANTS - others)), at)
        self._of[label] = path

    def only(self, functions: set[str]) -> None:
        """All others are gone."""
        self._found = {function: found for function, found in self._found.items() if function in functions}
        self._of = {function: path for function, path in self._of.items() if function in functions}

    def collect(self) -> Iterator[Metric]:
        found = list(self._found.items())
        for name, (text, read) in _USAGE.items():
            family = CounterMetricFamily(name, text, labels=["function", "tenant", "others"])
            for function, (totals, _) in found:
                for tenant, usage in totals.items():
                    family.add_metric([function, tenant or "", str(tenant is None).lower()], read(usage))
            yield family
        ages = GaugeMetricFamily("dormouse_usage_summed_timestamp_seconds", "When a function's usage was summed last", labels=["function"])
        for function, (_, at) in found:
            ages.add_metric([function], at)
        yield ages


def _named(totals: Totals) -> int:
    return sum(1 for tenant in totals if tenant)


USAGE = UsageSeries()
REGISTRY.register(USAGE)


def decided(function: str, decision: Decision, workers: Workers) -> None:
    WANTED.labels(function).set(decision.wanted)
    READY.labels(function).set(workers.ready)
    STARTING.labels(function).set(workers.starting)
    DECISIONS.labels(function, str(decision.valid).lower()).inc()


def shards(function: str, action: Action) -> None:
    SHARDS.labels(function, type(action).__name__.lower()).inc(len(getattr(action, "shards", ())))


def age(watch: str, read: Callable[[], float]) -> None:
    EVENT_AGE.labels(watch).set_function(read)


def counted(function: str, sessions: int, hibernated: int) -> None:
    SESSIONS.labels(function).set(sessions)
    HIBERNATED.labels(function).set(hibernated)


def forget(function: str) -> None:
    """A deleted function's series end with it."""
    for series in (WANTED, READY, STARTING):
        series.remove(function)
    for counted_series in (SESSIONS, HIBERNATED):
        with contextlib.suppress(KeyError):  # a stateless function's was never counted
            counted_series.remove(function)
    for valid in ("true", "false"):
        DECISIONS.remove(function, valid)


def store(used: float | None, files: Mapping[str, tuple[int, int]], *, full: bool) -> None:
    """`files`: endpoint -> bytes of its file, of which in use."""
    STORE_USED.set(float("nan") if used is None else used)
    STORE_FULL.set(full)
    for endpoint, (size, in_use) in files.items():
        STORE_BYTES.labels(endpoint, "file").set(size)
        STORE_BYTES.labels(endpoint, "used").set(in_use)
