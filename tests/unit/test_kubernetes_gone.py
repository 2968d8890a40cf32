"""What is gone stays gone: an answer that comes after the news of an object's end does not bring it back to life."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from dormouse_operator.kubernetes.api.http import Change, Object
from dormouse_operator.kubernetes.api.kinds import DEPLOYMENTS, Kind
from dormouse_operator.kubernetes.api.known import Objects
from dormouse_operator.kubernetes.api.reflecting import Reflector
from dormouse_operator.kubernetes.objects import names
from dormouse_operator.kubernetes.watching.reconciling import Reconciler
from dormouse_proto import state_pb2
from dormouse_testing.clock import ManualClock
from dormouse_testing.manifests import onnx
from dormouse_testing.memory_api import MemoryApi
from hypothesis import given
from hypothesis import strategies as st

KEY = ("ns", "f")


class Watched(MemoryApi):
    """Its watch brings what is put in `news`."""

    def __init__(self) -> None:
        super().__init__()
        self.news: asyncio.Queue[Change] = asyncio.Queue()

    async def watch(self, kind: Kind, namespace: str = "", *, labels: str = "", version: str) -> AsyncGenerator[Change, None]:
        while True:
            yield await self.news.get()


def found(version: int, uid: str = "u", **metadata: Any) -> Object:
    labels = {names.FUNCTION: "f", names.UID: uid}
    return {"metadata": {"namespace": "ns", "name": "f", "uid": uid, "resourceVersion": str(version), "labels": labels, **metadata}}


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def objects() -> Objects:
    return Objects(ManualClock(), lambda key: None, lambda: None)


# ------------------------------------------------------------------------------------------------------------------ functions


def test_a_late_answer_does_not_bring_back_a_function_that_a_list_lacks() -> None:
    kept = objects()
    kept.listed([found(3)], {"": 5})
    kept.listed([], {"": 9})
    kept.take(found(8))  # the status that was written just before the object was deleted
    assert kept.items == {}
    kept.heard("MODIFIED", found(7))
    assert kept.items == {}


def test_negative_control_a_list_without_a_version_guards_against_nothing() -> None:
    kept = objects()
    kept.listed([], {})
    kept.take(found(8))
    assert KEY in kept.items


def test_a_function_that_is_younger_than_the_list_is_taken() -> None:
    kept = objects()
    kept.listed([], {"": 9})
    kept.heard("ADDED", found(10))
    assert KEY in kept.items


def test_each_namespaces_list_speaks_for_itself() -> None:
    kept = objects()
    kept.listed([], {"ns": 9, "other": 20})
    kept.take(found(15))
    assert KEY in kept.items
    kept.listed([], {"ns": 16, "other": 20})
    kept.take(found(15))
    assert kept.items == {}


def test_an_older_function_of_the_name_does_not_take_the_place_of_the_newer() -> None:
    kept = objects()
    kept.heard("ADDED", found(10, "new"))
    kept.take(found(8, "old"))
    assert kept.items[KEY]["metadata"]["uid"] == "new"


def test_versions_that_are_no_numbers_are_not_compared() -> None:
    kept = objects()
    kept.listed([], {"": 0})
    kept.take(found(0, resourceVersion="abc"))
    assert KEY in kept.items


@given(st.lists(st.sampled_from(["write", "delete", "list", "hear", "answer"]), max_size=30))
def test_in_whatever_order_it_is_heard_nothing_but_the_newest_list_and_later_is_believed(moves: list[str]) -> None:
    """Every write is answered once and heard once, in any order; after a last list the copy is what is there."""
    kept, version, uid, there = objects(), 1, 0, False
    late: list[Object] = []
    for move in moves:
        if move == "write":
            uid += not there
            there, version = True, version + 1
            late += [found(version, f"u{uid}")] * 2
        elif move == "delete" and there:
            there, version = False, version + 1
        elif move == "list":
            kept.listed([found(version, f"u{uid}")] if there else [], {"": version})
        elif move == "hear" and late:
            kept.heard("MODIFIED", late.pop(0))
        elif move == "answer" and late:
            kept.take(late.pop())
    kept.listed([found(version, f"u{uid}")] if there else [], {"": version})
    for each in late:
        kept.take(each)
    assert [item["metadata"]["uid"] for item in kept.items.values()] == ([f"u{uid}"] if there else [])


async def test_a_function_that_is_deleted_while_it_is_registered_is_looked_for_at_once() -> None:
    """Delete while creating: its entry is made after the list that lacks it, and the next list would come half a minute later."""
    doubts: list[bool] = []
    clock = ManualClock()
    kept = Objects(clock, lambda key: None, lambda: doubts.append(True))
    made = {**onnx(), **found(3)}

    class Slow:
        async def keep(self, *_: Any) -> tuple[state_pb2.FunctionEntry, int]:
            kept.listed([], {"": 4})
            return state_pb2.FunctionEntry(), 7

        async def wait_for(self, revision: int) -> bool:
            return revision == 7

    registry: Any = Slow()
    none: Any = None
    reconciler = Reconciler(
        clock, kept, registry, registry, none, none, none,
        entry=lambda uid: None, status=lambda uid: None, waiting=lambda uid: "", turn=lambda uid: "", began=lambda uid: None,
        serves=lambda namespace: True,
    )  # fmt: skip
    kept.take(made)
    await reconciler._round(KEY)
    assert doubts == [True]


# ------------------------------------------------------------------------------------------------------------------ what they consist of


@pytest.mark.parametrize("bookmark", [False, True])
async def test_a_late_answer_does_not_bring_back_a_deployment_whose_end_was_heard(bookmark: bool) -> None:
    """One that was scaled while it was deleted: it would be counted as a worker that is on its way for as long as the watch stands."""
    api = Watched()
    api.objects[(DEPLOYMENTS.plural, *KEY)] = found(3)
    copy = Reflector(api, ManualClock(), DEPLOYMENTS)
    running = asyncio.create_task(copy.run())
    try:
        await settled()
        api.news.put_nowait(Change("MODIFIED", found(8)))
        api.news.put_nowait(Change("DELETED", found(9)))
        if bookmark:
            api.news.put_nowait(Change("BOOKMARK", {"metadata": {"resourceVersion": "12"}}))
        await settled()
        copy.take("MODIFIED", found(8))
        assert copy.items == {}
        copy.take("MODIFIED", found(13, "next"))
        assert KEY in copy.items, "the answer to a creation comes before the watch tells of it"
        api.news.put_nowait(Change("DELETED", found(11)))
        api.news.put_nowait(Change("ADDED", found(13, "next")))
        await settled()
        assert copy.items[KEY]["metadata"]["uid"] == "next"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_late_answer_does_not_bring_back_what_a_list_lacks() -> None:
    api = Watched()
    for _ in range(9):
        api.put(DEPLOYMENTS, {"metadata": {"namespace": "ns", "name": "other", "uid": "o"}})
    copy = Reflector(api, ManualClock(), DEPLOYMENTS)
    running = asyncio.create_task(copy.run())
    try:
        await settled()
        copy.take("MODIFIED", found(8))
        assert list(copy.items) == [("ns", "other")]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
