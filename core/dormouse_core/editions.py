"""Which bytes a revision stands for.

A spec says where a model lies, not what lies there. A file that is edited, or a URL that gives something else, would be served under the
revision that was proved with other bytes, and a rollback would give the new ones. So:

* A revision is a digest of the spec and of its *edition*: the content's digest where it can be read when the function is applied (file://
  on one machine), else a mark that changes when somebody asks for the content to be read again.
* The worker that proves a revision says which content it loaded, and the function remembers that. A later worker of the revision that finds
  another content does not serve it (`differs`).
* Applying what was refused is asking for another try, at once: a new edition.

On one machine a content that changed is a new revision at the next `apply`, proved as any other while the one before serves on.
"""

from collections.abc import Callable

from dormouse_proto import state_pb2

PROOFS_KEPT = 16
"""Revisions of a function whose content is remembered, the newest."""
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


def differs(entry: state_pb2.FunctionEntry, revision: str, content: str) -> bool:
    """Whether `content` is not what `revision` was proved with. What is not known differs from nothing."""
    known = proved_content(entry, revision)
    return bool(known and content and known != content)


def remember(entry: state_pb2.FunctionEntry, revision: str, content: str, seal: str = "") -> None:
    """Notes in `entry` what a worker loaded when it proved `revision`. What was noted first stays."""
    if not content or proved_content(entry, revision):
        return
    entry.proofs.add(revision=revision, content=content, seal=seal)
    del entry.proofs[: max(0, len(entry.proofs) - PROOFS_KEPT)]
