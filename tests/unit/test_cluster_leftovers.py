"""The cluster recipe: what a run leaves that is killed, and the next one must not meet; how a lost node comes back."""

import json
import shutil
from pathlib import Path

import pytest
from dormouse_testing.cluster import commands, lifecycle, nodes
from dormouse_testing.cluster.client import Cluster
from dormouse_testing.cluster.layout import Layout

GONE = ("etcd/member/snap", "run/host-apiserver.pid", "node1/volumes/dormouse-system-0/member/wal", "node2/kubelet/pods/x")
KEPT = ("bin/kube", "images/pause.tar", "pki/ca.crt", "node1/imported/0123", "node1/containerd/blob")


def left(home: Path) -> Layout:
    """As a machine that lost its power has it: no process, no claim, all files."""
    for name in (*GONE, *KEPT):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("of an earlier run")
    (home / "Corefile").write_text("of an earlier run")
    return Layout(home)


def test_volumes_and_stores_of_a_run_that_was_killed_are_cleared_and_what_is_costly_stays(tmp_path: Path) -> None:
    lifecycle.clear(left(tmp_path))
    assert [name for name in (*GONE, "Corefile") if (tmp_path / name).exists()] == []
    assert [name for name in KEPT if not (tmp_path / name).exists()] == []
    lifecycle.clear(Layout(tmp_path / "never"))


def test_a_cluster_that_comes_up_meets_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Begun(Exception):
        pass

    def begin(*_: object) -> None:
        raise Begun

    for name in ("prepare", "_claim", "down"):
        monkeypatch.setattr(lifecycle, name, lambda layout: None)
    monkeypatch.setattr(lifecycle.certificates, "make", begin)
    with pytest.raises(Begun):
        lifecycle.up(left(tmp_path), 1)
    assert [name for name in GONE if (tmp_path / name).exists()] == []


def test_a_volume_is_empty_also_where_one_of_its_name_was_left_on_a_cluster_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied = []
    monkeypatch.setattr(Cluster, "apply", lambda self, *manifests, namespace="default": applied.extend(manifests))
    cluster = Cluster(tmp_path / "kubeconfig", left(tmp_path))
    cluster.volume("dormouse-system-0")
    [folder] = cluster.volumes
    assert folder == tmp_path / "node1/volumes/dormouse-system-0"
    assert list(folder.iterdir()) == []
    assert json.dumps(applied).count(str(folder)) == 1


def test_a_node_that_is_started_again_has_a_way_to_those_that_are_still_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that were lost at once, the first to come back did not reach the pods of the other ever after."""
    for number in (1, 2, 3):
        (tmp_path / f"node{number}").mkdir()
    started = []
    monkeypatch.setenv("CLUSTER_DIR", str(tmp_path))
    monkeypatch.setattr(commands.nodes, "start", lambda layout, node, others: started.append((node.name, [each.name for each in others])))
    assert commands.main(["start", "node2"]) == 0
    assert started == [("node2", ["node1", "node3"])]


def test_a_group_that_goes_while_a_node_is_lost_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of two goes once the other is read."""
    for name, pid in (("", "1"), ("pods", "2"), ("pods/one", "3"), ("pods/two", "4")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "cgroup.procs").write_text(f"{pid}\n")
    read = nodes._words

    def going(file: Path) -> list[str]:
        found = read(file)
        for one, other in (("one", "two"), ("two", "one")):
            if file.parent.name == one:
                shutil.rmtree(tmp_path / "pods" / other, ignore_errors=True)
        return found

    assert sorted(nodes._processes(tmp_path)) == [1, 2, 3, 4]
    monkeypatch.setattr(nodes, "_words", going)
    assert sorted(nodes._processes(tmp_path)) in ([1, 2, 3], [1, 2, 4])
