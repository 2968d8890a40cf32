"""What counts as a hang, and when a lease may be renewed in a worker's name; the marks that both are judged by."""

import asyncio
import itertools
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from dormouse_core import hanging, limits
from dormouse_core.hanging import Run
from dormouse_proto import state_pb2
from dormouse_worker.batches.work import Runs, Work
from dormouse_worker.process import keeping, supervisor
from dormouse_worker.process.marks import Marks
from dormouse_worker.runtimes.python import Stepping


@pytest.mark.parametrize(
    ("misses", "unhealthy", "held", "still", "why"),
    [
        (2, False, None, 0, ""),
        (3, False, 4.0, 0, ""),
        (50, False, 61.0, 0, ""),
        (61, False, 61.1, 0, "a step has held the interpreter for 61.1 s (61 s are allowed: timeouts.hang)"),
        (3, False, None, 0, "the interpreter did not answer 3 probes in a row, and no step runs"),
        (3, True, 4.0, 0, "a run is over its step limit at 3 probes in a row"),
        (3, False, 4.0, 3, "the process does not respond: neither its interpreter nor its Envoy answered 3 probes in a row"),
        (2, True, 70.0, 2, ""),
    ],
)
def test_a_step_that_may_run_is_no_hang(misses: int, unhealthy: bool, held: float | None, still: int, why: str) -> None:
    assert hanging.verdict(misses=misses, unhealthy=unhealthy, held=held, limit=61.0, still=still) == why


def test_an_interpreter_is_asked_each_second_and_killed_at_the_third_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's own loop, on a clock of ours: nobody answers from its third question on."""
    clock, asked, killed = [100.0], list[float](), list[float]()

    class Asked:
        sock = None

        def __init__(self, _: str, until: float) -> None:
            asked.append(clock[0])
            self.until, self.answers = until, len(asked) < 3

        def look(self, now: float) -> int | None:
            return 200 if self.answers else 0 if now >= self.until else None

    def turn(self: supervisor.Supervisor, child: Any, wait: float) -> bool:
        clock[0] += min([wait, *(probe.until - clock[0] for probe in (child.probe,) if probe is not None)])
        return False

    nobody: Any = SimpleNamespace(held_for=lambda now: None, lease=0, limit=61.0, runs=list)
    child: Any = SimpleNamespace(name="w", pid=0, ready=True, drained=False, since=100.0, marks=nobody, probe=None, process=None)
    child.misses = child.still = 0
    child.kill = lambda: killed.append(clock[0])
    under = object.__new__(supervisor.Supervisor)
    under._options = supervisor.Options(listen="", advertise="", instance="", admin="", reason="", child={})
    under._asked, under._keeper = False, None
    monkeypatch.setattr(supervisor.Supervisor, "_turn", turn)
    monkeypatch.setattr(supervisor.Supervisor, "_wait", lambda self, child: -9)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: clock[0], time=lambda: clock[0]))
    monkeypatch.setattr(supervisor, "probing", SimpleNamespace(inference=Asked, process=lambda *_: SimpleNamespace(look=lambda now: 200)))
    monkeypatch.setattr(supervisor, "leftovers", SimpleNamespace(reap=lambda pids: None))
    assert under._watch(child) == -9
    assert asked == [100.0, 101.0, 102.0, 103.0, 104.0]
    assert killed == [105.0]


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
        theirs.begin(1, 2.0, ["a", "b"], 7)
        run = Run(("a", "b"), 7, on_loop=False)
        theirs.begin(2, 4.0, [])
        assert (mine.limit, mine.lease, mine.renewed_at, mine.held_for(5.0), mine.runs()) == (61.0, 2**62 + 1, 3.5, 1.0, [run])
        mine.kept(4.5)
        assert theirs.kept_at == 4.5
        theirs.end(2)
        assert mine.held_for(5.0) == 1.0, "at least: of the latest that began"
        theirs.on_loop(1)
        assert mine.runs() == [run._replace(on_loop=True)]
        theirs.on_loop(None)
        assert mine.runs() == [run]
        theirs.end(1)
        assert (mine.held_for(5.0), mine.runs()) == (None, [])
    finally:
        mine.close()


@pytest.mark.parametrize(
    ("runs", "waits", "blamed"),
    [
        ([Run(("a",), 0, on_loop=False), Run(("b",), 0, on_loop=True), Run(("c",), 0, on_loop=False)], set(), ["b"]),
        ([Run(("a",), 7, on_loop=False), Run(("b",), 8, on_loop=False)], {8}, ["a"]),
        ([Run(("a",), 7, on_loop=False), Run(("b",), 8, on_loop=False)], {7, 8}, ["a", "b"]),
        ([Run(("a", "b"), 0, on_loop=False)], set(), ["a", "b"]),
        ([], set(), []),
    ],
)
def test_who_ran_beside_the_step_that_held_the_interpreter_is_not_blamed(runs: list[Run], waits: set[int], blamed: list[str]) -> None:
    assert hanging.blamed(runs, waits) == blamed


async def test_the_step_that_the_event_loop_is_in_is_marked() -> None:
    seen: list[tuple[str, int | None]] = []
    current: list[int | None] = [None]

    class Marking(Runs):
        def on_loop(self, token: int | None) -> None:
            current[0] = token

    runs = Marking(60.0)

    async def step(name: str, work: Work) -> None:
        work.token = runs.begin(0.0)
        runs.on_loop(work.token)
        for _ in range(2):
            seen.append((name, current[0]))
            await asyncio.sleep(0)
        if name == "b":
            raise ValueError(name)

    works = [Work(None, {}, 0, False, False, lambda _: None, 0.0, 0.0) for _ in "ab"]  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(Stepping(step(name, work), work, runs)) for name, work in zip("ab", works, strict=True)]
    _, failed = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(cast(Any, failed), ValueError)
    assert seen == [("a", works[0].token), ("b", works[1].token)] * 2
    assert current == [None]


def test_more_runs_than_there_is_room_for_are_counted_all_the_same() -> None:
    marks = Marks()
    try:
        for token in range(2000):
            marks.begin(token, float(token), [f"call-{token}" * 90])
        assert marks.held_for(2000.0) == 1.0
        assert 100 < len(marks.runs()) < 2000
        for token in range(2000):
            marks.end(token)
        assert (marks.held_for(2000.0), marks.runs()) == (None, [])
        marks.begin(1, 1.0, ["again"])
        assert marks.runs() == [Run(("again",), 0, on_loop=False)]
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
