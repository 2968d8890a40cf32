"""Limits of sessions, of their records and of the store: at the limit and beyond."""

from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from dormouse_core import limits, records, steps, storage
from dormouse_core.admission import Found, Store, refusal
from dormouse_core.callkeys import CallKey
from dormouse_core.errors import Code
from dormouse_core.records import Body
from dormouse_core.seams import MemberSeen
from dormouse_core.sessions import arrays
from dormouse_core.sessions.memory import LargeReplies, Shard
from dormouse_core.steps import KEPT_KEYS, KEPT_REPLY_BYTES
from dormouse_core.storage import Compact, Defragment, Disarm, Storage
from dormouse_worker.models.refusals import ModelInvalid
from dormouse_worker.serving.loading import check_size
from dormouse_worker.sessions import StateInfo

EMPTY = Found(0, 0, counted=True, ceiling=None)


@dataclass
class Call:
    key: CallKey
    digest: bytes = b"d" * 16
    session: str = "/i:42"
    start: bool = False
    end: bool = False
    create: bool = True


def test_how_full_the_store_may_be() -> None:
    store = Store()

    def refused(used: float | None, now: float = 0.0) -> bool:
        store.hear(used, now)
        answer = refusal(EMPTY, 10, None, store, now)
        assert answer is None or answer.code == Code.RESOURCE_EXHAUSTED
        return answer is not None

    full, room = limits.STORE_FULL_FRACTION, limits.STORE_ROOM_FRACTION
    assert not refused(full)
    assert refused(full + 0.001)
    assert refused(room), "it does not flap"
    assert not refused(room - 0.001)
    assert refused(full + 0.001)
    age = limits.STORE_FIGURE_SECONDS
    assert refusal(EMPTY, 10, None, store, age) is not None
    assert refusal(EMPTY, 10, None, store, age + 0.1) is None, "a figure of so long ago is not known"
    assert refused(full + 0.001)
    assert not refused(None), "what is not known refuses nobody"


def test_what_a_worker_wrote_itself_since_the_figure_was_taken_counts() -> None:
    store = Store()
    store.wrote(500, 10.0)
    store.wrote(100, 13.0)
    store.hear(0.5, 13.5, age=2.0, quota=1000)
    assert store.used == 0.6, "what was written before is in it"
    store.wrote(100, 13.55)
    assert refusal(EMPTY, 10, None, store, 13.55) is None
    store.wrote(1, 13.56)
    answer = refusal(EMPTY, 10, None, store, 13.6)
    assert answer is not None
    assert answer.message.startswith("new sessions are refused: 70% of the store's quota is in use")
    store.wrote(-100, 13.7)
    assert refusal(EMPTY, 10, None, store, 13.7) is None, "they are gone"
    store.wrote(1000, 13.8)
    store.hear(0.5, 15.0, age=0.0, quota=1000)
    assert refusal(EMPTY, 10, None, store, 15.0) is None, "a figure of now has all of it"
    store.hear(None, 15.0)
    store.wrote(10_000, 15.1)
    assert refusal(EMPTY, 10, None, store, 15.1) is None, "what is not known refuses nobody"


def test_a_figure_older_than_what_is_remembered_counts_too_much_rather_than_too_little() -> None:
    store = Store()
    for second in range(60):
        store.wrote(10, float(second))
    store.hear(0.1, 60.0, age=18.0, quota=1000)
    assert store.used is not None
    assert 0.1 + 0.17 <= store.used <= 0.1 + 0.19


def test_counts_at_their_limit() -> None:
    store = Store()
    assert refusal(Found(9, 0, counted=True, ceiling=None), 10, None, store, 0.0) is None
    assert refusal(Found(4, 0, counted=True, ceiling=None, others_sessions=6), 10, None, store, 0.0) is not None
    assert refusal(Found(0, 99, counted=True, ceiling=None), 10, 100, store, 0.0) is None
    assert refusal(Found(0, 50, counted=True, ceiling=None, others_bytes=50), 10, 100, store, 0.0) is not None


def state(name: str, size: int) -> StateInfo:
    return StateInfo(name, name, name, "UINT8", (size,), None, np.zeros(size, np.uint8))


