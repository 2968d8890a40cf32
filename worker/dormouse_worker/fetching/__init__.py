"""Bringing a model's files to this worker, from wherever `spec.model.uri` says.

What is there already (the image's own models, a mounted claim or ConfigMap) is loaded from where it lies, not from bytes, so that weights
in a second file beside it are found; and only below its root, because a manifest must not make a worker read what its author could not.

What is elsewhere is downloaded into a folder beside the one where it will lie, checked against its digest and renamed: whoever finds it
there finds all of it, and what a killed worker left half done is removed by the next one. A worker that is started again in the same pod
finds what it has.
"""

import os
import pathlib

from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument
from dormouse_core.modeluris import ModelUri

from dormouse_worker.fetching import local
from dormouse_worker.fetching.downloads import Source, download
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable

FOLDER = "DORMOUSE_MODELS"  # the environment variable that names where downloads go


def fetch(uri: str, sha256: str | None, root: str) -> pathlib.Path:
    """The local file or folder of `uri`. ModelInvalid, ModelUnavailable: why it cannot be had. `root`: where file:// lies. `sha256`:
    what is downloaded is kept only if it has this digest; whoever loads it compares (`reading`)."""
    try:
        model = modeluris.parse(uri)
    except InvalidArgument as error:
        raise ModelInvalid(error.message) from None
    if model.scheme == "file":
        return local.below(root, model, "the model root")
    if model.mounted:
        return local.below(modeluris.MOUNT, model, f"the {'claim' if model.scheme == 'pvc' else 'ConfigMap'} {model.place}")
    return download(source(model), uri, sha256, _folder(model))


def private(uri: str, path: pathlib.Path) -> bool:
    """Whether nobody else can change what `fetch` found: a download is this worker's own, an image's file system is read-only."""
    model = modeluris.parse(uri)
    return not model.mounted and (model.scheme != "file" or bool(os.statvfs(path).f_flag & os.ST_RDONLY))


def source(model: ModelUri) -> Source:
    """What one scheme needs is loaded for it alone: a worker that wakes for its own image's model waits for none of it."""
    match model.scheme:
        case "https":
            from dormouse_worker.fetching.web import Web

            return Web(model)
        case "hf":
            from dormouse_worker.fetching.hub import Hub

            return Hub(model)
        case _:
            from dormouse_worker.fetching.buckets import Bucket

            return Bucket(model)


def _folder(model: ModelUri) -> pathlib.Path:
    folder = os.environ.get(FOLDER, "")
    if not folder:
        raise ModelUnavailable(
            f"spec.model.uri: {model.scheme}:// found, but this worker has no folder for downloads; on one machine file:// is allowed"
        )
    return pathlib.Path(folder)
