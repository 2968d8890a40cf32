"""From a source to a folder of its own: whole and checked, or not there at all."""

import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import IO, Protocol

from dormouse_core.backoff import Backoff
from dormouse_kit import log

from dormouse_worker.fetching import digests
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable

PARTIAL = ".partial"
TRIES = 3
AGAIN = Backoff(1.0, 60.0)
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers over HTTP after which another try may do."""


class Passing(Exception):
    """The source did not answer, or broke off: another try may do."""


class Source(Protocol):
    """Where a model lies. Both raise Passing, ModelUnavailable or ModelInvalid."""

    name: str
    """For messages: without what may be secret."""

    def files(self) -> list[str]:
        """Relative paths; one that has no slash and is alone is a model of one file."""

    def read(self, file: str) -> Iterator[bytes]:
        """All of it: one that ends early raises."""


def download(
    source: Source, uri: str, sha256: str | None, folder: pathlib.Path, pause: Callable[[float], None] = time.sleep
) -> pathlib.Path:
    """The file, or the folder of several. `pause(seconds)` waits between tries."""
    place = folder / hashlib.sha256(f"{uri}\n{sha256 or ''}".encode()).hexdigest()[:24]
    if not place.exists():
        _clear(folder)
        began = time.monotonic()
        size = _tried(source, place, sha256, pause)
        log.event("the model was fetched", uri=source.name, bytes=size, seconds=round(time.monotonic() - began, 1))
    return _model(place)


def _model(place: pathlib.Path) -> pathlib.Path:
    found = list(place.iterdir())
    return found[0] if len(found) == 1 and found[0].is_file() else place


def _tried(source: Source, place: pathlib.Path, sha256: str | None, pause: Callable[[float], None]) -> int:
    waits = AGAIN.pauses()
    for tried in range(1, TRIES + 1):
        partial = place.with_name(place.name + PARTIAL)
        try:
            partial.mkdir(parents=True)
            size = _bring(source, partial, sha256)
            partial.rename(place)
            return size
        except Passing as error:
            if tried == TRIES:
                raise ModelUnavailable(f"spec.model.uri: {source.name}: {error}, {TRIES} times") from error
            log.event("the model is fetched again", uri=source.name, error=str(error))
        except OSError as error:
            raise ModelUnavailable(f"spec.model.uri: {source.name} cannot be kept: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        pause(next(waits))
    raise AssertionError("the last try returned or raised")


def _bring(source: Source, partial: pathlib.Path, sha256: str | None) -> int:
    files, size = source.files(), 0
    if not files:
        raise ModelUnavailable(f"spec.model.uri: {source.name}: no file is there")
    for file in files:
        path = (partial / file).resolve()
        if not path.is_relative_to(partial.resolve()) or path == partial.resolve():
            raise ModelInvalid(f"spec.model.uri: {source.name} has a file {file!r}, which points outside the model's folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            size += _write(source.read(file), out)
    if sha256 is not None:
        digests.check(_model(partial), source.name, sha256)
    return size


def _write(chunks: Iterator[bytes], out: IO[bytes]) -> int:
    size = 0
    for chunk in chunks:
        out.write(chunk)
        size += len(chunk)
    out.flush()
    os.fsync(out.fileno())
    return size


def _clear(folder: pathlib.Path) -> None:
    """What a worker that was killed left half done. Nobody else downloads into this folder."""
    for left in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(left, ignore_errors=True)
