"""What a worker's pod mounts: its spec file, the store's credentials, the model where it is a volume, room to write, and what its function
asks for.

The root file system is read-only. A worker writes to two empty folders: one for temporary files, one for models that it fetches, which a
restart in the same pod finds again.
"""

from typing import Any

from dormouse_core.errors import InvalidArgument
from dormouse_core.modeluris import MOUNT, ModelUri
from dormouse_core.spec import Volume
from dormouse_core.spec.mounts import ALLOWED, ALLOWED_NAME, OWN, taken

from dormouse_operator.kubernetes.objects import names

SPEC_FOLDER = "/etc/dormouse/function"
SPEC_FILE = "spec.json"
STORE_FOLDER = "/etc/dormouse/store"
MODELS_FOLDER = "/var/lib/dormouse/models"
TMP = "/tmp"  # noqa: S108 - the mount point of an empty folder of the pod's own


def build_volumes(
    function: str, revision: str, model: ModelUri | None, *, store: bool, asked: list[Volume], models_size: str = ""
) -> tuple[list[Any], list[Any]]:
    """(volumes, volumeMounts). `store`: there is a Secret for the store. `models_size`: the most that fetched models may take; a pod with
    more is evicted. InvalidArgument: a volume of the function's that cannot be."""
    volumes: list[dict[str, Any]] = [
        {"name": f"{OWN}spec", "configMap": {"name": names.deployment(function, revision)}},
        {"name": f"{OWN}tmp", "emptyDir": {}},
        {"name": f"{OWN}models", "emptyDir": {"sizeLimit": models_size} if models_size else {}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": f"{OWN}spec", "mountPath": SPEC_FOLDER, "readOnly": True},
        {"name": f"{OWN}tmp", "mountPath": TMP},
        {"name": f"{OWN}models", "mountPath": MODELS_FOLDER},
    ]
    if store:
        volumes.append({"name": f"{OWN}store", "secret": {"secretName": names.secret(function), "defaultMode": 0o440}})
        mounts.append({"name": f"{OWN}store", "mountPath": STORE_FOLDER, "readOnly": True})
    if model is not None and model.mounted:
        volumes.append({"name": f"{OWN}model", **_model_source(model)})
        mounts.append({"name": f"{OWN}model", "mountPath": MOUNT, "readOnly": True})
    for volume in asked:
        _check(volume)
        volumes.append({"name": volume.name, **_source(volume)})
        mounts.append({"name": volume.name, "mountPath": volume.mount_path} | ({"readOnly": True} if volume.read_only else {}))
    return volumes, mounts


def _model_source(model: ModelUri) -> dict[str, Any]:
    if model.scheme == "pvc":
        return {"persistentVolumeClaim": {"claimName": model.place, "readOnly": True}}
    return {"configMap": {"name": model.place}}


def _source(volume: Volume) -> dict[str, Any]:
    sources = {
        "persistentVolumeClaim": volume.persistent_volume_claim,
        "secret": volume.secret,
        "configMap": volume.config_map,
        "emptyDir": volume.empty_dir,
    }
    return {name: source for name, source in sources.items() if source is not None}


def _check(volume: Volume) -> None:
    """The API server refuses these; a definition from before an upgrade did not."""
    if volume.name.startswith(OWN):
        raise InvalidArgument(f"spec.workers.volumes: the name {volume.name} found, {ALLOWED_NAME}")
    if taken(volume.mount_path):
        raise InvalidArgument(f"spec.workers.volumes: the mount path {volume.mount_path} found, {ALLOWED}")
