"""Children that end with their parent, are stopped in order, and are never mistaken for another process."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dormouse_kit.processes import Child

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]


async def printed(log: Path, text: str) -> None:
    """Waits for it in a thread: a file has no event."""

    def look() -> None:
        limit = time.monotonic() + 60
        while not log.exists() or text not in log.read_text():
            assert time.monotonic() < limit
            time.sleep(0.01)

    await asyncio.to_thread(look)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_stop_is_sigterm_first(tmp_path: Path) -> None:
    child = await Child.start("sleep", SLEEP, log=tmp_path / "log")
    await printed(tmp_path / "log", "up")
    assert child.returncode is None
    assert await child.stop(grace=60) == -signal.SIGTERM
    assert child.returncode == -signal.SIGTERM


async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    child = await Child.start("stubborn", STUBBORN, log=tmp_path / "log")
    await printed(tmp_path / "log", "up")
    began = time.monotonic()
    assert await child.stop(grace=0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < 30


async def test_stopping_what_has_ended_sends_nothing(tmp_path: Path) -> None:
    child = await Child.start("short", [sys.executable, "-c", "raise SystemExit(3)"])
    assert await child.wait() == 3
    child.signal(signal.SIGKILL)
    assert await child.stop() == 3


async def test_output_is_appended_and_the_environment_is_what_was_given(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    program = "import os,sys; print(os.environ['WHO'], os.getcwd()); print('error', file=sys.stderr)"
    child = await Child.start("env", [sys.executable, "-c", program], log=log, env={"WHO": "me"}, cwd=tmp_path)
    assert await child.wait() == 0
    assert log.read_text().splitlines()[0] == "before"
    assert set(log.read_text().splitlines()[1:]) == {f"me {tmp_path}", "error"}


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    child = await Child.start("none", ["/nowhere/program"], log=tmp_path / "log")
    assert await child.wait() == 127
    assert "/nowhere/program" in (tmp_path / "log").read_text()


async def test_a_terminals_interrupt_does_not_reach_it(tmp_path: Path) -> None:
    child = await Child.start("sleep", SLEEP, log=tmp_path / "log")
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid != os.getpgrp()
    await child.kill()


@pytest.mark.parametrize("guarded", [True, False])
async def test_children_end_with_a_parent_that_is_killed(tmp_path: Path, guarded: bool) -> None:
    """The negative control, a child without the wrapper, survives."""
    program = textwrap.dedent(f"""
        import asyncio, sys
        from dormouse_kit.processes import Child
        async def main():
            command = [sys.executable, "-c", "import time; time.sleep(60)"]
            if {guarded}:
                child = await Child.start("sleep", command)
            else:
                child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
            print(child.pid, flush=True)
            await child.wait()
        asyncio.run(main())
    """)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert running(pid)
    await asyncio.sleep(0.3)  # the wrapper has asked by now, or the parent's pid tells it
    parent.kill()
    await parent.wait()
    limit = time.monotonic() + (30 if guarded else 0.5)
    while running(pid) and time.monotonic() < limit:
        time.sleep(0.02)  # noqa: ASYNC251 - nothing else runs on this loop, and a foreign process's end has no event
    assert running(pid) is not guarded
    if not guarded:
        os.kill(pid, signal.SIGKILL)


async def test_a_parent_that_is_gone_before_the_child_asked(tmp_path: Path) -> None:
    """The wrapper is told who its parent should be."""
    from dormouse_kit import processes

    command = [sys.executable, "-I", "-S", "-c", processes._WRAPPER, "1", str(int(signal.SIGKILL)), *SLEEP]
    child = await asyncio.create_subprocess_exec(*command)
    assert await child.wait() == 128 + signal.SIGKILL


def no_thread(*_: object) -> None:
    raise RuntimeError("can't start new thread")


def children() -> set[int]:
    """Of the main thread, those that only wait to be buried left out."""
    found = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    return {pid for pid in found if running(pid)}


async def test_a_child_takes_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threading.Thread.start", no_thread)
    child = await Child.start("exits", [sys.executable, "-c", "raise SystemExit(3)"])
    assert await child.wait() == 3


@pytest.fixture
def watched_by_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where there are no descriptors of processes."""
    if sys.version_info >= (3, 12):
        pytest.skip("this Python chooses by itself")
    monkeypatch.setattr("dormouse_kit.processes._pidfd", lambda: False)
    monkeypatch.setattr("threading.Thread.start", no_thread)
    before = asyncio.get_child_watcher()
    asyncio.set_child_watcher(asyncio.ThreadedChildWatcher())
    yield
    asyncio.set_child_watcher(before)


@pytest.mark.usefixtures("watched_by_threads")
async def test_a_child_that_no_thread_is_left_for_does_not_run() -> None:
    before = children()
    with pytest.raises(OSError, match="can't start new thread"):
        await Child.start("sleep", SLEEP)
    limit = time.monotonic() + 30
    while not children() <= before:  # what is killed takes a moment to be gone; it sleeps for a minute
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


async def test_negative_control_by_asyncio_alone_it_would_run_and_be_nobodys() -> None:
    """In a process of its own, which leaves a child behind."""
    if sys.version_info >= (3, 12):
        pytest.skip("this Python chooses by itself")
    program = textwrap.dedent("""
        import asyncio, os, sys, threading
        def no_thread(*_):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = no_thread
        async def main():
            try:
                await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)", stdout=asyncio.subprocess.DEVNULL)
            except RuntimeError:
                print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
                os._exit(0)
        asyncio.run(main())
    """)
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
    pid = int((await parent.communicate())[0])
    assert running(pid)
    os.kill(pid, signal.SIGKILL)
