"""A model's content, found while it loads."""

import pathlib
import queue
import threading
import time

from dormouse_core.workerfile import WorkerFile
from dormouse_kit import contents

from dormouse_worker.models import ModelUnavailable


class Reading:
    """What a model's content is, found in a thread of its own while the model loads: both wait for the same bytes. Files that have the seal
    with which the revision was proved are not read for it."""

    def __init__(self, path: pathlib.Path, file: WorkerFile) -> None:
        """ModelUnavailable: it cannot be read."""
        self._path, self._more = path, contents.beside(file.spec)
        self._before = self._stamp()
        self.seal = contents.seal(self._before, time.time())
        self._known = file.content if self.seal and self.seal == file.seal else ""
        self._found: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        if not self._known:
            threading.Thread(target=self._read, name="content", daemon=True).start()

    def digest(self) -> str:
        """ModelUnavailable: it cannot be read, or is not what it was when the reading began."""
        found = self._known or self._found.get()
        if isinstance(found, Exception):
            raise ModelUnavailable(f"spec.model.uri: {self._path.name} cannot be read: {found}") from found
        if self._stamp() != self._before:
            raise ModelUnavailable(f"spec.model.uri: {self._path.name} changed while it was loaded")
        return found

    def _read(self) -> None:
        try:
            self._found.put(contents.digest(self._path, self._more))
        except Exception as error:  # whatever it is: who waits for the digest would wait for ever
            self._found.put(error)

    def _stamp(self) -> contents.Stamp:
        try:
            return contents.stamp(self._path, self._more)
        except OSError as error:
            raise ModelUnavailable(f"spec.model.uri: {self._path.name} cannot be read: {error}") from None
