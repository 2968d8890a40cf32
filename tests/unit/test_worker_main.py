"""The worker's command line."""

import sys
import tempfile
from pathlib import Path

import pytest
from dormouse_worker import __main__ as main
from dormouse_worker.process import supervisor


@pytest.mark.parametrize(("words", "folders"), [(["--admin", "/run/a.sock"], 0), ([], 1)])
def test_a_temporary_folder_is_made_only_where_one_is_needed(
    words: list[str], folders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(main, "hold", lambda host, port: (port, None))
    monkeypatch.setattr(supervisor, "main", lambda options: seen.append((options.admin, len(list(tmp_path.iterdir())))))
    monkeypatch.setattr(sys, "argv", ["dormouse_worker", "--standalone", "m.onnx", "--listen", "127.0.0.1:0", *words])
    main.main()
    [(admin, made)] = seen
    assert made == folders, "a supervisor that is killed would leave it behind"
    assert Path(admin).is_relative_to("/run" if words else tmp_path)
    assert not list(tmp_path.iterdir())
