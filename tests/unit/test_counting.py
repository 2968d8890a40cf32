"""What the leader knows of a function's sessions, what it tells each worker of the others', and how much memory sessions may take."""

from pathlib import Path
from types import SimpleNamespace

from dormouse_core import admission, limits
from dormouse_core.errors import ResourceExhausted, Unavailable
from dormouse_core.storage import Used
from dormouse_operator.counting import Counts, Figures
from dormouse_proto import control_pb2, state_pb2
from dormouse_worker.process import memorylimit

GIB = 1 << 30


class View:
    """The part of the leader's view that counting asks."""

    def __init__(self) -> None:
        self.reports: dict[str, control_pb2.WorkerReport | None] = {}
        self.functions = {"u": SimpleNamespace(entry=state_pb2.FunctionEntry(shards=64))}

    def workers(self, uid: str) -> list[str]:
        return list(self.reports)

    def report(self, worker: str) -> control_pb2.WorkerReport | None:
        return self.reports[worker]


def report(sessions: int, *, counted: bool = True, shards: int = 32) -> control_pb2.WorkerReport:
    return control_pb2.WorkerReport(
        stored_sessions=sessions, stored_bytes=10 * sessions, hibernated_bytes=sessions, counted=counted, shards=shards
    )


def test_each_worker_is_told_what_the_others_have_and_people_the_sum() -> None:
    view = View()
    counts = Counts(view, lambda: Used(0.5, 2.0, 100))  # type: ignore[arg-type]
    view.reports = {"a": report(3), "b": report(5)}
    limits = counts.heard("u", "a", report(4)).limits
    assert (limits.others_sessions, limits.others_bytes) == (5, 50)
    assert (limits.store_used, limits.store_age, limits.store_quota) == (0.5, 2.0, 100)
    assert counts.figures("u") == Figures(9, 90, 9)


def test_while_shards_move_the_last_complete_count_holds() -> None:
    view = View()
    counts = Counts(view)  # type: ignore[arg-type]
    view.reports = {"a": report(3), "b": report(5)}
    counts.heard("u", "a", report(3))
    for moving in (report(0, counted=False), None):
        view.reports = {"a": report(3), "b": moving}
        limits = counts.heard("u", "a", report(3)).limits
        assert limits.others_sessions == 5
        assert not limits.HasField("store_used")
        assert counts.figures("u") == Figures(8, 80, 8), "what is not complete replaces nothing"


def test_after_a_wake_the_first_that_reports_is_told_what_slept() -> None:
    view = View()
    counts = Counts(view)  # type: ignore[arg-type]
    view.reports = {"a": report(0, shards=0)}
    assert counts.heard("u", "a", report(0, shards=0)).limits.others_unknown, "nobody counted it"
    counts.asleep("u", Figures(78, 780, 78))
    for reports, mine, others in (({"a": None}, report(0, shards=0), 78), ({"a": None, "b": None}, report(39), 39)):
        view.reports = dict(reports)
        limits = counts.heard("u", "a", mine).limits
        assert (limits.others_sessions, limits.others_bytes, limits.others_unknown) == (others, 10 * others, False)
    view.reports["b"] = report(30)
    assert counts.heard("u", "a", report(39)).limits.others_sessions == 30


def test_what_moved_between_two_reports_is_not_counted_twice() -> None:
    view = View()
    counts = Counts(view)  # type: ignore[arg-type]
    view.reports = {"a": report(30), "b": report(40)}
    counts.heard("u", "a", report(30))
    limits = counts.heard("u", "b", report(70, shards=64)).limits  # `a` died, or its report of less is on its way
    assert (limits.others_sessions, limits.others_bytes) == (0, 0)
    assert counts.figures("u") == Figures(70, 700, 70)
    view.reports = {"a": report(0, shards=0), "b": report(70, shards=64)}
    assert counts.heard("u", "b", report(71, shards=64)).limits.others_sessions == 0
    assert counts.figures("u") == Figures(71, 710, 71)


def test_what_is_not_counted_yet_refuses_only_where_it_decides() -> None:
    store = admission.Store()

    def refusal(**found: object) -> object:
        given: dict[str, object] = {"sessions": 1, "bytes": 10, "counted": False, "ceiling": None, **found}
        return admission.refusal(admission.Found(**given), 3, None, store, 0.0)  # type: ignore[arg-type]

    assert refusal(ceiling=2) is None, "the whole function has fewer records than are allowed"
    assert isinstance(refusal(ceiling=3), Unavailable)
    assert isinstance(refusal(), Unavailable)
    assert isinstance(refusal(sessions=3), ResourceExhausted)
    assert refusal(counted=True) is None


