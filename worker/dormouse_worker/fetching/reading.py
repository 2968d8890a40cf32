"""A model's content, found while it loads."""

import pathlib
import queue
import threading
import time

from dormouse_core.workerfile import WorkerFile
from dormouse_kit import contents

from dormouse_worker.fetching import digests
from dormouse_worker.models.refusals import ModelUnavailable

SETTLING = 20
"""Looks at files that were written a moment ago, `contents.SETTLED` seconds apart: what is still being written is no model yet."""


class ContentReading:
    """What a model's content is, found in a thread of its own while the model loads: both wait for the same bytes. Files that have the seal
    with which the revision was proved are not read for it. Of a folder only the files that were there at the proof count."""

    def __init__(self, path: pathlib.Path, file: WorkerFile) -> None:
        """ModelUnavailable: it cannot be read."""
        self._path, self._more, self._only = path, contents.beside(file.spec), frozenset(file.files)
        self._sha256 = file.spec.model.sha256 if file.spec.model is not None else None
        self._before = self._settled()
        self.seal = contents.seal(self._before, time.time())
        self.files: dict[str, str] = {}
        """The digest of each file, after `digest`; none where they were not read."""
        self._known = file.content if self.seal and self.seal == file.seal else ""
        self._found: queue.SimpleQueue[dict[str, str] | Exception] = queue.SimpleQueue()
        if not self._known:
            threading.Thread(target=self._read, name="content", daemon=True).start()

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self._before]

    def digest(self) -> str:
        """ModelUnavailable: it cannot be read, or is not what it was when the reading began. ModelInvalid: it is not what
        `spec.model.sha256` says."""
        if not self._known:
            found = self._found.get()
            if isinstance(found, Exception):
                raise ModelUnavailable(f"spec.model.uri: {self._path.name} cannot be read: {found}") from found
            self.files, self._known = found, contents.digest_of(found, self._path)
        self.unchanged("while it was loaded")
        if self._sha256 is not None:
            digests.compare(self._path.name, self.names, self._known, self._sha256)
        return self._known

    def unchanged(self, when: str) -> None:
        """ModelUnavailable: a file is not what it was when the reading began."""
        now = self._stamp(frozenset(self.names) if self._path.is_dir() else frozenset())
        if now != self._before:
            names = sorted({name for name, *_ in set(now) ^ set(self._before)})
            raise ModelUnavailable(f"spec.model.uri: {contents.some(names)} of {self._path.name} changed {when}")

    def _read(self) -> None:
        try:
            self._found.put(contents.read(self._path, self._more, self._only))
        except Exception as error:  # whatever it is: who waits for the digest would wait for ever
            self._found.put(error)

    def _settled(self) -> contents.Stamp:
        """What was written just now may be written again without another time: it is looked at again until that cannot be."""
        stamp = self._stamp(self._only)
        for _ in range(SETTLING):
            if contents.seal(stamp, time.time()):
                return stamp
            time.sleep(contents.SETTLED)
            before, stamp = stamp, self._stamp(self._only)
            if stamp == before:
                return stamp
        raise ModelUnavailable(f"spec.model.uri: {self._path.name} is being written")

    def _stamp(self, only: frozenset[str]) -> contents.Stamp:
        try:
            return contents.stamp(self._path, self._more, only)
        except OSError as error:
            raise ModelUnavailable(f"spec.model.uri: {self._path.name} cannot be read: {error}") from None
