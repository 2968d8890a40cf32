"""What a worker's pod mounts: its model where that is a volume, what its function asks for, and nothing over what is ours."""

import posixpath

import pytest
from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument
from dormouse_core.spec import Volume
from dormouse_operator.kubernetes.objects.volumes import build_volumes
from dormouse_testing.manifests import Data
from hypothesis import given
from hypothesis import strategies as st

OURS = {"dormouse-spec": "/etc/dormouse/function", "dormouse-tmp": "/tmp", "dormouse-models": "/var/lib/dormouse/models"}


def mounted(uri: str | None = None, *asked: Volume, store: bool = False) -> tuple[dict[str, Data], dict[str, Data]]:
    """(volumes, mounts), by name."""
    model = modeluris.parse(uri) if uri is not None else None
    volumes, mounts = build_volumes("f", "r1r1r1r1", model, store=store, asked=list(asked))
    assert [each["name"] for each in volumes] == [each["name"] for each in mounts]
    return {each["name"]: each for each in volumes}, {each["name"]: each for each in mounts}


def volume(path: str, name: str = "v") -> Volume:
    return Volume(name=name, mount_path=path, empty_dir={})


def test_a_claim_is_mounted_read_only() -> None:
    volumes, mounts = mounted("pvc://weights/net/m.onnx")
    assert volumes["dormouse-model"]["persistentVolumeClaim"] == {"claimName": "weights", "readOnly": True}
    assert mounts["dormouse-model"] == {"name": "dormouse-model", "mountPath": "/mnt/model", "readOnly": True}


def test_a_config_map_is_mounted_read_only() -> None:
    volumes, mounts = mounted("configmap://code/handler.py")
    assert volumes["dormouse-model"]["configMap"] == {"name": "code"}
    assert mounts["dormouse-model"]["readOnly"] is True


@pytest.mark.parametrize("uri", [None, "file://m", "https://h/m", "s3://b/m", "gs://b/m", "hf://o/r/m"])
def test_what_a_worker_fetches_or_has_is_no_volume(uri: str | None) -> None:
    volumes, mounts = mounted(uri)
    assert {name: each["mountPath"] for name, each in mounts.items()} == OURS
    assert [name for name, each in volumes.items() if "emptyDir" in each] == ["dormouse-tmp", "dormouse-models"]


def test_nothing_of_ours_can_be_written_but_two_empty_folders() -> None:
    _, mounts = mounted("pvc://weights", store=True)
    assert {name for name, each in mounts.items() if not each.get("readOnly")} == {"dormouse-tmp", "dormouse-models"}


def test_the_stores_secret_is_the_functions_own_and_its_users_alone() -> None:
    volumes, mounts = mounted(store=True)
    assert volumes["dormouse-store"]["secret"] == {"secretName": "f-store", "defaultMode": 0o440}
    assert mounts["dormouse-store"]["mountPath"] == "/etc/dormouse/store"
    assert "dormouse-store" not in mounted(store=False)[0]


def test_each_revision_reads_its_own_file() -> None:
    assert mounted()[0]["dormouse-spec"]["configMap"] == {"name": "f-r1r1r1"}


@pytest.mark.parametrize(
    "source",
    [{"persistent_volume_claim": {"claimName": "c"}}, {"secret": {"secretName": "s"}}, {"config_map": {"name": "m"}}, {"empty_dir": {}}],
)
def test_what_a_function_asks_for_is_mounted_as_it_says(source: Data) -> None:
    volumes, mounts = mounted(None, Volume(name="v", mount_path="/data", read_only=True, **source))
    [(kind, value)] = [(kind, value) for kind, value in volumes["v"].items() if kind != "name"]
    assert (kind.lower(), value) == (next(iter(source)).replace("_", ""), next(iter(source.values())))
    assert mounts["v"] == {"name": "v", "mountPath": "/data", "readOnly": True}


TAKEN = (
    "/", "//", "/.", "/etc/dormouse", "/etc/dormouse/function", "/tmp/", "/./tmp", "/etc/./dormouse/store", "//proc", "/dev/shm", "/sys",
    "/mnt/model/x", "/var/lib/dormouse/models", "/a/../etc/dormouse", "/..",
)  # fmt: skip


@pytest.mark.parametrize("path", TAKEN)
def test_a_folder_of_ours_is_refused_however_it_is_spelt(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^spec\.workers\.volumes: the mount path .* is allowed$") as refused:
        mounted(None, volume(path))
    assert path in str(refused.value)


@pytest.mark.parametrize("path", ["/data", "/etc/dormouse-2", "/tmpfs", "/models", "/var/lib", "/home/.cache", "/a/..b"])
def test_a_folder_that_only_looks_like_ours_is_allowed(path: str) -> None:
    assert mounted(None, volume(path))[1]["v"]["mountPath"] == path


def test_a_name_of_ours_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"spec\.workers\.volumes: the name dormouse-tmp found"):
        mounted(None, volume("/data", "dormouse-tmp"))


@given(st.lists(st.sampled_from([".", "..", "", "tmp", "etc", "dormouse", "function", "mnt", "model", "x"]), max_size=5))
def test_no_folder_of_ours_is_covered_by_any_path(parts: list[str]) -> None:
    """As the container's runtime reads paths."""
    path = "/" + "/".join(parts)
    try:
        mounted(None, volume(path))
    except InvalidArgument:
        return
    read = posixpath.normpath("/" + path.lstrip("/"))
    assert read != "/"
    for own in ("/etc/dormouse", "/tmp", "/mnt/model"):
        assert read != own
        assert not read.startswith(f"{own}/")
