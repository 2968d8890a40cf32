"""A cluster for the whole run: the one that KUBECONFIG names, or our own on this machine.

Our own is started and stopped here, unless it runs already (`tests/cluster/cluster up`): then it is used and left running.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse_testing.cluster import images, lifecycle, tools
from dormouse_testing.cluster.client import IMAGES, Cluster
from dormouse_testing.cluster.layout import ClusterError, Layout

NODES = 1


def unavailable(reason: str) -> None:
    """A test of real parts that cannot run skips and says why; in CI that is a failure."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def helm() -> str:
    """The program. Charts can be rendered without a cluster."""
    layout = Layout.here()
    if not (layout.bin / "helm").exists() and (found := shutil.which("helm")):
        return found
    if not (layout.bin / "helm").exists() and (reason := tools.impossible()):
        unavailable(reason)
    tools.build(layout)
    return str(layout.bin / "helm")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    layout = Layout.here()
    named = os.environ.get("KUBECONFIG", "")
    if named and Path(named) != layout.kubeconfig:
        yield from _named(Path(named))
        return
    if reason := tools.impossible():
        unavailable(reason)
    found = lifecycle.running(layout)
    try:
        if not found:
            lifecycle.up(layout, NODES)
    except ClusterError as error:
        pytest.fail(str(error))
    made = Cluster(layout.kubeconfig, layout)
    try:
        yield made
    finally:
        made.close()
        if not found:
            lifecycle.down(layout)


@pytest.fixture(scope="session")
def with_images(cluster: Cluster) -> Cluster:
    """The cluster, with the project's image of this tree in every node."""
    if cluster.layout is not None:
        images.dormouse()
        images.etcd(cluster.layout)
        for tag in (images.DORMOUSE, images.ETCD):
            images.import_image(cluster.layout, cluster.nodes, tag)
    return cluster


def _named(kubeconfig: Path) -> Iterator[Cluster]:
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            unavailable(f"KUBECONFIG names a cluster, and there is no {program} to use it with")
    if lacking := [name for name in IMAGES if not os.environ.get(name)]:
        unavailable(f"KUBECONFIG names a cluster; {' and '.join(lacking)} must name images that it can pull")
    yield Cluster(kubeconfig)
