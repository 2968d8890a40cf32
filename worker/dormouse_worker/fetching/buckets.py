"""s3:// and gs://, by obstore (the Rust crate object_store): one wheel for both instead of two clouds' kits.

Keys, roles and endpoints come from where each cloud's programs look for them: the environment (`AWS_*`, `GOOGLE_*`), a projected web
identity, the metadata service. `AWS_SKIP_SIGNATURE=true` reads a public bucket without any.
"""

import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import obstore
from dormouse_core.modeluris import ModelUri
from obstore.exceptions import NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from dormouse_worker.fetching.downloads import PASSING, Passing
from dormouse_worker.models.refusals import ModelUnavailable

LIMITS: dict[str, Any] = {"timeout": timedelta(seconds=600), "connect_timeout": timedelta(seconds=10)}
RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=30)}
_MISSING = (FileNotFoundError, NotFoundError)
_REFUSED = (*_MISSING, PermissionDeniedError, UnauthenticatedError)
_STATUS = re.compile(r"status code: (\d{3})\b")


def opened(scheme: str, place: str) -> Any:
    """obstore's view of the bucket `place`, with what the environment says."""
    # Options that are given hide those of the environment; a store of one's own without TLS is a choice of its owner's.
    client = LIMITS | {"allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"} | _trust()
    options: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    return S3Store(place, **options) if scheme == "s3" else GCSStore(place, **options)


def said(error: Exception) -> str:
    """An error of obstore's in one line: its texts are whole responses."""
    return " ".join(str(error).partition("\n\nDebug source")[0].split())[:300]


class Bucket:
    def __init__(self, model: ModelUri) -> None:
        self._model = model
        self._root = model.path.strip("/") if model.folder else model.path.rpartition("/")[0]
        self.name = model.text
        self._store = opened(model.scheme, model.place)

    def files(self) -> list[str]:
        if not self._model.folder:
            return [self._model.path.rpartition("/")[2]]
        try:
            found = {item["path"]: item["size"] for batch in obstore.list(self._store, self._root or None) for item in batch}
            below = f"{self._root}/" if self._root else ""
            paths = [path for path, size in found.items() if path.startswith(below) and (size or not self._folder(path, found))]
            return [path.removeprefix(below) for path in paths]
        except Exception as error:
            raise self._said(error) from error

    def _folder(self, path: str, found: Iterable[str]) -> bool:
        """Whether what is empty marks a folder, as consoles make them: its key ends in a slash, which the library does not tell."""
        if any(other.startswith(f"{path}/") for other in found):
            return True
        try:
            obstore.head(self._store, path)
        except _MISSING:
            return True
        return False

    def read(self, file: str) -> Iterator[bytes]:
        path = f"{self._root}/{file}" if self._root else file
        try:
            for chunk in obstore.get(self._store, path):
                yield bytes(chunk)
        except Exception as error:
            raise self._said(error) from error

    def _said(self, error: Exception) -> Exception:
        """obstore's errors have many kinds."""
        text = said(error)
        status = _STATUS.search(text)  # a listing that is refused is of no kind of its own
        if isinstance(error, _REFUSED) or (status is not None and int(status[1]) not in PASSING):
            return ModelUnavailable(f"spec.model.uri: {self.name}: {text}")
        return Passing(text)


def _trust() -> dict[str, bytes]:
    """The certificates that OpenSSL would be told to trust, for https:// and for buckets alike: the library has its own list."""
    file = os.environ.get("SSL_CERT_FILE")
    try:
        return {"root_certificate": pathlib.Path(file).read_bytes()} if file else {}
    except OSError as error:
        raise ModelUnavailable(f"SSL_CERT_FILE: {file} cannot be read: {error.strerror}") from error
