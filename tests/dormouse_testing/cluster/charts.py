"""The chart, rendered."""

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dormouse_testing.cluster.client import CHART

Object = dict[str, Any]


class Refused(Exception):
    """Helm's own words."""


@dataclass(frozen=True, slots=True)
class Rendered:
    objects: list[Object]
    text: str

    def one(self, kind: str, name: str) -> Object:
        found = self.all(kind, name)
        assert len(found) == 1, f"{len(found)} of {kind}/{name} in {[(o['kind'], o['metadata']['name']) for o in self.objects]}"
        return found[0]

    def all(self, kind: str, name: str = "") -> list[Object]:
        return [each for each in self.objects if each["kind"] == kind and name in ("", each["metadata"]["name"])]

    def pods(self) -> Iterator[tuple[str, Object]]:
        """(name, pod's metadata and spec) of everything that becomes a pod."""
        for each in self.objects:
            if each["kind"] in ("Deployment", "StatefulSet", "Job"):
                yield each["metadata"]["name"], each["spec"]["template"]
            elif each["kind"] == "CronJob":
                yield each["metadata"]["name"], each["spec"]["jobTemplate"]["spec"]["template"]
            elif each["kind"] == "Pod":
                yield each["metadata"]["name"], each


def containers(pod: Object) -> list[Object]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def render(
    helm: str, *values: str, release: str = "dormouse", namespace: str = "system", files: Sequence[str] = (), chart: Path = CHART
) -> Rendered:
    """`values`: as after `--set`. Refused: the schema or a template said no."""
    words = [word for value in values for word in ("--set", value)] + [word for file in files for word in ("--values", file)]
    done = subprocess.run([helm, "template", release, str(chart), "-n", namespace, *words], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Refused(done.stderr)
    return Rendered([each for each in yaml.safe_load_all(done.stdout) if each], done.stdout)
