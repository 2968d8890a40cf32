"""docs/client.md: each program and command of it is run as it stands. And a package in a handler's folder, as docs/handlers.md has it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import unavailable
from dormouse_testing.stream_clients import PYTHON, missing
from dormouse_testing.system import DORMOUSE, System, manifest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/client.md").read_text()
TELLER = """
import dormouse
import numpy as np

class Teller(dormouse.Handler):
    inputs = [dormouse.Tensor("words", "INT64", [1])]
    outputs = [dormouse.Tensor("word", "INT64", [1])]
    states = [dormouse.State("told", "INT64", [1])]

    def step(self, inputs, state, ctx):
        for _ in range(int(inputs["words"][0])):
            state["told"] += 1
            yield {"word": state["told"].copy()}
"""


def blocks(kind: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(ROOT / "examples/fraud", folder / "fraud", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "examples/fraud.yaml", folder)
    (folder / "teller").mkdir()
    (folder / "teller" / "teller.py").write_text(TELLER)
    (folder / "teller.yaml").write_text(
        manifest("teller", runtime="python", model={"uri": "file://teller"}, handler="teller:Teller", sessions={})
    )
    with System(folder) as started:
        for name in ("fraud", "teller"):
            started.wait_proved(name)
        yield started


def ran(system: System, *command: object, code: str = "") -> str:
    environment = {**os.environ, "DORMOUSE_DIR": str(system.folder), "PATH": f"{DORMOUSE.parent}:{os.environ['PATH']}"}
    words = [str(word).replace("127.0.0.1:8001", system.address) for word in command]
    text = code.replace("127.0.0.1:8001", system.address)
    done = subprocess.run(words, input=text, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{text or words}: {done.stderr.strip()}"
    return done.stdout


def test_each_program_of_the_page_for_callers_runs_as_it_stands(system: System) -> None:
    programs = blocks("python")
    assert len(programs) == 5
    said = [ran(system, PYTHON if "tritonclient" in code else sys.executable, "-", code=code).split() for code in programs]
    assert said[0][1::2] == ["1", "2", "3"], "the steps of the card"
    assert len(said[1]) == 4
    assert said[2][1] == "1"
    assert said[3] == ["[1]", "[2]", "[3]"], "what the teller says, and no empty last one"
    assert said[4] == ["[1]", "[2]", "[3]"], "by our own client"


def test_each_command_of_the_page_for_callers_runs_as_it_stands(system: System) -> None:
    grpcurl = ROOT / ".cache" / "bin" / "grpcurl"
    call, by_grpcurl = blocks("sh")[0].split("grpcurl ", 1)
    assert "step" in ran(system, "bash", "-euc", call)
    if grpcurl.exists():  # where there is a Go, CI builds it
        assert "score" in ran(system, "bash", "-euc", f"{grpcurl} {by_grpcurl}")


def test_a_package_in_the_handlers_own_folder_is_found_and_a_part_of_the_revision(system: System) -> None:
    """As `pip install --target` leaves it there."""
    package = system.folder / "teller" / "words_of"
    package.mkdir()
    (package / "__init__.py").write_text("from words_of.many import MANY\n")
    (package / "many.py").write_text("MANY = 40\n")
    handler = system.folder / "teller" / "teller.py"
    handler.write_text(f"from words_of import MANY\n{TELLER.replace('+= 1', '+= MANY')}")
    before = system.get("teller")["revision"]
    system.command("apply", "-f", str(system.folder / "teller.yaml"))
    system.wait("teller", lambda status: status["revision"] != before and status["phase"] == "Ready")
    assert ran(system, PYTHON, "-", code=blocks("python")[3]).split() == ["[40]", "[80]", "[120]"]
