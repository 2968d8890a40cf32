"""Which nodes are lost: by leases, streams and answers, never by what is not known, and never more than half of them."""

from collections.abc import Iterable

import pytest
from dormouse_core.limits import NODE_FORGOTTEN_SECONDS, NODE_SILENT_SECONDS, NODE_UNTAKEN_SECONDS
from dormouse_core.nodeloss import NodeLoss, Sign
from hypothesis import given
from hypothesis import strategies as st

SILENT = Sign("a", answers=False)
OTHERS = [Sign("b", answers=True)]
WORKER = ("uid", "pod")


def after(nodes: NodeLoss, signs: Iterable[Sign], seconds: float, began: float = 0.0) -> frozenset[str]:
    """What is lost when `signs` were seen for so long, twice each second."""
    signs = list(signs)
    for step in range(int(2 * seconds) + 1):
        nodes.look(signs, began + step / 2)
    return nodes.lost


def test_a_node_whose_ready_worker_is_silent_and_has_no_lease_is_lost_after_two_seconds() -> None:
    nodes = NodeLoss("own")
    assert after(nodes, [SILENT, *OTHERS], NODE_SILENT_SECONDS - 0.5) == set()
    assert after(nodes, [SILENT, *OTHERS], 0, NODE_SILENT_SECONDS) == {"a"}


@pytest.mark.parametrize("witness", [Sign("a", answers=True), Sign("a", gateway=True)])
def test_a_node_of_which_anything_answers_or_has_a_gateways_lease_is_not_lost_however_long_a_worker_is_silent(witness: Sign) -> None:
    assert after(NodeLoss("own"), [SILENT, witness, *OTHERS], 100) == set()


def test_a_worker_with_a_lease_is_not_lost_with_its_node_and_spares_no_other() -> None:
    """Whoever has a function's credentials could keep an entry there for ever."""
    nodes, leased = NodeLoss("own"), Sign("a", WORKER, leased=True)
    assert after(nodes, [SILENT, leased, *OTHERS], 100) == {"a"}
    assert not nodes.strands("a", WORKER)
    assert nodes.strands("a", ("uid", "another"))
    assert not nodes.strands("b", ("uid", "another"))


def test_silence_counts_from_its_beginning_so_that_the_end_of_a_lease_needs_no_other_wait() -> None:
    nodes = NodeLoss("own")
    after(nodes, [SILENT, Sign("a", WORKER, leased=True), *OTHERS], 5)
    assert not nodes.strands("a", WORKER)
    after(nodes, [SILENT, Sign("a", WORKER), *OTHERS], 0, 5.5)
    assert nodes.strands("a", WORKER)
    nodes = NodeLoss("own")
    assert after(nodes, [SILENT, Sign("a", gateway=True), *OTHERS], 5) == set()
    assert after(nodes, [SILENT, *OTHERS], 0, 5.5) == {"a"}


def test_one_answer_ends_a_silence_and_another_begins_anew() -> None:
    nodes = NodeLoss("own")
    after(nodes, [SILENT, *OTHERS], 1.5)
    nodes.look([Sign("a", answers=True), *OTHERS], 1.75)
    assert after(nodes, [SILENT, *OTHERS], 1.5, 2.0) == set()


@pytest.mark.parametrize("unknown", [Sign("a"), Sign("", answers=False), Sign("", untaken=True)])
def test_what_is_not_known_loses_nobody(unknown: Sign) -> None:
    assert after(NodeLoss("own"), [unknown, *OTHERS], 100) == set()


def test_a_cluster_that_does_not_answer_loses_nobody_and_what_was_concluded_stays() -> None:
    nodes = NodeLoss("own")
    after(nodes, [SILENT, *OTHERS], 1.5)
    nodes.look(None, 2.0)
    assert after(nodes, [SILENT, *OTHERS], 1.5, 2.5) == set(), "the time in which it was not known does not count"
    assert after(nodes, [SILENT, *OTHERS], 2, 10) == {"a"}
    assert nodes.look(None, 20).lost == {"a"}


def test_a_node_that_takes_no_pod_is_lost_after_five_seconds_and_no_longer_once_it_does() -> None:
    nodes, untaken = NodeLoss("own"), Sign("a", untaken=True)
    assert after(nodes, [untaken, *OTHERS], NODE_UNTAKEN_SECONDS - 0.5) == set()
    assert after(nodes, [untaken, *OTHERS], 0, NODE_UNTAKEN_SECONDS) == {"a"}
    assert nodes.look([Sign("a", answers=True), *OTHERS], 6).lost == set()


