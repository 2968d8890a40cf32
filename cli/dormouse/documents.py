"""The manifests that a person names: files, folders, standard input; several documents in one; JSON or YAML.

All of them are read and checked before the first is applied, so that one that is wrong changes nothing. What is not ours is told and left
out: a folder of models has other YAML and JSON in it, and a file that `kubectl` takes may hold a ConfigMap beside the function.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dormouse_core import limits
from dormouse_core import spec as specs
from dormouse_core.errors import InvalidArgument

STDIN = "-"
ENDINGS = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest that was understood. `where`: file and number, as people are told; `text`: JSON of at most `limits.MANIFEST_BYTES`."""

    where: str
    function: str
    text: str


@dataclass(slots=True)
class DocumentReading:
    """What was found. `others`, `faults`: a sentence each."""

    documents: list[Document] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read(names: Iterable[str]) -> DocumentReading:
    """`names`: files, folders (theirs are read in the order of their names, those of folders below are not), or - for standard input."""
    reading, seen = DocumentReading(), dict[str, str]()
    for name in names:
        folder = name != STDIN and Path(name).is_dir()
        for where, path in _files(name) if folder else [("standard input" if name == STDIN else name, name)]:
            try:
                text = sys.stdin.buffer.read() if name == STDIN else Path(path).read_bytes()
            except OSError as error:
                reading.faults.append(f"{where}: {error.strerror or error}")
                continue
            if folder and specs.KIND.encode() not in text:
                reading.others.append(f"{where}: no {specs.KIND} is in it; it is left out")
                continue
            _take(reading, seen, where, text)
    return reading


def _files(folder: str) -> list[tuple[str, str]]:
    found = [p for p in sorted(Path(folder).iterdir()) if p.suffix in ENDINGS and p.is_file() and not p.name.startswith(".")]
    return [(path.name, str(path)) for path in found]


def _take(reading: DocumentReading, seen: dict[str, str], where: str, text: bytes) -> None:
    try:
        whole = list(_numbered(specs.read_all(text)))
    except InvalidArgument as error:
        reading.faults.append(_at(where, error.message))
        return
    for number, data in whole:
        here = f"{where}, document {number}" if len(whole) > 1 else where
        if isinstance(data, dict) and data.get("kind", specs.KIND) != specs.KIND:
            reading.others.append(f"{here}: {_kind(data)} is not an {specs.KIND}; it is left out")
            continue
        try:
            document = _document(here, data)
        except InvalidArgument as error:
            reading.faults.append(_at(here, error.message))
            continue
        if document.function in seen:
            reading.faults.append(f"{here}: {document.function} found, which is in {seen[document.function]} already; once is allowed")
        else:
            seen[document.function] = here
            reading.documents.append(document)
    if not whole:
        reading.others.append(f"{where}: no document is in it")


def _numbered(documents: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Each document under its number; the items of a List, which is what `kubectl get -o yaml` writes, as 2.1, 2.2, ..."""
    for number, data in enumerate(documents, 1):
        if isinstance(data, dict) and data.get("kind") == "List" and isinstance(data.get("items"), list):
            yield from ((f"{number}.{item}", each) for item, each in enumerate(data["items"], 1))
        else:
            yield str(number), data


def _document(where: str, data: Any) -> Document:
    """InvalidArgument: what is wrong with it."""
    if not isinstance(data, dict):
        raise InvalidArgument("an object with apiVersion, kind, metadata and spec is allowed, something else found")
    function = specs.parse_manifest(data)
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"it has no JSON form: {error}") from None
    if len(text) > limits.MANIFEST_BYTES:
        raise InvalidArgument(f"{len(text)} bytes of JSON found, at most {limits.MANIFEST_BYTES} are allowed")
    return Document(where, f"{function.metadata.namespace}/{function.metadata.name}", text)


def _kind(data: dict[str, Any]) -> str:
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{data['kind']} {name}" if name else str(data["kind"])


def _at(where: str, message: str) -> str:
    return "\n".join(f"{where}: {line}" for line in message.splitlines())
