"""What a worker died of, as its supervisor sees it."""

import pathlib
import signal

import pytest
from dormouse_core import deaths
from dormouse_proto import state_pb2
from dormouse_worker.process import keeping, memorylimit
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("number", "starved", "why"),
    [
        (signal.SIGKILL, True, deaths.MEMORY),
        (signal.SIGKILL, False, None),  # somebody killed it
        (signal.SIGTERM, True, None),
        (0, True, None),
        (signal.SIGSEGV, False, deaths.CRASH),
        (signal.SIGABRT, False, deaths.CRASH),
        (signal.SIGBUS, True, deaths.CRASH),
    ],
)
def test_a_death_is_a_calls_doing_only_where_nobody_else_killed(number: int, starved: bool, why: int | None) -> None:
    assert deaths.why(number, starved) == why


def test_who_ran_beside_others_each_time_is_tried_once_more() -> None:
    assert [deaths.guilty(seen) for seen in ([], [True], [False, True], [False, False], [True, False])] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert deaths.guilty([False, False, False])


@given(alone=st.lists(st.booleans(), max_size=5), more=st.integers(0, 5))
def test_nobody_takes_a_fourth_worker_and_nobody_is_accused_of_two_that_are_not_explained(alone: list[bool], more: int) -> None:
    lost = len(alone) + more
    if lost > 2:
        assert deaths.guilty(alone, lost)
    elif deaths.guilty(alone, lost):
        assert alone == [alone[0], True], "only where somebody said so of both, and nothing ran beside it the last time"
    if not deaths.guilty(alone, lost) and deaths.guilty(alone, lost + 1):
        assert deaths.apart(len(alone), lost), "who is taken for guilty by the next death was with no other suspect in it"


def test_the_reasons_are_those_of_the_entry_and_are_written_as_it_says() -> None:
    kinds = state_pb2.WorkerEntry.Killed
    assert (kinds.HELD, kinds.MEMORY, kinds.CRASH) == (deaths.HELD, deaths.MEMORY, deaths.CRASH)
    for why in (deaths.HELD, deaths.MEMORY, deaths.CRASH):
        entry = state_pb2.WorkerEntry(address="a:1", revision="r")
        read = state_pb2.WorkerEntry.FromString(entry.SerializeToString() + keeping.killed(["one", "two" * 60], "the cause", why))
        assert (list(read.killed.calls), read.killed.cause, read.killed.why) == (["one", "two" * 60], "the cause", why)
        assert (read.address, read.revision) == ("a:1", "r")


def test_the_kernels_kills_are_counted_where_it_counts_them(tmp_path: pathlib.Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    (root / "pod").mkdir(parents=True)
    own.write_text("0::/pod\n")
    assert memorylimit.kills(root, own) is None
    (root / "pod" / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert memorylimit.kills(root, own) == 2
    own.write_text("4:cpu:/\n9:memory:/pod\n")
    (root / "memory" / "pod").mkdir(parents=True)
    (root / "memory" / "pod" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert memorylimit.kills(root, own) == 3
    own.write_text("")
    assert memorylimit.kills(root, own) is None