def test_states_that_can_never_fit_are_refused_when_the_model_is_loaded() -> None:
    """Not at every step, by a function that says Ready."""
    most = limits.RECORD_BYTES - records.size_bound(0, ["s"])
    check_size([state("s", most)])
    with pytest.raises(ModelInvalid, match=f"at most {limits.RECORD_BYTES} are allowed"):
        check_size([state("s", most + 1)])
    with pytest.raises(ModelInvalid, match=rf"a session's record of up to \d+ bytes found \({limits.STATE_BYTES} of states"):
        check_size([state("n" * 248 + f"{n:08d}", limits.STATE_BYTES // 128) for n in range(128)])
    varying = StateInfo("s", "s", "s", "UINT8", (-1,), None, np.zeros(limits.RECORD_BYTES, np.uint8))
    check_size([varying])
    assert most > limits.STATE_BYTES, "what fits at creation, with a byte an element and one state, fits here"


def test_no_record_is_larger_than_its_bound() -> None:
    """As many keys, makers, replies and names as there can be."""
    body: Body | None = None
    for number in range(4 * limits.KEY_MAKERS):
        maker = f"g-{number:020d}"
        key = CallKey((1 << 53) + number, f"c-{number:03d}{'k' * (limits.IDEMPOTENCY_KEY_CHARACTERS - 3)}", maker)
        reply = b"r" * (KEPT_REPLY_BYTES // KEPT_KEYS)
        body = steps.advance(body, None, 0, Call(key), False, reply, 1 << 53, 1 << 53, "v" * 64, b"w" * 80)
    assert body is not None
    known = body.known()
    for number in range(limits.MARKED_KEYS):
        known = steps.marked(known, records.keep((1 << 53) + number, f"c-{number}", b"", None, 1))
    assert len(known.marks) == limits.MARKED_KEYS
    body = msgspec.structs.replace(body, horizons=known)
    assert len(body.kept) == KEPT_KEYS
    assert sum(len(kept.reply or b"") for kept in body.kept) == KEPT_REPLY_BYTES
    states = [state("n" * 256, 100), StateInfo("m", "m", "m", "FP32", (1,) * 16, None, np.zeros((1,) * 16, np.float32))]
    tensors = arrays.encode(states, {"n" * 256: np.ones(100, np.uint8), "m": np.ones((1,) * 16, np.float32)})
    data = records.encode(body, tensors, b"w" * 80)
    assert len(data) <= records.size_bound(104, ["n" * 256, "m"])
    assert records.size_bound(0, []) < limits.RECORD_OVERHEAD_BYTES


def test_large_replies_in_memory() -> None:
    replies, shard = LargeReplies(), Shard(0, "entry", "floor")
    half = bytes(limits.KEPT_REPLY_MEMORY_BYTES // 2)
    replies.add(shard, b"1", half)
    replies.add(shard, b"2", half)
    assert replies.get(b"1") is not None
    replies.add(shard, b"3", b"x")
    assert [replies.get(each) is not None for each in (b"1", b"2", b"3")] == [False, True, True]


@pytest.mark.parametrize(("gib", "seconds"), [(0.1, 1), (2, 10), (1, 5), (8, 10)])
def test_what_etcd_keeps_by_itself(gib: float, seconds: int) -> None:
    assert storage.retention(int(gib * limits.GIB)) == seconds


def test_history_is_dropped_each_time_that_is_stated() -> None:
    machine = Storage(limits.GIB)

    def look(now: float, revision: int) -> object:
        return machine.look(now, [MemberSeen("e", 1, True, revision, 1000, 1000, False)], [], leading=True).action

    for now in range(3):
        action = look(float(now), 10 + now)
        if isinstance(action, Compact):
            machine.compacted(float(now), action.revision)
    at = machine._compacted_at
    assert at is not None
    assert look(at + limits.COMPACT_SECONDS - 0.1, 20) is None
    assert isinstance(look(at + limits.COMPACT_SECONDS, 30), Compact)


def test_below_which_size_nospace_is_taken_back() -> None:
    quota = 100_000
    room = int(limits.ROOM_FRACTION * quota)
    for size, action in ((room, Defragment("e", 1)), (room - 1, Disarm())):
        machine = Storage(quota)

        def look(now: float, size: int = size, machine: Storage = machine) -> object:
            return machine.look(now, [MemberSeen("e", 1, True, 9, size, 1000, True)], [], leading=True).action

        assert look(0.0) == Compact(9)
        machine.compacted(0.1, 9)
        assert look(1.0) == action
