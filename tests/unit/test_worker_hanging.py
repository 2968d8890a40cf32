"""What counts as a hang, and when a lease may be renewed in a worker's name; the marks that both are judged by."""

import itertools
import threading

import pytest
from dormouse_core import hanging, limits
from dormouse_proto import state_pb2
from dormouse_worker import keeping
from dormouse_worker.marks import Marks
from dormouse_worker.work import Runs


@pytest.mark.parametrize(
    ("misses", "unhealthy", "held", "still", "why"),
    [
        (2, False, None, 0, ""),
        (3, False, 4.0, 0, ""),
        (50, False, 61.0, 0, ""),
        (61, False, 61.1, 0, "a step has held the interpreter for 61.1 s (61 s are allowed: timeouts.hang)"),
        (3, False, None, 0, "the interpreter did not answer 3 probes in a row, and no step runs"),
        (3, True, 4.0, 0, "a run is over its step limit at 3 probes in a row"),
        (3, False, 4.0, 3, "the process stands still: neither its interpreter nor its Envoy answered 3 probes in a row"),
        (2, True, 70.0, 2, ""),
    ],
)
def test_a_step_that_may_run_is_no_hang(misses: int, unhealthy: bool, held: float | None, still: int, why: str) -> None:
    assert hanging.verdict(misses=misses, unhealthy=unhealthy, held=held, limit=61.0, still=still) == why


def test_the_lease_is_renewed_for_a_step_that_may_run_and_for_nothing_else() -> None:
    for renewed, held in itertools.product((98.4, 98.6), (None, 0.0, 5.0, 5.1)):
        expected = renewed == 98.4 and held in (0.0, 5.0)
        assert hanging.may_renew(now=100.0, renewed=renewed, held=held, limit=5.0) is expected
    assert hanging.OVERDUE_SECONDS + 1.0 < limits.LEASE_SECONDS, "a second try before it ends"


def test_marks_tell_another_reader_what_runs() -> None:
    mine = Marks()
    try:
        theirs = Marks(mine.fd)
        assert mine.held_for(5.0) is None
        theirs.allow(61.0)
        theirs.renewed(2**62 + 1, 3.5)
        theirs.begin(1, 2.0, ["a", "b"])
        theirs.begin(2, 4.0, [])
        assert (mine.limit, mine.lease, mine.renewed_at, mine.held_for(5.0), mine.calls()) == (61.0, 2**62 + 1, 3.5, 1.0, ["a", "b"])
        mine.kept(4.5)
        assert theirs.kept_at == 4.5
        theirs.end(2)
        assert mine.held_for(5.0) == 1.0, "at least: of the latest that began"
        theirs.end(1)
        assert (mine.held_for(5.0), mine.calls()) == (None, [])
    finally:
        mine.close()


def test_more_runs_than_there_is_room_for_are_counted_all_the_same() -> None:
    marks = Marks()
    try:
        for token in range(2000):
            marks.begin(token, float(token), [f"call-{token}" * 90])
        assert marks.held_for(2000.0) == 1.0
        assert 100 < len(marks.calls()) < 2000
        for token in range(2000):
            marks.end(token)
        assert (marks.held_for(2000.0), marks.calls()) == (None, [])
        marks.begin(1, 1.0, ["again"])
        assert marks.calls() == ["again"]
    finally:
        marks.close()


def test_runs_of_many_threads_leave_no_mark_behind() -> None:
    marks, runs = Marks(), Runs(60.0)
    runs.marks = marks

    def work() -> None:
        for _ in range(500):
            token = runs.begin(1.0)
            runs.end(token)
            runs.end(token)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert marks.held_for(2.0) is None
    finally:
        marks.close()


@pytest.mark.parametrize("calls", [[], ["one"], ["x" * 200, "ż" * 3000]])
def test_the_word_in_an_entry_is_what_protobuf_reads(calls: list[str]) -> None:
    entry = state_pb2.WorkerEntry(address="10.0.0.1:1", instance="i", state=state_pb2.WorkerEntry.DRAINING)
    found = state_pb2.WorkerEntry.FromString(entry.SerializeToString() + keeping.killed(calls, "why " * 50))
    assert (list(found.killed.calls), found.killed.cause) == (calls, "why " * 50)
    found.ClearField("killed")
    assert found == entry
