"""A worker that loaded other bytes than its revision was proved with is not let in; whatever is not known is no reason."""

import pytest
from dormouse_core import editions
from dormouse_core.errors import Code, Unavailable
from dormouse_core.keys import Keys
from dormouse_core.seams import Put, Txn
from dormouse_core.spec import parse_manifest
from dormouse_core.workerfile import StoreAccess, WorkerFile
from dormouse_proto import state_pb2
from dormouse_testing import simloop
from dormouse_testing.clock import SimClock
from dormouse_testing.manifests import onnx
from dormouse_testing.memory_store import MemoryStore
from dormouse_worker.models.refusals import ContentChanged
from dormouse_worker.serving import proofs

A, B = "a" * 64, "b" * 64
Files = dict[str, str]
PROVED = {"mine.py": "1" * 64, "below/w.npy": "2" * 64}
KEY = Keys("i").function("ns", "fn")


def file(revision: str = "revision-1") -> WorkerFile:
    access = StoreAccess(endpoints=["e"])
    spec = parse_manifest(onnx()).spec
    return WorkerFile(installation="i", namespace="ns", name="fn", uid="u", revision=revision, spec=spec, store=access)


def checked(
    content: str, *, uid: str = "u", revision: str = "revision-1", entry: bool = True, down: bool = False, now: Files | None = None
) -> None:
    async def main() -> None:
        clock = SimClock()
        store = MemoryStore(clock)
        found = state_pb2.FunctionEntry(uid=uid)
        editions.remember(found, "revision-1", A, files=[] if now is None else editions.listed(PROVED))
        if entry:
            await store.txn(Txn((), (Put(KEY, found.SerializeToString()),)))
        store.down = down
        try:
            await proofs.check(file(revision), content, now or {}, store, clock)
        finally:
            await store.close()

    simloop.run(main())


def test_other_bytes_are_refused_with_both_digests_and_the_cure() -> None:
    with pytest.raises(ContentChanged) as refused:
        checked(B)
    for words in (A[:12], B[:12], "revision", "dormouse apply --refresh", "dormouse.dev/refresh", "put back", ".dormouseignore"):
        assert words in refused.value.message
    assert refused.value.code is Code.FAILED_PRECONDITION


def test_the_same_bytes_serve_and_what_is_not_known_contradicts_nothing() -> None:
    checked(A)
    checked(B, revision="revision-2")
    checked(B, uid="of another function")
    checked(B, entry=False)
    checked("")


def test_a_store_that_does_not_answer_is_no_yes() -> None:
    with pytest.raises(Unavailable, match="does not say what revision revision-1 was proved with"):
        checked(A, down=True)


def test_negative_control_without_the_proof_other_bytes_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editions, "differs", lambda *given: False)
    checked(B)


def test_a_file_that_came_later_is_not_of_the_revision_and_one_of_its_own_that_changed_or_went_is_named() -> None:
    checked(B, now={**PROVED, "cache.db": "3" * 64})
    with pytest.raises(ContentChanged, match=r"\(mine\.py changed, below/w\.npy is gone\)"):
        checked(B, now={"mine.py": "3" * 64, "cache.db": "3" * 64})


def test_negative_control_without_the_list_a_file_that_came_later_would_be_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editions, "listed", lambda files: [])
    with pytest.raises(ContentChanged):
        checked(B, now={**PROVED, "cache.db": "3" * 64})
