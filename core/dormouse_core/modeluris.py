"""What a model's URI names, read once for everybody: the worker that fetches it, and the operator that mounts what cannot be fetched.

A persistent volume claim and a ConfigMap are no places that a process can dial: the operator mounts them into the pod, and the worker finds
them below `MOUNT`. Both must take the URI apart in the same way, or the pod mounts one thing and the worker looks for another.
"""

import re
from dataclasses import dataclass

from dormouse_core.errors import InvalidArgument

MOUNT = "/mnt/model"
"""Where a pod has the claim or the ConfigMap of a `pvc://` or `configmap://` model."""

IMAGE_ROOT = "/models"
"""Where `file://` lies in a pod: the image's own models."""

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_KEY = "[-._a-zA-Z0-9]{1,253}"
_KUBERNETES_NAME = re.compile(_NAME)
_CONFIG_KEY = re.compile(_KEY)
_REVISION = "main"

_SHAPES = (
    "file://.*",
    "https://[^/@]+//*[^/?].*",
    "(s3|gs)://[^/].*",
    "hf://[^/]+/[^/@]+(@[^/]+)?(/.*)?",
    rf"pvc://{_NAME}(/.*)?",
    rf"configmap://{_NAME}(/({_KEY})?)?",
)
SHAPE = f"^({'|'.join(_SHAPES)})$"
"""What `parse` takes, as a regular expression of RE2's syntax, but for the length of names."""


@dataclass(frozen=True, slots=True)
class ModelUri:
    """`place`: a host, bucket, claim, ConfigMap or owner/repository; empty for file://. `path`: within it, no slash in front; one that is
    empty or ends in a slash is a folder. `revision`: of a repository."""

    scheme: str
    place: str
    path: str
    text: str
    revision: str = ""

    @property
    def folder(self) -> bool:
        return not self.path or self.path.endswith("/")

    @property
    def mounted(self) -> bool:
        """Whether the pod has it as a volume."""
        return self.scheme in ("pvc", "configmap")


def valid(uri: str) -> bool:
    try:
        parse(uri)
    except InvalidArgument:
        return False
    return True


def without_password(uri: str) -> str:
    """For who may read a message but not the function."""
    scheme, separator, rest = uri.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}***@{place.rpartition('@')[2]}{slash}{path}" if scheme == "https" and "@" in place else uri


def parse(uri: str) -> ModelUri:
    """InvalidArgument: the URI's scheme cannot have such a text."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        raise _wrong(uri, "scheme://place/path is allowed")
    match scheme:
        case "file":
            return ModelUri(scheme, "", rest.lstrip("/"), uri)
        case "https":
            return _https(uri, rest)
        case "s3" | "gs":
            bucket, _, path = rest.partition("/")
            if not bucket:
                raise _wrong(uri, f"{scheme}://bucket/path is allowed")
            return ModelUri(scheme, bucket, path, uri)
        case "hf":
            return _hugging_face(uri, rest)
        case "pvc":
            claim, _, path = rest.partition("/")
            if not _KUBERNETES_NAME.fullmatch(claim) or len(claim) > 253:
                raise _wrong(uri, "pvc://claim/path with the name of a persistent volume claim is allowed")
            return ModelUri(scheme, claim, path, uri)
        case "configmap":
            name, _, key = rest.partition("/")
            if not _KUBERNETES_NAME.fullmatch(name) or len(name) > 253 or (key and not _CONFIG_KEY.fullmatch(key)):
                raise _wrong(uri, "configmap://name/key, or configmap://name for all keys, is allowed")
            return ModelUri(scheme, name, key, uri)
        case _:
            raise _wrong(uri, "https, s3, gs, hf, pvc, configmap and file are allowed")


def _https(uri: str, rest: str) -> ModelUri:
    place, _, path = rest.partition("/")
    if "@" in place:
        raise _wrong(without_password(uri), "no user or password is allowed in a URI: everybody who may read the function sees it")
    if not place or not path.partition("?")[0].strip("/"):
        raise _wrong(uri, "https://host/path of one file is allowed")
    return ModelUri("https", place, path, uri)


def _hugging_face(uri: str, rest: str) -> ModelUri:
    """hf://owner/repository[@revision]/path"""
    parts = rest.split("/", 2)
    if len(parts) < 2 or not parts[0] or not parts[1]:
        raise _wrong(uri, "hf://owner/repository[@revision]/path is allowed")
    repository, _, revision = parts[1].partition("@")
    if not repository or ("@" in parts[1] and not revision):
        raise _wrong(uri, "hf://owner/repository[@revision]/path is allowed")
    return ModelUri("hf", f"{parts[0]}/{repository}", parts[2] if len(parts) > 2 else "", uri, revision or _REVISION)


def _wrong(uri: str, allowed: str) -> InvalidArgument:
    return InvalidArgument(f"spec.model.uri: {uri} found, {allowed}")
