"""What CONTRIBUTING.md and `make help` say is there, and a version is one version."""

import re
import tomllib
from pathlib import Path

import dormouse
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_path_that_the_page_names_is_there() -> None:
    written = {word for word in re.findall(r"`([^`\s]+)`", PAGE) if "/" in word} | set(re.findall(r"\]\((?!https:)([^)#:]+)", PAGE))
    assert len(written) > 20
    assert {path for path in written if not (ROOT / path).exists()} == set()


def test_every_target_is_in_the_help() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE)) - {"help"}
    says = " ".join(re.findall(r'@echo "(.*)"', MAKEFILE))
    assert {target for target in targets if not re.search(rf"\b{target}\b", says)} == set()
    assert len(targets) > 15


def test_every_target_that_the_page_names_is_there() -> None:
    assert {name for name in re.findall(r"\bmake ([a-z-]+)", PAGE) if not re.search(rf"^{name}:", MAKEFILE, re.MULTILINE)} == set()


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    chart = yaml.safe_load((ROOT / "deploy/helm/dormouse/Chart.yaml").read_text(encoding="utf-8"))
    assert {project, dormouse.__version__, chart["version"], str(chart["appVersion"])} == {project}
