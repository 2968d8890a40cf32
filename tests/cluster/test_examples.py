"""`kubectl apply -k examples/`, and each use of `make examples` on the cluster, with its workers' pods killed in the middle."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from conftest import unavailable
from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import Dormouse
from dormouse_testing.cluster.layout import ROOT
from dormouse_testing.cluster.sharing import Shared

EXAMPLES = ROOT / "examples"
KILL = """
import os
print("ready", flush=True)
input()
for each in os.listdir("/proc"):
    if each.isdigit() and int(each) not in (1, os.getpid()):
        os.kill(int(each), 9)
"""
"""In a worker's pod, once it is told to: SIGKILL to what serves there; its supervisor is 1."""


@pytest.fixture(scope="module")
def uses() -> Iterator[Any]:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import uses

        yield uses
    finally:
        sys.path.remove(str(EXAMPLES))


@dataclass
class Place:
    """The uses' interface to where they are shown (`running.Place`), on a cluster. Whose a session is nobody tells there: every pod of a
    function is killed where its owner should be."""

    dormouse: Dormouse
    address: str = field(init=False)

    def __post_init__(self) -> None:
        self.address = self.dormouse.address

    def asleep(self, name: str) -> None:
        self.dormouse.asleep(name, 180)

    def workers(self, name: str) -> int:
        return len(self.dormouse.pods(name))

    def aimed(self, name: str, session: str | None = None) -> tuple[str, Callable[[], None]]:
        pods = eventually(f"{name} has a worker", lambda: self.dormouse.pods(name))
        chosen = pods[:1] if session is None else pods

        cluster = self.dormouse.cluster
        killers = []
        for pod in chosen:  # they are there before they are needed: what is cut short may take no longer than kubectl
            command = cluster.command("exec", "-i", "-n", self.dormouse.space, pod, "--", "python3", "-c", KILL)
            killers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=cluster.environment()))
        for killer in killers:
            assert killer.stdout
            killer.stdout.readline()  # empty: the pod is not there any more

        def kill() -> None:
            for killer in killers:
                with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                    killer.communicate("now\n", timeout=10)
            words = ["-n", self.dormouse.space, "--grace-period=0", "--force", "--wait=false", "--ignore-not-found"]
            cluster.kubectl("delete", "pod", *chosen, *words)

        return " and ".join(chosen), kill

    def kept(self, name: str) -> None:
        return None

    def steps(self, name: str) -> None:
        return None


@pytest.fixture(scope="module")
def applied(shared: Shared, uses: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dormouse]:
    """What a user does: the images' names in a kustomization, and one command. In `default`, where a bare name leads."""
    folder = tmp_path_factory.mktemp("applied")
    with shared.functions("default", lambda: request.session.testsfailed) as dormouse:
        image, _, tag = dormouse.cluster.models_image.rpartition(":")
        shutil.copytree(EXAMPLES, folder / "examples", ignore=lambda *_: {".dormouse", "__pycache__"})
        wanted = {
            "resources": ["examples"],
            "images": [{"name": "registry.example/dormouse-examples", "newName": image, "newTag": tag}],
            "configurations": ["examples/kubernetes/images.yaml"],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
        dormouse.cluster.kubectl("apply", "-n", dormouse.space, "-k", str(folder))
        yield dormouse


def shown() -> list[str]:
    return sorted(path.parent.name for path in EXAMPLES.glob("*/use.py"))


@pytest.mark.slow
@pytest.mark.parametrize("use", shown())
def test_a_use_on_the_cluster(applied: Dormouse, uses: Any, use: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answers beside the model run directly, its workers' pods killed, and no call fails."""
    if not (ROOT / ".venv-client" / "bin" / "python").exists():
        unavailable("no environment for callers: make setup")
    module = uses.loaded(use)
    for name in module.FUNCTIONS:
        uses.there(name)
    told = uses.table([module.show(Place(applied))])
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said}{told}")