def test_a_worker_that_was_not_ready_yet_is_given_longer() -> None:
    nodes, starting = NodeLoss("own"), Sign("a", answers=False, starting=True)
    assert after(nodes, [starting, *OTHERS], NODE_UNTAKEN_SECONDS - 0.5) == set()
    assert after(nodes, [starting, Sign("a", answers=True), *OTHERS], 0, NODE_UNTAKEN_SECONDS) == set()
    assert after(nodes, [starting, *OTHERS], NODE_UNTAKEN_SECONDS, 6) == {"a"}


def test_who_looks_is_no_witness_against_itself() -> None:
    assert after(NodeLoss("a"), [SILENT, *OTHERS], 100) == set()


@pytest.mark.parametrize(("silent", "known", "lost"), [(1, 2, 1), (1, 3, 1), (2, 3, 0), (2, 4, 2), (3, 4, 0), (3, 3, 0)])
def test_over_half_is_the_fault_of_who_looks_and_replaces_nobody(silent: int, known: int, lost: int) -> None:
    """`known`: with its own."""
    nodes = NodeLoss("own")
    signs = [Sign(f"s{i}", answers=False) for i in range(silent)] + [Sign(f"k{i}", answers=True) for i in range(known - silent - 1)]
    assert len(after(nodes, signs, 100)) == lost
    assert len(nodes.verdict.doubted) == (0 if lost else silent)


def test_negative_control_by_silence_alone_who_is_cut_off_would_replace_everybody() -> None:
    nodes = NodeLoss("own")
    signs = [Sign(f"s{i}", answers=False) for i in range(4)]
    after(nodes, signs, 100)
    assert nodes.lost | nodes.verdict.doubted == {"s0", "s1", "s2", "s3"}


def test_who_was_lost_stays_so_when_more_become_suspect_than_can_be_believed() -> None:
    nodes = NodeLoss("own")
    assert after(nodes, [SILENT, Sign("b", answers=True)], 5) == {"a"}
    assert after(nodes, [SILENT, Sign("b", answers=False)], 5, 10) == {"a"}
    assert nodes.verdict.doubted == {"b"}


def test_a_lost_node_is_remembered_until_it_is_heard_or_nothing_is_seen_of_it_for_a_minute() -> None:
    nodes = NodeLoss("own")
    after(nodes, [SILENT, *OTHERS], 5)
    assert nodes.look([Sign("a"), *OTHERS], 500).lost == {"a"}, "a new pod that was bound to it says nothing of it"
    assert nodes.look(OTHERS, 500 + NODE_FORGOTTEN_SECONDS - 1).lost == {"a"}
    assert nodes.look(OTHERS, 500 + NODE_FORGOTTEN_SECONDS).lost == set()
    after(nodes, [SILENT, *OTHERS], 5, 600)
    assert nodes.look([Sign("a", answers=True), *OTHERS], 610).lost == set()


_SIGNS = st.builds(
    Sign,
    st.sampled_from(["", "own", "a", "b", "c", "d"]),
    st.just(WORKER),
    st.booleans(),
    st.sampled_from([None, True, False]),
    st.booleans(),
    st.booleans(),
)
_LOOKS = st.lists(st.tuples(st.none() | st.lists(_SIGNS, max_size=8), st.floats(0.1, 70)), max_size=30)


@given(_LOOKS)
def test_whatever_is_seen_no_node_that_is_heard_is_lost_nor_the_own_nor_more_than_half_at_once(
    looks: list[tuple[list[Sign] | None, float]],
) -> None:
    nodes, now = NodeLoss("own"), 0.0
    for signs, seconds in looks:
        now += seconds
        before = nodes.lost
        lost = nodes.look(signs, now).lost
        heard = {sign.node for sign in signs or () if sign.answers or sign.gateway}
        accused = {sign.node for sign in signs or () if sign.answers is False or sign.untaken}
        assert not lost & (heard | {"own", ""})
        assert lost - before <= accused
        if lost - before:
            assert 2 * len(lost) <= len({sign.node for sign in signs or () if sign.node} | {"own"} | lost)
        if signs is None:
            assert lost == before
