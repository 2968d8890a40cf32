"""What a worker died of, as its supervisor sees it."""

import pathlib
import signal

import pytest
from dormouse_core import deaths, limits
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


def test_a_call_is_convicted_only_by_a_worker_that_died_while_it_ran_there_with_nothing_else() -> None:
    guilty = [[True, True], [False, True], [None, False, True], [False, False, False, True]]
    innocent = [[], [True], [None, True], [True, False], [False, False], [None, False, False], [False] * 7]
    assert [deaths.guilty(seen) for seen in guilty + innocent] == [True] * len(guilty) + [False] * len(innocent)
    assert deaths.guilty([False] * limits.LOST_WORKERS), "where nobody can be cleared it ends all the same"
    assert [deaths.suspect([False] * count) for count in range(4)] == [False, False, True, True]


def test_what_is_known_of_each_death() -> None:
    assert deaths.witnessed({}, [], False) == []
    assert deaths.witnessed({}, [], True) == [None], "nobody tells of what Envoy's own try failed"
    assert deaths.witnessed({"w1": True}, [("w2", False)], True) == [True, False], "its supervisor does"
    assert deaths.witnessed({"w2": True}, [("w1", False), ("w2", False)], False) == [False, True]
    assert deaths.witnessed({"w2": True}, [("w1", False)], False) == [True], "which began where the other had been"
    assert deaths.witnessed({"w1": True, "w2": False}, [], True) == [False, True]
    assert deaths.witnessed({"w2": False}, [("w1", False), ("w2", True)], True) == [None, False, True]


@given(
    known=st.dictionaries(st.sampled_from("abcdef"), st.booleans()),
    broke=st.lists(st.tuples(st.sampled_from("defghi"), st.booleans()), max_size=6),
    tried=st.booleans(),
)
def test_nobody_is_accused_by_deaths_beside_others(known: dict[str, bool], broke: list[tuple[str, bool]], tried: bool) -> None:
    seen = deaths.witnessed(known, broke, tried)
    assert seen.count(None) <= 1
    assert len(seen) == max(len(known), len(broke) + tried) or set(known) & {name for name, _ in broke}
    assert len(seen) <= len(known) + len(broke) + tried
    if deaths.guilty(seen) and len(seen) < limits.LOST_WORKERS:
        assert any(known.values()) or any(cleared for _, cleared in broke)
    if deaths.guilty([*seen, False]) and not deaths.guilty(seen):
        assert len(seen) == limits.LOST_WORKERS - 1, "who runs beside others is accused by the last of many deaths alone"
    if not deaths.suspect(seen):
        assert not deaths.guilty(seen)
    else:
        assert deaths.guilty([*seen, True]), "a suspect is alone from then on, and takes one worker more"


def test_the_reasons_are_those_of_the_entry_and_are_written_as_it_says() -> None:
    kinds = state_pb2.WorkerEntry.Killed
    assert (kinds.HELD, kinds.MEMORY, kinds.CRASH) == (deaths.HELD, deaths.MEMORY, deaths.CRASH)
    for why in (deaths.HELD, deaths.MEMORY, deaths.CRASH):
        entry = state_pb2.WorkerEntry(address="a:1", revision="r")
        read = state_pb2.WorkerEntry.FromString(entry.SerializeToString() + keeping.killed(["one", "two" * 60], "the cause", why))
        assert (list(read.killed.calls), read.killed.cause, read.killed.why) == (["one", "two" * 60], "the cause", why)
        assert (read.address, read.revision, read.killed.alone) == ("a:1", "r", False)
        read = state_pb2.WorkerEntry.FromString(entry.SerializeToString() + keeping.killed(["one"], "the cause", why, alone=True))
        assert (read.killed.why, read.killed.alone) == (why, True)


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
