"""The whole system with functions of every kind, for clients that know nothing of Dormouse: on one machine, and on a cluster."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse_testing import conforming
from dormouse_testing.cluster.sharing import Shared
from dormouse_testing.up import missing, system

NAMESPACE = "default"
"""Of the functions: the one in which a gateway looks for a model without a namespace."""


@pytest.fixture(scope="session", params=[pytest.param(name, marks=getattr(pytest.mark, name)) for name in ("machine", "cluster")])
def gateway(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its host:port. Of two systems one is gone before the other begins."""
    folder = tmp_path_factory.mktemp(conforming.NAME)
    if request.param == "machine":
        if reason := missing():
            unavailable(reason)
        with one_machine(folder) as address:
            yield address
    else:
        with a_cluster(request.getfixturevalue("shared"), folder, lambda: request.session.testsfailed) as address:
            yield address


@contextlib.contextmanager
def one_machine(folder: Path) -> Iterator[str]:
    conforming.files(folder)
    with system(folder) as up:
        up.wait_ready()
        for name in conforming.SERVED:
            up.until_phase(name, "Ready", "Asleep")
        yield up.gateway


@contextlib.contextmanager
def a_cluster(shared: Shared, folder: Path, failures: Callable[[], int]) -> Iterator[str]:
    with shared.functions(NAMESPACE, failures) as dormouse:
        try:
            dormouse.apply(*conforming.objects(folder))
            for name in conforming.SERVED:
                dormouse.phase(name, "Ready", "Asleep", seconds=120)
            yield dormouse.address
        except AssertionError:
            print(dormouse.said())
            raise
        finally:
            dormouse.cluster.kubectl("delete", "configmap", conforming.NAME, "-n", NAMESPACE, "--ignore-not-found")
