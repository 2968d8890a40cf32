"""What a handler class declares, what it may return, and what its context offers."""

from typing import Any, cast

import numpy as np
import pytest
from dormouse_core import callkeys
from dormouse_core.errors import Code, FailedPrecondition, Internal
from dormouse_core.handlers import Context, Handler, State, Tensor, declaration_of

A, B = Tensor("a", "FP32", [-1]), Tensor("b", "INT64", [2])


class Good(Handler):
    inputs = (A, Tensor("hint", "BYTES", [1], optional=True))
    outputs = (B,)
    states = (
        State("taste", "FP32", [4]),
        State("past", "INT64", [-1], initial_shape=[0]),
        State("seed", "INT8", [2], initial=np.array([1, 2], "i1")),
    )

    def step(self, inputs: Any, state: Any, ctx: Context) -> Any:
        return {"b": [1, 2]}


def made(**declared: Any) -> type[Handler]:
    return type("Made", (Handler,), {"outputs": [B], "step": Good.step, **declared})


def test_a_good_handler_is_accepted() -> None:
    declared = declaration_of(Good, stateful=True)
    assert [state.name for state in declared.states] == ["taste", "past", "seed"]
    assert not declared.is_async
    assert [state.first().tolist() for state in declared.states] == [[0, 0, 0, 0], [], [1, 2]]


def test_a_first_value_is_nobody_elses() -> None:
    state = Good.states[2]
    state.first()[0] = 7
    assert state.first().tolist() == [1, 2]


