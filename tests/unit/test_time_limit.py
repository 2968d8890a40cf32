"""A unit test that hangs fails, tells where, and lets the others run: the same `conftest.py`, with a shorter limit."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "asyncio_mode=auto", "-q"]

IN_A_TASK = """
async def waits_for_ever():
    await asyncio.Event().wait()

async def test_hangs():
    await asyncio.gather(asyncio.create_task(waits_for_ever(), name="the one"))
"""
IN_A_LOCK = """
def test_hangs():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""
IN_A_FIXTURE = """
@pytest.fixture
async def never_ends():
    yield
    await asyncio.Event().wait()

async def test_hangs(never_ends):
    pass
"""
CATCHES_ALL = """
def test_hangs():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""
HEAD = "import asyncio, threading, time\nimport pytest\n"
LAST = "\n\ndef test_another():\n    pass\n"


def run(folder: Path, test: str, limit: float = 0.5) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    (folder / "conftest.py").write_text(
        CONFTEST.read_text().replace("LIMIT = 150.0", f"LIMIT = {limit}").replace("AGAIN = 5.0", "AGAIN = 0.5")
    )
    (folder / "test_hanging.py").write_text(HEAD + test + LAST)
    ended = subprocess.run(PYTEST, cwd=folder, capture_output=True, text=True, timeout=50)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("test", "where"),
    [
        (IN_A_TASK, "in waits_for_ever\n    await asyncio.Event().wait()"),
        (IN_A_LOCK, "in test_hangs\n    lock.acquire()"),
        (IN_A_FIXTURE, "in async_finalizer"),
    ],
    ids=["in a task", "in a lock", "in a fixture"],
)
def test_one_that_hangs_fails_with_its_stacks_and_the_next_one_runs(test: str, where: str, tmp_path: Path) -> None:
    status, told = run(tmp_path, test)
    assert "test_hanging.py::test_hangs hangs: it has run for 0.5 s" in told, told
    assert where in told, told
    assert status == 1
    passed = 2 if test is IN_A_FIXTURE else 1
    assert f"{passed} passed" in told, told


def test_one_that_catches_all_ends_the_run_with_its_stacks(tmp_path: Path) -> None:
    status, told = run(tmp_path, CATCHES_ALL)
    assert "test_hanging.py::test_hangs hangs: it has run for 1.5 s" in told, told
    assert "in test_hangs\n    time.sleep(60)" in told, told
    assert status == 1


def test_negative_control_without_it_the_same_test_is_not_over(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(HEAD + IN_A_LOCK + LAST)
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([*PYTEST, "-p", "no:asyncio"], cwd=tmp_path, capture_output=True, timeout=4)
