"""What the demo on a cluster must not do. The demo itself: `make cluster-demo`."""

import sys
from pathlib import Path
from typing import Any

import pytest
from dormouse_testing.cluster.layout import ClusterError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Cluster:
    """Somebody's, with Dormouse in it already. Whatever else is asked of it is noted."""

    def __init__(self, *there: tuple[str, str]) -> None:
        self.there = there
        self.asked: list[str] = []

    def exists(self, kind: str, name: str, namespace: str = "") -> bool:
        return (kind, name) in self.there

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        raise AssertionError(name)


@pytest.mark.parametrize("there", [("crd", "inferencefunctions.dormouse.dev"), ("namespace", "dormouse")])
def test_an_installation_that_is_there_already_is_left_alone(there: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    sys.modules.pop("cluster_demo", None)
    import cluster_demo

    cluster: Any = Cluster(there)
    with pytest.raises(ClusterError, match="is there already, and the demo removes what it installs"), cluster_demo.release(cluster):
        pass
    assert cluster.asked == []


def test_negative_control_where_there_is_none_it_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import cluster_demo

    cluster: Any = Cluster()
    with pytest.raises(AssertionError), cluster_demo.release(cluster):
        pass
    assert cluster.asked
