"""CPU quotas as cgroups write them."""

from pathlib import Path

import pytest
from dormouse_worker.process import cpus


def tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "100000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000"}, 1),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "250000 100000"}, 3),
        ("0::/a/b", {"a/b/cpu.max": "max 100000"}, 16),
        ("0::/a", {"a/cpu.max": "9900000 100000"}, 16),
        ("0::/not/there", {"cpu.max": "200000 100000"}, 2),
        ("0::/../outside", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/a\n0::/a", {"cpu/a/cpu.cfs_quota_us": "150000", "cpu/a/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 16),
        ("", {}, 16),
    ],
)
def test_quota(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    root = tmp_path / "cgroup"
    root.mkdir()
    tree(root, files)
    (tmp_path / "self").write_text(own)
    assert cpus.available(root, tmp_path / "self", affinity=16) == expected


def test_never_more_than_the_affinity(tmp_path: Path) -> None:
    assert cpus.available(tmp_path, tmp_path / "none", affinity=2) == 2
