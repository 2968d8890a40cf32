"""Helm, and Dormouse installed. The cluster itself: tests/conftest.py."""

import shutil
from collections.abc import Generator, Iterator

import pytest
from conftest import unavailable
from dormouse_testing.cluster import tools
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.functions import Dormouse, counter, echo
from dormouse_testing.cluster.layout import Layout
from dormouse_testing.cluster.sharing import Shared


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
def dormouse(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Dormouse]:
    """The installation that modules share, with a namespace of its own for a module's functions."""
    space = request.module.__name__.rpartition(".")[2].replace("_", "-")
    with shared.functions(space, lambda: request.session.testsfailed) as found:
        yield found


@pytest.fixture(scope="module")
def base(dormouse: Dormouse) -> Dormouse:
    """With a function that serves all the time, which nobody's trouble may touch, and one that sleeps."""
    dormouse.apply(counter("steady", minReplicas=1), echo("echo"))
    dormouse.ready("steady", 1)
    return dormouse


@pytest.fixture
def own(base: Dormouse) -> Dormouse:
    if not base.cluster.own:
        pytest.skip("another's cluster is not ours to disturb")
    return base


@pytest.fixture
def unharmed(base: Dormouse) -> Iterator[None]:
    """Around a test: the steady function counts on, and nothing of the installation was started anew that the test did not end."""
    before = base.restarts()
    base.call("steady", 1, session="throughout")
    yield
    assert base.call("steady", 0, session="throughout") > 0
    after = base.restarts()
    assert {name: count for name, count in after.items() if count != before.get(name, 0)} == {}


@pytest.fixture(scope="module")
def alone(shared: Shared, with_images: Cluster) -> Cluster:
    """The cluster without Dormouse, for who installs it by himself."""
    shared.end()
    return with_images


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who needs the cluster alone comes first, so that the installation that the others share is made once."""
    items.sort(key=lambda item: "alone" not in getattr(item, "fixturenames", ()))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What the operator said, beside a failure."""
    report = yield
    found = getattr(item, "funcargs", {}).get("dormouse")
    if report.failed and isinstance(found, Dormouse):
        report.sections.append(("the operator", found.said()))
    return report
