"""Helm, and Dormouse installed. The cluster itself: tests/conftest.py."""

import shutil
from collections.abc import Iterator

import pytest
from conftest import unavailable
from dormouse_testing.cluster import tools
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import Dormouse, installed
from dormouse_testing.cluster.layout import Layout


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


@pytest.fixture(scope="module")
def dormouse(with_images: Cluster, request: pytest.FixtureRequest) -> Iterator[Dormouse]:
    """Dormouse installed, and a namespace of its own for a module's functions."""
    failed = request.session.testsfailed
    with installed(with_images, request.module.__name__.rpartition(".")[2].replace("_", "-")) as found:
        yield found
        if request.session.testsfailed > failed:
            found.tell()
