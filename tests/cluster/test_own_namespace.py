"""The end of the namespace in which the operator itself is, with an installation of its own."""

import time
from collections.abc import Iterator

import pytest
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import RELEASE, SYSTEM, Dormouse, counter, installed
from dormouse_testing.cluster.namespaces import SHORT, foreign, going, objects


@pytest.fixture
def dormouse(alone: Cluster) -> Iterator[Dormouse]:
    with installed(alone, "own-namespace") as found:
        found.apply(counter("steady", minReplicas=1))
        found.ready("steady", 1)
        yield found


@pytest.mark.slow
def test_the_operators_own_namespace_goes(dormouse: Dormouse) -> None:
    """5.O1. The operator, etcd and functions in one namespace that is deleted, all at once. What is not in it stays as it was: other
    functions' objects, and somebody's of the same names."""
    with dormouse.cluster.namespace("stays") as stays:
        foreign(dormouse, stays)
        going(dormouse, SYSTEM, **SHORT)
        before = (objects(dormouse, stays), objects(dormouse, dormouse.space))
        began = time.monotonic()
        try:
            dormouse.cluster.kubectl("delete", "namespace", SYSTEM, "--timeout=60s")
            took = time.monotonic() - began
            assert took < 60
            print(f"gone after {took:.0f} s")
            assert (objects(dormouse, stays), objects(dormouse, dormouse.space)) == before
        finally:
            # What Helm would have removed, had its record not gone with the namespace.
            chosen = ["-l", f"app.kubernetes.io/instance={RELEASE}"]
            dormouse.cluster.kubectl("delete", "clusterrole,clusterrolebinding", *chosen, "--ignore-not-found")
