"""Reading a manifest: text in YAML or JSON to an `InferenceFunction`, or one error that says everything that is wrong with it.

YAML is generous in ways that hide mistakes. A key that is written twice keeps its last value without a word; `on` is a boolean and
`2024-01-01` a date; aliases can make a megabyte of text into a gigabyte of data. Each is refused here with the line, or read as the text
that the author saw.
"""

import json
from typing import Any

import msgspec
import yaml

from dormouse_core import limits
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_core.spec.broken_rules import broken, broken_by_change
from dormouse_core.spec.canonical import decode_hook, without_none
from dormouse_core.spec.objects import API_VERSION, KIND, FunctionSpec, InferenceFunction, Metadata
from dormouse_core.spec.validation import Faults, check, shown

SHOWN_FAULTS = 20
SERVER_FIELDS = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "managedFields", "selfLink", "finalizers",
     "ownerReferences", "deletionGracePeriodSeconds", "generateName"}
)  # fmt: skip
"""What `kubectl get -o yaml` writes into metadata beside the author's own; skipped, so that its output can be applied again."""


class InvalidManifest(InvalidArgument):
    """`problems`: one sentence for each fault."""

    def __init__(self, problems: list[str]) -> None:
        more = len(problems) - SHOWN_FAULTS
        super().__init__("\n".join(problems[:SHOWN_FAULTS] + ([f"and {more} more"] if more > 0 else [])))
        self.problems = tuple(problems)


def parse_manifest(manifest: str | bytes | dict[str, Any], *, namespace: str = "default") -> InferenceFunction:
    """The one InferenceFunction that `manifest` holds, defaults filled in. `namespace`: where the manifest names none.

    Raises InvalidManifest (an InvalidArgument).
    """
    data = manifest if isinstance(manifest, dict) else read(manifest)
    faults = Faults()
    _check_head(data, faults)
    metadata, spec = data.get("metadata"), data.get("spec")
    if isinstance(metadata, dict):
        metadata = {"namespace": namespace} | {
            name: item for name, item in metadata.items() if name not in SERVER_FIELDS and item is not None
        }
    for name, kind, part in (("metadata", Metadata, metadata), ("spec", FunctionSpec, spec)):
        if part is None:
            faults.messages.append(f"{name}: not found, it is required")
        else:
            check(kind, part, name, faults)
    if isinstance(spec, dict) and "sessions" in spec and spec["sessions"] is None:
        faults.add("spec.sessions", "null", "an object is allowed; leave the field out for a stateless function")
    if faults:
        raise InvalidManifest(faults.messages)
    whole = without_none({"metadata": metadata, "spec": spec})
    function = msgspec.convert(whole, InferenceFunction, dec_hook=decode_hook)
    problems = broken(function)
    if problems:
        raise InvalidManifest(problems)
    return function


def validate_update(old: InferenceFunction, new: InferenceFunction) -> None:
    """FailedPrecondition: `new` changes what may not change."""
    problems = broken_by_change(old, new)
    if problems:
        raise FailedPrecondition("\n".join(problems))


def _check_head(data: dict[str, Any], faults: Faults) -> None:
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = data.get(name)
        if found is None:
            faults.messages.append(f"{name}: not found, {wanted} is required")
        elif found != wanted:
            faults.add(name, shown(found), f"{wanted} is allowed")
    for name in data:
        if name not in ("apiVersion", "kind", "metadata", "spec", "status"):
            faults.messages.append(f"{name}: unknown field, apiVersion, kind, metadata and spec are allowed")


# ------------------------------------------------------------------------------------------------------------------------- reading


def read(text: str | bytes) -> dict[str, Any]:
    """The one document in `text`, as plain data. InvalidManifest: not text, not YAML or JSON, not one object."""
    if len(text) > limits.MANIFEST_BYTES:
        raise InvalidManifest([f"manifest: {len(text)} bytes found, at most {limits.MANIFEST_BYTES} are allowed"])
    documents = read_all(text)
    if len(documents) != 1:
        raise InvalidManifest([f"manifest: {len(documents) or 'no'} documents found, one {KIND} is allowed"])
    if not isinstance(documents[0], dict):
        raise InvalidManifest([f"manifest: {shown(documents[0])} found, an object with apiVersion, kind, metadata and spec is allowed"])
    return documents[0]


def read_all(text: str | bytes) -> list[Any]:
    """Every document in `text` that is not empty, as plain data. InvalidManifest: not text, not YAML or JSON."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidManifest([f"manifest: the byte 0x{text[error.start]:02x} at {error.start} found, UTF-8 is allowed"]) from error
    try:
        documents = _documents(text)
        if not _is_text(documents):
            raise InvalidManifest(["manifest: half of a surrogate pair found (\\ud800 to \\udfff), whole characters are allowed"])
    except RecursionError as error:  # both parsers recurse with the text's own nesting
        raise InvalidManifest(["manifest: a nesting of hundreds of levels found, at most 32 are allowed"]) from error
    return documents


def _documents(text: str) -> list[Any]:
    if text.lstrip().startswith("{"):
        try:
            return [json.loads(text, object_pairs_hook=_unique)]
        except json.JSONDecodeError:
            pass  # YAML's flow style may begin so, too
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InvalidManifest([f"manifest: {_told(error)}"]) from error
    try:
        documents = []
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                _measure(node, {}, set())
                documents.append(loader.construct_document(node))
    except yaml.YAMLError as error:
        raise InvalidManifest([f"manifest: {_told(error)}"]) from error
    finally:
        loader.dispose()
    return [document for document in documents if document is not None]


def _is_text(data: Any) -> bool:
    """Whether all of it can be written as UTF-8. An escape in JSON or YAML can make half a character, and the store cannot keep that."""
    if isinstance(data, dict):
        return all(_is_text(key) and _is_text(item) for key, item in data.items())
    if isinstance(data, list):
        return all(_is_text(item) for item in data)
    return not isinstance(data, str) or not any("\ud800" <= character <= "\udfff" for character in data)


def _told(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        at = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return at + " ".join(part for part in (error.problem, f"({error.context})" if error.context else "") if part)
    return str(error)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidManifest([f"manifest: the key {shown(twice)} found more than once in one object, once is allowed"])
    return data


def _measure(node: yaml.Node, sizes: dict[int, int], open_: set[int]) -> int:
    """How many nodes `node` has when its aliases are written out; refuses too many, and an alias within itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in open_:
        raise yaml.MarkedYAMLError(problem="an alias of something that holds it", problem_mark=node.start_mark)
    if id(node) not in sizes:
        open_.add(id(node))
        items = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_measure(item, sizes, open_) for item in items)
        open_.discard(id(node))
        if sizes[id(node)] > limits.MANIFEST_NODES:
            problem = f"more than {limits.MANIFEST_NODES} values found once aliases are written out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return sizes[id(node)]


class _Loader(yaml.SafeLoader):
    """YAML as a manifest's author means it: keys once, dates as text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                problem = f"the key {shown(key.value)} found again, it is in line {seen[key.value].line + 1} already"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
