"""What a manifest says of a worker reaches the part that goes by it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_testing import models
from dormouse_testing.manifests import onnx
from dormouse_worker.serving import loading, membership

STATE = {"input": "state", "output": "stateN", "shape": [-1, 4], "batchAxis": 0}


def worker_file(folder: Path, spec: dict[str, Any], sessions: dict[str, Any], **more: Any) -> WorkerFile:
    models.counter(folder / "m.onnx")
    given = onnx(model={"uri": "file://m.onnx"}, sessions={"states": [STATE], **sessions}, **spec)
    access = StoreAccess(endpoints=["127.0.0.1:1"])
    parsed = parse_manifest(given).spec
    return WorkerFile(
        installation="i", namespace="n", name="f", uid="u", revision="r", spec=parsed, store=access, model_root=str(folder), **more
    )


def session_settings(file: WorkerFile, loaded: loading.Loaded, monkeypatch: pytest.MonkeyPatch) -> Any:
    seen: list[Any] = []

    def sessions(function: Any, settings: Any, *_: Any, **__: Any) -> Any:
        seen.append(settings)
        return SimpleNamespace(registration=SimpleNamespace(forsake=None))

    monkeypatch.setattr(membership, "EtcdStore", lambda *_, **__: SimpleNamespace())
    monkeypatch.setattr(membership, "Sessions", sessions)
    membership.Membership(file, loaded, worker="w", address="a:1", instance="i", time=SimpleNamespace())  # type: ignore[arg-type]
    return seen[0]


def test_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = worker_file(tmp_path, {}, {})
    loaded = loading.from_file(file)
    engine: Any = loaded.engine
    assert (loaded.max_concurrency, loaded.hang, loaded.idle_us, engine._delay, engine.runs.limit) == (256, 61.0, 86_400_000_000, 0.0, 60.0)
    found = session_settings(file, loaded, monkeypatch)
    assert (found.shards, found.ttl, found.evict_after, found.step_limit) == (64, 86_400.0, 600.0, 60.0)
    assert (found.removal_wait, found.max_count, found.max_bytes, found.accepts) == (600.0, 1_000_000, None, frozenset())
    assert found.state_version == loaded.state_version != ""


def test_as_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = {"step": "9s", "hold": "20m", "hang": "3s"}
    sessions = {"ttl": "1h", "evictAfter": "2m", "shards": 8, "maxCount": 7, "maxBytes": 70, "stateVersion": "mine", "accepts": ["before"]}
    file = worker_file(tmp_path, {"timeouts": timeouts, "maxConcurrency": 5, "batching": {"maxQueueDelay": "7ms"}}, sessions)
    loaded = loading.from_file(file)
    engine: Any = loaded.engine
    assert (loaded.max_concurrency, loaded.hang, loaded.idle_us, engine._delay, engine.runs.limit) == (5, 3.0, 3_600_000_000, 0.007, 9.0)
    found = session_settings(file, loaded, monkeypatch)
    assert (found.shards, found.ttl, found.evict_after, found.step_limit) == (8, 3600.0, 120.0, 9.0)
    assert (found.removal_wait, found.max_count, found.max_bytes, found.accepts) == (1260.0, 7, 70, frozenset({"before"}))
    assert (found.state_version, loaded.state_version) == ("mine", "mine")


def test_the_removal_wait_is_the_installations_where_it_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = worker_file(tmp_path, {}, {}, removal_wait=5.0)
    assert session_settings(file, loading.from_file(file), monkeypatch).removal_wait == 5.0
