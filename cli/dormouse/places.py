"""Where backups lie: a file, a folder, or a bucket's s3:// and gs://, whose keys come from the environment, as for models."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dormouse_core import modeluris
from dormouse_core.errors import InvalidArgument, Unavailable


@dataclass(slots=True)
class New:
    """What is being written at `path`. In a folder it is kept under `name`, which may change until then."""

    path: Path
    name: str


class Place(Protocol):
    """`folder`: it has several, by name; else `name` counts for nothing."""

    @property
    def folder(self) -> bool: ...

    def text(self, name: str) -> str:
        """For people."""

    def names(self) -> list[str]: ...

    def new(self, name: str) -> contextlib.AbstractContextManager[New]:
        """What its path has when the context ends is kept, and nothing where it fails. InvalidArgument: there already."""

    def existing(self, name: str) -> contextlib.AbstractContextManager[Path]: ...

    def remove(self, name: str) -> None: ...


def find(text: str) -> Place:
    """InvalidArgument: no such place can be."""
    if "://" in text:
        return Bucket(text)
    return Disk(Path(text))


class Disk:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.folder = path.is_dir()

    def text(self, name: str) -> str:
        return str(self._of(name))

    def names(self) -> list[str]:
        return [path.name for path in self._path.iterdir()]

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[New]:
        path = self._free(name)
        try:
            new = New(path, name)
            yield new
            if new.name != name:
                path.rename(self._free(new.name))
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    @contextlib.contextmanager
    def existing(self, name: str) -> Iterator[Path]:
        yield self._of(name)

    def remove(self, name: str) -> None:
        self._of(name).unlink(missing_ok=True)

    def _free(self, name: str) -> Path:
        path = self._of(name)
        if path.exists() or path.is_symlink():
            raise InvalidArgument(f"{path}: it exists; name another file, or a folder")
        return path

    def _of(self, name: str) -> Path:
        return self._path / name if self.folder else self._path


class Bucket:
    """What is written goes by a file in the temporary folder."""

    def __init__(self, text: str) -> None:
        scheme, _, rest = text.partition("://")
        bucket, _, path = rest.partition("/")
        if scheme not in ("s3", "gs") or not bucket:
            raise InvalidArgument(
                f"{modeluris.without_password(text)} found, a file, a folder, s3://BUCKET/PATH or gs://BUCKET/PATH is allowed"
            )
        self._text = text if path else f"{scheme}://{bucket}/"
        self._path = path
        self.folder = not path or path.endswith("/")
        from dormouse_worker.fetching import buckets  # brings the library

        self._buckets = buckets
        self._store: Any = buckets.opened(scheme, bucket)

    def text(self, name: str) -> str:
        return f"{self._text}{name}" if self.folder else self._text

    def names(self) -> list[str]:
        import obstore

        with self._said():
            found = [str(item["path"]) for batch in obstore.list(self._store, self._path.rstrip("/") or None) for item in batch]
        return [path.removeprefix(self._path) for path in found if path.startswith(self._path)]

    @contextlib.contextmanager
    def new(self, name: str) -> Iterator[New]:
        import obstore

        with tempfile.TemporaryDirectory(prefix="dormouse-") as folder:
            new = New(Path(folder) / "backup.db", name)
            yield new
            with self._said():
                obstore.put(self._store, self._of(new.name), new.path)

    @contextlib.contextmanager
    def existing(self, name: str) -> Iterator[Path]:
        import obstore

        with tempfile.TemporaryDirectory(prefix="dormouse-") as folder:
            path = Path(folder) / "backup.db"
            with self._said(), path.open("wb") as file:
                for chunk in obstore.get(self._store, self._of(name)):
                    file.write(chunk)
                os.fsync(file.fileno())
            yield path

    def remove(self, name: str) -> None:
        import obstore

        with self._said():
            obstore.delete(self._store, self._of(name))

    def _of(self, name: str) -> str:
        return f"{self._path}{name}" if self.folder else self._path

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # obstore's have many kinds
            raise Unavailable(f"{self._text}: {self._buckets.said(error)}") from error
