"""The Prometheus series of what only a cluster has."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge

from dormouse_operator import metrics

MISSED = Counter("dormouse_kubernetes_missed", "Complete lists that found what the watch of functions had lost")
LISTED = Gauge("dormouse_kubernetes_list_age_seconds", "Seconds since the last complete list of functions")

LACKS = Gauge("dormouse_kubernetes_definition_lacks", "Fields of functions that the cluster's definition lacks: the API server drops them")
OUT = Gauge("dormouse_kubernetes_kept_out", "1 while another installation serves what this one would, and this one touches nothing")


def watch(name: str, age: Callable[[], float]) -> None:
    """`age`: seconds since the watch was last heard."""
    metrics.age(f"kubernetes-{name}", age)


def list_age(age: Callable[[], float]) -> None:
    LISTED.set_function(age)
