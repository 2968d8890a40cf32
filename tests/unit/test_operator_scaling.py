"""What the autoscaler is told of a spec."""

from typing import Any

import pytest
from dormouse_core.autoscaling import Scaling
from dormouse_core.spec import parse_manifest, spec_to_json
from dormouse_operator.functions import scaling_of
from dormouse_proto import state_pb2
from dormouse_testing.manifests import STATE, onnx


def told(**spec: Any) -> Scaling:
    return scaling_of(state_pb2.FunctionEntry(spec=spec_to_json(parse_manifest(onnx(**spec)).spec)))


def test_the_fields_that_scale_are_the_autoscalers_own() -> None:
    scaling = told(minReplicas=2, maxReplicas=5, scaleMetric="rps", scaleTarget=30, scaleToZeroAfter="7s")
    assert (scaling.minimum, scaling.maximum, scaling.metric, scaling.target) == (2, 5, "rps", 30.0)
    assert (scaling.replicas, scaling.scale_to_zero_after) == (None, 7.0)
    assert told(replicas=3).replicas == 3
    assert (told().asked, told(askedReplicas=0).asked, told(askedReplicas=4).asked) == (1, 0, 4)


@pytest.mark.parametrize(
    ("metric", "target", "expected"), [("concurrency", 100, 8), ("concurrency", 4, 4), ("rps", 100, 100), ("sessions", 100, 100)]
)
def test_a_worker_is_not_meant_to_carry_more_calls_at_once_than_it_takes(metric: str, target: int, expected: int) -> None:
    assert told(sessions={"states": [STATE]}, scaleMetric=metric, scaleTarget=target, maxConcurrency=8).target == expected