def test_sessions_take_a_part_of_the_containers_limit_or_of_the_machines_memory(tmp_path: Path) -> None:
    own = tmp_path / "self"
    own.write_text("0::/pod/container\n")
    group = tmp_path / "pod" / "container"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    assert memorylimit.for_sessions(tmp_path, own, 8 * GIB) == 2 * GIB
    (tmp_path / "pod" / "memory.max").write_text(f"{GIB}\n")
    assert memorylimit.for_sessions(tmp_path, own, 8 * GIB) == GIB // 2
    old = tmp_path / "old"
    old.write_text("5:memory:/pod\n")
    (tmp_path / "memory" / "pod").mkdir(parents=True)
    (tmp_path / "memory" / "pod" / "memory.limit_in_bytes").write_text("1000000\n")
    assert memorylimit.for_sessions(tmp_path, old, 8 * GIB) == 500_000
    assert memorylimit.for_replies(tmp_path, old, 8 * GIB) == limits.REPLY_MEMORY_BYTES == 3 * limits.MESSAGE_BYTES_MAX
    assert memorylimit.for_replies(tmp_path, tmp_path / "none", 8 * GIB) == GIB == limits.REPLY_MEMORY_FRACTION * 8 * GIB
    (tmp_path / "pod" / "memory.max").write_text(f"{4 * GIB}\n")
    assert memorylimit.for_replies(tmp_path, own, 8 * GIB) == GIB // 2


# ------------------------------------------------------------------------------------------------------------------ shares of the store

QUOTA = 1000


class Tenants:
    """Functions of several namespaces, whose sessions were counted."""

    def __init__(self, stored: dict[str, int], *, shared: bool = True) -> None:
        self.now = 0.0
        self.view = View()
        self.view.functions = {
            f"u{n}": SimpleNamespace(entry=state_pb2.FunctionEntry(shards=64), function=SimpleNamespace(namespace=label.partition("/")[0]))
            for n, label in enumerate(stored)
        }
        self.counts = Counts(self.view, lambda: Used(0.5, 0.0, QUOTA), lambda: QUOTA if shared else None, lambda: self.now)  # type: ignore[arg-type]
        for uid, size in zip(self.view.functions, stored.values(), strict=True):
            self.counts.asleep(uid, Figures(1, size, 0))

    def over(self) -> list[bool]:
        found = []
        for uid in self.view.functions:
            self.view.reports = {f"{uid}-w": None}
            found.append(self.counts.heard(uid, f"{uid}-w", control_pb2.WorkerReport()).limits.over_share)
        return found


def test_a_namespace_with_more_than_an_equal_part_is_told_so_and_no_other() -> None:
    assert Tenants({"a/f": 351, "b/f": 0}).over() == [True, False]
    assert Tenants({"a/f": 350, "b/f": 350}).over() == [False, False]
    assert Tenants({"a/f": 200, "a/g": 151, "b/f": 10}).over() == [True, True, False], "all functions of a namespace together"
    assert Tenants({"a/f": 240, "b/f": 0, "c/f": 0}).over() == [True, False, False]
    assert Tenants({"a/f": 700}).over() == [False], "who is alone shares with nobody"
    assert Tenants({"a/f": 700, "b/f": 0}, shared=False).over() == [False, False]


def test_shares_are_summed_once_a_second() -> None:
    """However many workers report."""
    tenants = Tenants({"a/f": 351, "b/f": 0})
    assert tenants.over() == [True, False]
    tenants.counts.asleep("u0", Figures(1, 100, 0))
    assert tenants.over() == [True, False]
    tenants.now = 1.0
    assert tenants.over() == [False, False]


def test_who_has_more_than_his_share_stops_first() -> None:
    store = admission.Store()
    nothing = admission.Found(0, 0, counted=True, ceiling=None)

    def refused(used: float | None, over: bool, at: float = 0.0) -> tuple[bool, bool]:
        """(a new session, a step of one that exists)"""
        store.hear(used, 0.0, over_share=over)
        new, step = admission.refusal(nothing, 3, None, store, at), admission.stop(store, at)
        assert all(each is None or isinstance(each, ResourceExhausted) for each in (new, step))
        return new is not None, step is not None

    shared, stop = limits.STORE_SHARED_FRACTION, limits.STORE_STOP_FRACTION
    assert refused(shared, True) == (False, False), "while there is much room it is anybody's"
    assert refused(shared + 0.01, True) == (True, False)
    assert refused(shared + 0.01, False) == (False, False)
    assert refused(stop + 0.01, True) == (True, True)
    assert refused(stop + 0.01, False) == (True, False), "the others' sessions go on to the last byte"
    assert refused(None, True) == (False, False), "what is not known refuses nobody"
    assert refused(stop + 0.01, True, limits.STORE_FIGURE_SECONDS + 1) == (False, False)
    for text in (admission.refusal(nothing, 3, None, store, 0.0), admission.stop(store, 0.0)):
        assert "this namespace has more than its share" in str(text)
