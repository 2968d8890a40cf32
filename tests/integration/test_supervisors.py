"""`up` as a kubelet: supervisors that are started, fail, are started again later and later, and stopped. Real processes, tiny ones."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from dormouse import supervisors as under_test
from dormouse.supervisors import Supervisors
from dormouse_core import workerfile
from dormouse_core.backoff import Backoff
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_kit import log
from dormouse_testing.manifests import onnx

SLEEP = "import time; time.sleep(60)"
OBEY = "import signal,sys,time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print(1, flush=True); time.sleep(60)"
DEAF = "import signal,sys,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(60)"
FAIL = "import json,sys; json.dump({'code': 9, 'reason': 'ModelInvalid', 'message': 'opset 99'}, open(sys.argv[4], 'w')); sys.exit(3)"


def spec(root: Path | None = None) -> str:
    function = parse_manifest(onnx(model={"uri": "file://m.onnx"}))
    file = WorkerFile(
        installation="i",
        namespace="ns",
        name="fn",
        uid="u",
        revision="r",
        spec=function.spec,
        store=StoreAccess(endpoints=["e"]),
        model_root=str(root or ""),
    )
    return workerfile.dump(file).decode()


def made(folder: Path, code: str) -> Supervisors:
    for name in ("sockets", "specs", "reasons"):
        (folder / name).mkdir()
    return Supervisors(
        folder / "sockets",
        folder / "specs",
        folder / "reasons",
        lambda instance, spec, admin, reason: [sys.executable, "-S", "-c", code, str(folder / "flag"), instance, str(spec), str(reason)],
    )


async def until(true: object, seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # type: ignore[operator]  # noqa: ASYNC110 - processes have no event of ours
            await asyncio.sleep(0.01)


async def test_it_starts_lists_and_stops(tmp_path: Path) -> None:
    all_of_them = made(tmp_path, OBEY)
    all_of_them.start("a", spec(), 5.0)
    all_of_them.start("a", spec(), 5.0)
    await until(lambda: all_of_them.list()[0].pid)
    (one,) = all_of_them.list()
    assert (one.instance, one.namespace, one.function, one.uid, one.revision) == ("a", "ns", "fn", "u", "r")
    assert not one.stopping
    assert not one.exited
    assert (tmp_path / "specs" / "a.json").stat().st_mode & 0o777 == 0o600
    all_of_them.stop("a")
    assert all_of_them.list()[0].stopping
    await until(lambda: not all_of_them.list())
    assert not _lives(one.pid)
    assert list((tmp_path / "specs").iterdir()) == []
    all_of_them.stop("a")


async def test_one_that_does_not_end_is_killed_after_its_grace(tmp_path: Path) -> None:
    all_of_them = made(tmp_path, DEAF)
    all_of_them.start("a", spec(), 0.3)
    await until((tmp_path / "flag").exists)
    pid = all_of_them.list()[0].pid
    all_of_them.stop("a")
    await until(lambda: not all_of_them.list())
    assert not _lives(pid)


async def test_its_reason_is_listed_while_it_waits_for_its_next_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "BACKOFF", Backoff(600.0, 600.0))
    starts: list[str] = []
    monkeypatch.setattr(log, "event", lambda text, **fields: starts.append(text) if text == "started a worker" else None)
    all_of_them = made(tmp_path, FAIL)
    all_of_them.start("a", spec(), 5.0)
    await until(lambda: all_of_them.list()[0].exited)
    (one,) = all_of_them.list()
    assert (one.exit_code, one.pid, one.problem.reason, one.problem.message) == (3, 0, "ModelInvalid", "opset 99")
    all_of_them.start("a", spec(), 5.0)  # does not wait for the rest of the back-off
    await until(lambda: len(starts) == 2 and all_of_them.list()[0].exited)
    all_of_them.stop("a")
    await until(lambda: not all_of_them.list())


async def test_a_model_that_was_mended_is_tried_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert under_test.LOOK <= 1.0, "docs/operating.md says two seconds"
    monkeypatch.setattr(under_test, "BACKOFF", Backoff(600.0, 600.0))
    monkeypatch.setattr(under_test, "LOOK", 0.05)
    starts: list[str] = []
    monkeypatch.setattr(log, "event", lambda text, **fields: starts.append(text) if text == "started a worker" else None)
    (tmp_path / "m.onnx").write_text("broken")
    all_of_them = made(tmp_path, FAIL)
    all_of_them.start("a", spec(tmp_path), 5.0)
    for tries in (1, 2):
        await until(lambda tries=tries: len(starts) == tries and all_of_them.list()[0].exited)  # type: ignore[misc]
        await asyncio.sleep(0.3)
        assert len(starts) == tries, "while nothing changes it waits"
        (tmp_path / "m.onnx").write_text("mended" * tries)
    await until(lambda: len(starts) == 3)
    await all_of_them.close(1.0)


async def test_tries_come_later_and_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(under_test, "BACKOFF", Backoff(0.01, 0.05))
    monkeypatch.setattr(log, "event", lambda text, **fields: pauses.append(fields["again_in"]) if "again_in" in fields else None)
    all_of_them = made(tmp_path, "raise SystemExit(1)")
    all_of_them.start("a", spec(), 5.0)
    await until(lambda: len(pauses) >= 4)
    assert pauses[:4] == [0.01, 0.02, 0.04, 0.05]
    await all_of_them.close(1.0)


async def test_ends_without_a_reason_are_accidents_until_there_are_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "BACKOFF", Backoff(0.3, 0.3))
    all_of_them = made(tmp_path, "raise SystemExit(1)")
    all_of_them.start("a", spec(), 5.0)
    await until(lambda: all_of_them.list()[0].exited)
    assert not all_of_them.list()[0].HasField("problem")
    await until(lambda: all_of_them.list()[0].HasField("problem"))
    assert "code 1 3 times in a row" in all_of_them.list()[0].problem.message
    await all_of_them.close(1.0)


async def test_closing_ends_all_at_once_and_starts_none(tmp_path: Path) -> None:
    all_of_them = made(tmp_path, SLEEP)
    for name in "abc":
        all_of_them.start(name, spec(), 60.0)
    await until(lambda: all(i.pid for i in all_of_them.list()))
    pids = [i.pid for i in all_of_them.list()]
    async with asyncio.timeout(30.0):
        await all_of_them.close(20.0)
    assert not any(map(_lives, pids))
    with pytest.raises(FailedPrecondition, match="is stopping"):
        all_of_them.start("d", spec(), 1.0)


async def test_closing_does_not_wait_for_one_that_was_given_longer_to_stop(tmp_path: Path) -> None:
    all_of_them = made(tmp_path, DEAF)
    all_of_them.start("a", spec(), 60.0)
    await until((tmp_path / "flag").exists)
    pid = all_of_them.list()[0].pid
    all_of_them.stop("a")
    await asyncio.sleep(0.1)
    assert _lives(pid)
    async with asyncio.timeout(30.0):
        await all_of_them.close(0.3)
    assert not _lives(pid)


async def test_one_that_was_given_less_to_stop_is_killed_no_later_because_all_are_closed(tmp_path: Path) -> None:
    all_of_them = made(tmp_path, DEAF)
    all_of_them.start("a", spec(), 0.3)
    await until((tmp_path / "flag").exists)
    async with asyncio.timeout(30.0):
        await all_of_them.close(60.0)
    assert all_of_them.list() == []


async def test_the_name_of_one_that_stops_is_its_own_until_it_ended(tmp_path: Path) -> None:
    """Two under one name would have one spec file and one place in the list: the end of the first took both from the second."""
    all_of_them = made(tmp_path, DEAF)
    all_of_them.start("a", spec(), 0.5)
    await until((tmp_path / "flag").exists)
    pid = all_of_them.list()[0].pid
    all_of_them.stop("a")
    with pytest.raises(FailedPrecondition, match="a is stopping"):
        all_of_them.start("a", spec(), 5.0)
    assert [(one.pid, one.stopping) for one in all_of_them.list()] == [(pid, True)]
    await until(lambda: not all_of_them.list())
    all_of_them.start("a", spec(), 0.1)
    await until(lambda: all_of_them.list()[0].pid)
    assert (tmp_path / "specs" / "a.json").read_text() == spec()
    await all_of_them.close(0.1)


async def test_a_spec_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="spec file"):
        made(tmp_path, SLEEP).start("a", "{}", 1.0)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_functions_variables_are_set_and_what_has_no_effect_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By value, over those of `up`; a reference has no effect here, and the log says so once a revision."""
    told: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, **fields: told.append(f"{text} {fields}"))
    monkeypatch.setenv("OURS", "ours")
    monkeypatch.setenv("DORMOUSE_LOG_LEVEL", "error")
    env = [
        {"name": "THEIRS", "value": "a b"},
        {"name": "DORMOUSE_LOG_LEVEL", "value": "debug"},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
    ]
    function = parse_manifest(onnx(workers={"env": env, "envFrom": [{"secretRef": {"name": "s"}}]}))
    file = WorkerFile(
        installation="i", namespace="ns", name="fn", uid="u", revision="r", spec=function.spec, store=StoreAccess(endpoints=["e"])
    )
    code = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1] + sys.argv[2] + '.tmp', 'w')); "
    code += "os.rename(sys.argv[1] + sys.argv[2] + '.tmp', sys.argv[1] + sys.argv[2]); " + SLEEP
    all_of_them = made(tmp_path, code)
    for instance in ("a", "b"):
        all_of_them.start(instance, workerfile.dump(file).decode(), 5.0)
    await until(lambda: (tmp_path / "flaga").exists() and (tmp_path / "flagb").exists())
    found = json.loads((tmp_path / "flaga").read_text())
    assert {name: found.get(name) for name in ("THEIRS", "OURS", "DORMOUSE_LOG_LEVEL", "SECRET")} == {
        "THEIRS": "a b",
        "OURS": "ours",
        "DORMOUSE_LOG_LEVEL": "debug",
        "SECRET": None,
    }
    await all_of_them.close(0.1)
    assert [text for text in told if "no effect" in text] == [
        "no effect on one machine: spec.workers.env[2].valueFrom (SECRET), spec.workers.envFrom {'function': 'ns/fn'}"
    ]
