"""Which bytes a revision stands for: what makes a new one, and what a worker may not serve."""

import pytest
from dormouse_core import editions, limits
from dormouse_proto import state_pb2

A, B, C = "a" * 64, "b" * 64, "c" * 64


def revision(spec: str) -> editions.Revision:
    return lambda edition: f"{spec}/{edition}"


def entry(edition: str = A, *, spec: str = "one", proved: str = "", problem: bool = False) -> state_pb2.FunctionEntry:
    made = state_pb2.FunctionEntry(revision=revision(spec)(edition), edition=edition, generation=8)
    editions.remember(made, made.revision, proved)
    if problem:
        made.problem.message = "opset 99 found"
    return made


def next_edition(of: state_pb2.FunctionEntry, content: str, spec: str = "one", **more: bool) -> str:
    return editions.edition(of, revision(spec), content, **more)


def test_the_same_bytes_are_the_same_edition() -> None:
    assert next_edition(state_pb2.FunctionEntry(), A) == A
    assert next_edition(entry(), A) == A
    assert next_edition(entry(proved=A), A) == A
    assert next_edition(entry(proved=A), "") == A, "not readable now is no other content"
    assert next_edition(entry(proved=A), A, "two") == A


def test_other_bytes_are_another_edition_and_a_rollback_gives_the_first_again() -> None:
    assert next_edition(entry(proved=A), B) == B
    back = entry(B, proved=B)
    editions.remember(back, "one/" + A, A)
    assert next_edition(back, A) == A
    rolled = entry(A, spec="two", proved=A)
    editions.remember(rolled, "one/" + A, A)
    assert next_edition(rolled, B, "one") == B, "the spec of before and other bytes: not the revision of before"


def test_a_revision_that_was_proved_with_other_bytes_than_it_was_applied_with_keeps_them() -> None:
    """It was refused with A; the file was mended to B and its next try loaded."""
    healed = entry(A, proved=B)
    assert next_edition(healed, B) == A
    assert next_edition(healed, C) == C
    assert next_edition(healed, A) == A + "+9", "that name stands for B now"


@pytest.mark.parametrize("content", [A, ""])
def test_what_is_refused_is_tried_again_when_it_is_applied_again(content: str) -> None:
    assert next_edition(entry(problem=True), content, retry=True) == content + "+9"
    assert next_edition(entry(problem=True), content) == A, "scaling asks for no other try"
    assert next_edition(entry(), content, retry=True) == A
    again = entry(A + "+9")
    assert next_edition(again, A) == A + "+9", "the same bytes as at the last try"


def test_asked_for_it_is_read_again_wherever_it_lies() -> None:
    assert next_edition(entry(""), "", asked=True) == "+9"
    assert next_edition(entry(proved=A), A, asked=True) == A + "+9"
    assert next_edition(entry(proved=A), B, asked=True) == B
    assert next_edition(entry("+8"), "") == "+8", "and stays read"


def test_a_worker_that_found_other_bytes_may_not_serve() -> None:
    found = entry(proved=A)
    assert editions.differs(found, found.revision, B)
    assert not editions.differs(found, found.revision, A)
    assert not editions.differs(found, found.revision, "")
    assert not editions.differs(found, "another", B)


def test_the_newest_proofs_are_kept_and_what_was_noted_first_stays() -> None:
    found = state_pb2.FunctionEntry()
    for number in range(editions.PROOFS_KEPT + 3):
        editions.remember(found, f"r{number}", A)
    editions.remember(found, "r5", B)
    editions.remember(found, "r-none", "")
    assert len(found.proofs) == editions.PROOFS_KEPT
    assert editions.proved_content(found, "r0") == ""
    assert editions.proved_content(found, "r5") == A


def test_a_list_at_its_limit_is_kept_and_one_beyond_is_not() -> None:
    names = [f"{number:0100d}" for number in range(limits.CONTENT_LIST_BYTES // 124)]
    rest = "x" * (limits.CONTENT_LIST_BYTES % 124 + 100)  # of the last one
    found = state_pb2.FunctionEntry()
    for revision_, last in (("at it", rest), ("one beyond", rest + "x")):
        files = [*names[:-1], last]
        assert bool(editions.listed(dict.fromkeys(files, A))) == (revision_ == "at it")
        claimed = [state_pb2.ContentFile(name=name, digest=b"a" * 16) for name in files]
        editions.remember(found, revision_, A, files=claimed)
    kept = [len(editions.proof_of(found, name).files) for name in ("at it", "one beyond")]
    assert kept == [len(names), 0], "whatever a worker claims"
    assert editions.listed({"a\udc80": A, "b": A}) == []
