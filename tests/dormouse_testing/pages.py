"""The commands that a page of the documents shows, for the tests that run them: what a reader copies is what was tried.

A page's `sh` blocks stand under its headings. `RELEASE` and its namespace are `dormouse` there; a test has a namespace of its own.
"""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DAYS = ROOT / "docs/operating-kubernetes.md"


def headings(page: Path = DAYS) -> dict[str, list[list[str]]]:
    """heading -> its blocks, each a list of commands without their remarks. Headings without a block are left out."""
    found: dict[str, list[list[str]]] = {}
    for part in page.read_text().split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if blocks:
            found[title] = [_commands(block) for block in blocks]
    return found


def _commands(block: str) -> list[str]:
    lines = [re.sub(r"\s{2,}# .*$", "", line).strip() for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("# ")]


def run(heading: str, number: int, *, namespace: str, environment: Mapping[str, str], **filled: str) -> list[str]:
    """Runs a block as it stands there, in a shell that ends at its first failure; what each command printed. `filled`: what a
    reader writes in place of a name in capitals. AssertionError: one failed."""
    said = []
    for command in headings()[heading][number]:
        text = re.sub(r"-n dormouse\b(?!-)", f"-n {namespace}", command)
        for name, value in filled.items():
            text = re.sub(rf"\b{name}\b", value, text)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=ROOT, env=dict(environment), capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}: {(done.stderr or done.stdout).strip()}"
        said.append(done.stdout)
    return said
