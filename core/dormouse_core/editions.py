"""Which bytes a revision stands for.

A spec says where a model lies, not what lies there. A file that is edited, or a URL that gives something else, would be served under the
revision that was proved with other bytes, and a rollback would give the new ones. So:

* A revision is a digest of the spec and of its *edition*: the content's digest where it can be read when the function is applied (file://
  on one machine), else a mark that changes when somebody asks for the content to be read again.
* The worker that proves a revision says which content it loaded, and the function remembers that. A later worker of the revision that finds
  another content does not serve it (`differs`).
* Applying what was refused is asking for another try, at once: a new edition.

* Of a folder, that is a list of files with their digests. What comes into it later is not of the revision: a cache that a handler writes
  does not change it, while a file of the list that is another, or is gone, does.

On one machine a content that changed is a new revision at the next `apply`, proved as any other while the one before serves on.
"""

from collections.abc import Callable, Mapping, Sequence

from dormouse_proto import state_pb2

from dormouse_core import limits

PROOFS_KEPT = 16
"""Revisions of a function whose content is remembered, the newest."""
DIGEST_BYTES = 16
"""Of a listed file's SHA-256."""
_FILE_BYTES = 24
_RETRY = "+"

Revision = Callable[[str], str]
"""Of one spec, by its edition."""


def edition(entry: state_pb2.FunctionEntry, revision: Revision, content: str, *, asked: bool = False, retry: bool = False) -> str:
    """The edition that `entry` is to have.

    `revision(edition)`: of the spec that is applied. `content`: what lies there now; empty: not known here. `asked`: somebody wants the
    content to be read again. `retry`: what is refused is to be tried again.
    """
    now, another = entry.edition, f"{content}{_RETRY}{entry.generation + 1}"
    same = revision(now) == entry.revision
    if same and not asked and _holds(entry, content):
        return another if retry and entry.HasField("problem") else now
    if asked and (not content or (same and _holds(entry, content))):
        return another
    wanted = content or now
    return another if content and differs(entry, revision(wanted), content) else wanted


def _holds(entry: state_pb2.FunctionEntry, content: str) -> bool:
    """Whether the entry's revision stands for `content`, as far as is known."""
    known = proved_content(entry, entry.revision) or entry.edition.partition(_RETRY)[0]
    return not content or known == content


def proved_content(entry: state_pb2.FunctionEntry, revision: str) -> str:
    """The digest of what `revision` was proved with; empty: not known."""
    return proof_of(entry, revision).content


def proof_of(entry: state_pb2.FunctionEntry, revision: str) -> state_pb2.Proof:
    """An empty one: not known."""
    return next((proof for proof in entry.proofs if proof.revision == revision), state_pb2.Proof())


def listed(files: Mapping[str, str]) -> list[state_pb2.ContentFile]:
    """The list of a folder's `files`, name -> SHA-256; empty: there are too many for one."""
    size = sum(len(name.encode(errors="surrogateescape")) + _FILE_BYTES for name in files)
    if size > limits.CONTENT_LIST_BYTES or any(not name.isprintable() for name in files):
        return []
    return [state_pb2.ContentFile(name=name, digest=bytes.fromhex(digest)[:DIGEST_BYTES]) for name, digest in files.items()]


def differs(entry: state_pb2.FunctionEntry, revision: str, content: str, files: Mapping[str, str] | None = None) -> bool:
    """Whether `content` is not what `revision` was proved with. What is not known differs from nothing. `files`: of a folder, name ->
    SHA-256 of all that is in it."""
    proof = proof_of(entry, revision)
    if not (proof.content and content and proof.content != content):
        return False
    return not (proof.files and files) or bool(changes(proof, files))


def changes(proof: state_pb2.Proof, files: Mapping[str, str]) -> list[str]:
    """What is no longer as it was at the proof, a few words for each file."""
    found = [(file.name, file.digest.hex(), files.get(file.name, "")) for file in proof.files]
    return [f"{name} {'changed' if now else 'is gone'}" for name, proved, now in found if not now or not now.startswith(proved)]


def remember(
    entry: state_pb2.FunctionEntry, revision: str, content: str, seal: str = "", files: Sequence[state_pb2.ContentFile] = ()
) -> None:
    """Notes in `entry` what a worker loaded when it proved `revision`. What was noted first stays."""
    if not content or proved_content(entry, revision):
        return
    proof = entry.proofs.add(revision=revision, content=content, seal=seal)
    if sum(len(file.name.encode()) + _FILE_BYTES for file in files) <= limits.CONTENT_LIST_BYTES:
        proof.files.extend(files)
    del entry.proofs[: max(0, len(entry.proofs) - PROOFS_KEPT)]