def test_an_async_step_is_known() -> None:
    async def step(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        return {}

    assert declaration_of(made(step=step), stateful=False).is_async


def test_a_step_that_yields_streams() -> None:
    def step(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        yield {}

    async def later(self: Any, inputs: Any, state: Any, ctx: Context) -> Any:
        yield {}

    found = [declaration_of(made(step=each), stateful=False) for each in (step, later)]
    assert [(each.decoupled, each.is_async) for each in found] == [(True, False), (True, True)]
    assert not declaration_of(Good, stateful=True).decoupled
    with pytest.raises(Internal, match="step yielded int"):
        found[0].check_outputs(3)


TYPES = "BOOL, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FP16, BF16, FP32, FP64, BYTES"
BIG = State("s", "INT8", [1_015_809])

WRONG: list[tuple[dict[str, Any], bool, str]] = [
    ({"outputs": []}, False, "outputs: none found, at least one is required"),
    ({"outputs": B}, False, "outputs: Tensor found, a list of Tensor is required"),
    ({"outputs": [B, "c"]}, False, "outputs[1]: str found, Tensor is required"),
    ({"inputs": [A, A]}, False, 'inputs[1]: the name "a" found again, each is allowed once'),
    ({"inputs": [Tensor("", "FP32", [1])]}, False, "inputs[0]: the name '' found, a text of at least one character is required"),
    ({"inputs": [Tensor("x", "FLOAT", [1])]}, False, f"inputs[0] \"x\": datatype 'FLOAT' found, one of {TYPES} is allowed"),
    ({"inputs": [Tensor("x", "FP32", [-2])]}, False, 'inputs[0] "x": shape [-2] found, a list of sizes is allowed (-1: any size)'),
    ({"inputs": [Tensor("x", "FP32", cast(Any, 3))]}, False, 'inputs[0] "x": shape 3 found, a list of sizes is allowed (-1: any size)'),
    ({"states": [B]}, True, "states[0]: Tensor found, State is required"),
    ({}, True, "states: none found, at least one is required in a function with `sessions`"),
    (
        {"states": [State("s", "FP32", [1])]},
        False,
        "states: 1 found, none is allowed in a function without `sessions` (write `sessions: {}` for a stateful one)",
    ),
    (
        {"states": [State("s", "FP32", [-1])]},
        True,
        'states "s": shape [-1] found, initial or initial_shape is required where a dimension varies',
    ),
    (
        {"states": [State("s", "FP32", [1], when_missing="zeros")]},
        True,
        'states "s": when_missing \'zeros\' found, "initial" is allowed',
    ),
    (
        {"states": [State("s", "FP32", [-1], initial_shape=[-1])]},
        True,
        'states "s": initial_shape [-1] found, a list of sizes of 0 and more is allowed',
    ),
    (
        {"states": [State("s", "FP32", [1], initial=np.zeros(1, "f4"), initial_shape=[1])]},
        True,
        'states "s": both initial and initial_shape found, one is allowed',
    ),
    (
        {"states": [State("s", "FP32", [2], initial=np.zeros(2))]},
        True,
        'states "s": initial value: tensor "s": NumPy\'s float64 found, float32 is required for FP32',
    ),
    (
        {"states": [State("s", "FP32", [2], initial_shape=[3])]},
        True,
        'states "s": initial value: tensor "s": shape [3] found, [2] is required',
    ),
    ({"states": [BIG]}, True, "states: a session of 1015809 bytes found, at most 1015808 are allowed"),
    ({"step": Handler.step}, False, "step: not found, it is required"),
    (
        {"step": lambda self, inputs, ctx: {}},
        False,
        "step: step(self, inputs, ctx) found, step(self, inputs, state, ctx) is required, without sessions too",
    ),
    (
        {"step": staticmethod(lambda self, inputs, state, ctx: {})},
        False,
        "step: step(self, inputs, state, ctx) found, step(self, inputs, state, ctx) is required, without sessions too",
    ),
]


@pytest.mark.parametrize(("declared", "stateful", "message"), WRONG, ids=[message[:50] for *_, message in WRONG])
def test_a_wrong_declaration_is_told(declared: dict[str, Any], stateful: bool, message: str) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        declaration_of(made(**declared), stateful=stateful)
    first, *others = refused.value.message.splitlines()
    assert first.removeprefix(f"handler {__name__}:Made: ") == message or message in " ".join(others)
    assert refused.value.code == Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    "step",
    [
        lambda self, inputs, state, ctx, more=1: {},
        lambda *given: {},
        staticmethod(lambda inputs, state, ctx: {}),
        np.frompyfunc(lambda a, b, c: {}, 3, 1),
    ],
    ids=["more", "any", "static", "compiled"],
)
def test_a_step_that_can_be_called_is_taken_however_it_is_written(step: Any) -> None:
    assert declaration_of(made(step=step), stateful=False).outputs == (B,)


@pytest.mark.parametrize("handler", [dict, Good(), "Good", None])
def test_what_is_no_handler_is_told(handler: Any) -> None:
    with pytest.raises(FailedPrecondition, match=r"handler: .* found, a class derived from dormouse\.Handler is required"):
        declaration_of(handler, stateful=False)


RETURNED: list[tuple[Any, str]] = [
    (None, "step returned NoneType, a dict of outputs by name is required"),
    ({}, "step returned the outputs none, b are declared"),
    ({"b": [1, 2], "c": 1}, "step returned the outputs b, c, b are declared"),
    ({"b": [1]}, 'tensor "b": shape [1] found, [2] is required'),
]


@pytest.mark.parametrize(("returned", "message"), RETURNED, ids=[message for _, message in RETURNED])
def test_wrong_outputs_are_told(returned: Any, message: str) -> None:
    with pytest.raises(Internal) as wrong:
        declaration_of(Good, stateful=True).check_outputs(returned)
    assert wrong.value.message == message


def test_right_outputs_and_states_are_arrays() -> None:
    declared = declaration_of(Good, stateful=True)
    assert declared.check_outputs({"b": [1, 2]})["b"].dtype == np.int64
    state = {"taste": [0.5] * 4, "past": np.arange(3), "seed": np.array([1, 2], "i1")}
    assert declared.check_states(state)["taste"].dtype == np.float32
    with pytest.raises(Internal, match="step left the states taste, past, taste, past, seed are declared"):
        declared.check_states({"taste": [0.5] * 4, "past": np.arange(3)})


def test_a_childs_key_follows_from_its_parents() -> None:
    ctx = Context(function="a/b", revision="r", key="1700000000000000-c-order/7")
    again = Context(function="a/b", revision="other", key="1700000000000000-c-order/7", step=9)
    keys = [ctx.child_key(number) for number in range(3)]
    assert keys == [again.child_key(number) for number in range(3)]
    assert len(set(keys)) == 3
    assert [int(key.partition("-")[0]) for key in keys] == [1700000000000000, 1700000000000001, 1700000000000002]
    assert Context(function="a/c", revision="r", key=ctx.key).child_key(0) != keys[0]
    assert Context(function="a/b", revision="r", session="s", key=ctx.key).child_key(0) != keys[0]
    with pytest.raises(Internal, match="outside of a step"):
        Context(function="a/b", revision="r").child_key(0)


def test_a_childs_key_follows_from_an_opaque_parents_whenever_that_came() -> None:
    """A caller sends a step again under the same key without a timestamp, an hour later and through another gateway."""
    now = 1_700_000_000_000_000
    calls = (f"{now}-g-aa-1", f"{now + 9}-g-aa-2", f"{now + 3_600_000_000}-g-bb-1")
    keys = [str(callkeys.parse(call, "order/7", now + 3_600_000_000, callkeys.LocalKeys("n"))) for call in calls]
    children = {Context(function="a/b", revision="r", session="s", key=key).child_key(0) for key in keys}
    assert len(children) == 1
    assert callkeys.split(children.pop()) is None, "recognised while it is kept, and never taken for old"
    others = {Context(function="a/b", revision="r", session=session, key="c-1").child_key(0) for session in ("s", "t")}
    assert len(others) == 2, "a key names one call of one session"


def test_negative_control_by_the_time_of_arrival_the_children_would_differ() -> None:
    now = 1_700_000_000_000_000
    arrived = [f"{now + n}-c-order/7" for n in range(3)]
    assert len({Context(function="a/b", revision="r", session="s", key=key).child_key(0) for key in arrived}) == 3


def test_a_context_tells_whether_somebody_waits() -> None:
    ctx = Context(function="a/b", revision="r", deadline=0.0, is_cancelled=lambda: True)
    assert ctx.cancelled()
    assert ctx.remaining() == 0
    assert not Context(function="a/b", revision="r").cancelled()
    assert Context(function="a/b", revision="r").remaining() == float("inf")
