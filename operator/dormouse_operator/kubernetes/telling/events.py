"""An Event, whatever it is about: Kubernetes keeps it for an hour and shows it beside its object."""

from collections.abc import Mapping
from typing import Any

from dormouse_operator.kubernetes.api.http import Object
from dormouse_operator.kubernetes.api.kinds import EVENTS
from dormouse_operator.kubernetes.objects.object_entries import timestamp

COMPONENT = "dormouse-operator"
_MESSAGE, _NAME = 1024, 200  # characters: the API's limit, and of a name what leaves room for what is generated behind it


def build_event(about: Mapping[str, Any], reason: str, message: str, *, warning: bool, reporter: str, now: float) -> Object:
    """`about`: apiVersion, kind, namespace, name and where it is known the uid. `reporter`: the process that says it. `now`: wall time."""
    at = timestamp(now)
    return {
        "apiVersion": EVENTS.version,
        "kind": EVENTS.name,
        "metadata": {"namespace": about["namespace"], "generateName": f"{about['name'][:_NAME]}."},
        "involvedObject": dict(about),
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": reporter,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
