"""A cluster for the whole run: the one that KUBECONFIG names, or our own on this machine.

Our own is started and stopped here, unless it runs already (`tests/cluster/cluster up`): then it is used and left running.
"""

import os
import shutil
from collections.abc import Iterator

import pytest
from dormouse_testing.cluster import holding, tools
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import Dormouse, installed
from dormouse_testing.cluster.layout import ClusterError, Layout


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
    try:
        with holding.cluster() as held:
            yield held
    except holding.Unavailable as error:
        unavailable(str(error))
    except ClusterError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def with_images(cluster: Cluster) -> Cluster:
    """The cluster, with the images of this tree in every node: the project's, and the one with the examples' models."""
    holding.bring_images(cluster, models=True)
    return cluster


@pytest.fixture(scope="module")
def dormouse(with_images: Cluster, request: pytest.FixtureRequest) -> Iterator[Dormouse]:
    """Dormouse installed, and a namespace of its own for a module's functions."""
    failed = request.session.testsfailed
    with installed(with_images, request.module.__name__.rpartition(".")[2].replace("_", "-")) as found:
        yield found
        if request.session.testsfailed > failed:
            found.tell()
