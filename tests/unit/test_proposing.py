"""What `dormouse init` proposes, and what it leaves to a person."""

from typing import Any

import pytest
from dormouse_core.proposing import Value, propose


def value(text: str) -> Value:
    """`name FP32 batch 4 ?`: a name, a datatype, dimensions."""
    name, datatype, *dims = text.split()
    sizes: list[Any] = [int(size) if size.lstrip("-").isdigit() else None if size == "?" else size for size in dims]
    return Value(name, datatype, tuple(sizes))


def proposed(inputs: str, outputs: str) -> list[tuple[Any, ...]]:
    found = propose([value(line) for line in inputs.split(", ")], [value(line) for line in outputs.split(", ")])
    return [(pair.input.name, pair.output.name, pair.batch_axis, pair.initial) for pair in found.pairs]


def doubts(inputs: str, outputs: str) -> tuple[str, ...]:
    return propose([value(line) for line in inputs.split(", ")], [value(line) for line in outputs.split(", ")]).doubts


@pytest.mark.parametrize(
    ("inputs", "outputs", "pairs"),
    [
        ("input FP32 ? ?, state FP32 2 ? 128, sr INT64", "output FP32 ? 1, stateN FP32 2 ? 128", [("state", "stateN", 1, None)]),
        ("x FP32 b 8, h FP32 1 b 4, c FP32 1 b 4",
         "y FP32 b 8, hn FP32 1 b 4, cn FP32 1 b 4", [("h", "hn", 1, None), ("c", "cn", 1, None)]),
        ("x FP32 b 8, h0 FP32 1 b 4, c0 FP32 1 b 4",
         "y FP32 b 8, hn FP32 1 b 4, cn FP32 1 b 4", [("h0", "hn", 1, None), ("c0", "cn", 1, None)]),
        ("x FP32 x_dynamic_axes_1 x_dynamic_axes_2 4, h0 FP32 2 h0_dynamic_axes_1 8",  # torch's names for axes that were given none
         "y FP32 y_dynamic_axes_1 y_dynamic_axes_2 3, hn FP32 2 hn_dynamic_axes_1 8", [("h0", "hn", 1, None)]),
        ("INPUT INT32 b 1, INPUT_STATE INT32 b 1", "OUTPUT INT32 b 1, OUTPUT_STATE INT32 b 1", [("INPUT_STATE", "OUTPUT_STATE", 0, None)]),
        ("INPUT INT32 1, INPUT_STATE INT32 16", "OUTPUT INT32 1, OUTPUT_STATE INT32 16", [("INPUT_STATE", "OUTPUT_STATE", None, None)]),
        ("x FP32 b 4, x_in FP32 b 2", "y FP32 b 4, x_out FP32 b 2", []),  # both are called x before: which?
        ("u FP32 b 4, x FP32 b 2", "y FP32 b 4, x_out FP32 b 2", [("x", "x_out", 0, None)]),
        (
            "a FP32 b 1, cache_last_channel_len INT64 b, cache_last_channel FP16 b 4 8 2",
            "y FP32 b 1, cache_last_channel_next FP16 b 4 8 2, cache_last_channel_len_next INT64 b",
            [
                ("cache_last_channel_len", "cache_last_channel_len_next", 0, None),
                ("cache_last_channel", "cache_last_channel_next", 0, None),
            ],
        ),
        (
            "input_ids INT64 batch seq, past_key_values.0.key FP32 batch 4 past 64, past_key_values.0.value FP32 batch 4 past 64",
            "logits FP32 batch seq 99, present.0.key FP32 batch 4 total 64, present.0.value FP32 batch 4 total 64",
            [
                ("past_key_values.0.key", "present.0.key", 0, (1, 4, 0, 64)),
                ("past_key_values.0.value", "present.0.value", 0, (1, 4, 0, 64)),
            ],
        ),
        (
            "input_ids INT64 batch_size sequence_length, "
            "attention_mask INT64 batch_size past_sequence_length+sequence_length, "
            "position_ids INT64 batch_size sequence_length, "
            "past_key_values.0.key FP16 batch_size 4 past_sequence_length 64, "
            "past_key_values.0.value FP16 batch_size 4 past_sequence_length 64, "
            "past_key_values.10.key FP16 batch_size 4 past_sequence_length 64, "
            "past_key_values.10.value FP16 batch_size 4 past_sequence_length 64",
            "logits FP32 batch_size sequence_length 99, "
            "present.0.key FP16 batch_size 4 past_sequence_length+sequence_length 64, "
            "present.0.value FP16 batch_size 4 past_sequence_length+sequence_length 64, "
            "present.10.key FP16 batch_size 4 past_sequence_length+sequence_length 64, "
            "present.10.value FP16 batch_size 4 past_sequence_length+sequence_length 64",
            [
                (f"past_key_values.{layer}.{what}", f"present.{layer}.{what}", 0, (1, 4, 0, 64))
                for layer in (0, 10)
                for what in ("key", "value")
            ],
        ),
        ("x FP32 N 80, cached_key_0 FP32 128 N 9, cached_key_1 FP32 64 N 9",
         "y FP32 N 5, new_cached_key_0 FP32 128 N 9, new_cached_key_1 FP32 64 N 9",
         [("cached_key_0", "new_cached_key_0", 1, None), ("cached_key_1", "new_cached_key_1", 1, None)]),
        ("mic FP32 1 160, conv_cache FP32 2 1 16, att_cache FP32 4 t 128",
         "enh FP32 1 160, conv_cache_out FP32 2 1 16, r_att_cache FP32 4 t 128",
         [("conv_cache", "conv_cache_out", None, None), ("att_cache", "r_att_cache", None, (4, 1, 128))]),
        ("input_ids INT64 b n, attention_mask INT64 b n", "output_ids INT64 b n", []),
        ("input FP32 b 4", "output FP32 b 4", []),
        ("image FP32 b 3", "image_out FP32 b 3", []),
    ],
)  # fmt: skip
def test_pairs(inputs: str, outputs: str, pairs: list[tuple[Any, ...]]) -> None:
    assert proposed(inputs, outputs) == pairs


@pytest.mark.parametrize(
    ("inputs", "outputs", "growth"),
    [
        ("x INT64 b n, past.key FP16 b 4 p 64", "y FP32 b n, present.key FP16 b 4 total 64", [512]),
        ("x INT64 b n, past.key FP32 b p 64", "y FP32 b n, present.key FP32 b total 64", [256]),
        ("x INT64 b n, past.key FP32 b 4 64", "y FP32 b n, present.key FP32 b 4 64", [0]),
        ("x INT64 b n, past.key FP32 b p 64", "y FP32 b n, present.key FP32 b p 64", [0]),
        ("x INT64 b n, past.key FP32 b p q", "y FP32 b n, present.key FP32 b r s", [0]),
        ("x INT64 b n, past.key BYTES b p 64", "y FP32 b n, present.key BYTES b total 64", [0]),
    ],
)  # fmt: skip
def test_how_a_state_grows(inputs: str, outputs: str, growth: list[int]) -> None:
    found = propose([value(line) for line in inputs.split(", ")], [value(line) for line in outputs.split(", ")])
    assert [pair.growth for pair in found.pairs] == growth


@pytest.mark.parametrize(
    ("inputs", "outputs", "word"),
    [
        ("x FP32 b 4, state FP32 b 2", "y FP32 b 4, state_out INT64 b 2", "FP32 [-1, 2] in and INT64 [-1, 2] out"),
        ("x FP32 b 4, state FP32 b 2", "y FP32 b 4, state_out FP32 2", "'state' with 'state_out'"),
        ("x FP32 b 4, state FP32 b 2", "y FP32 b 4, state_out FP32 b 3", "'state' with 'state_out'"),
        ("x FP32 b 4, hidden FP32 b 2", "y FP32 b 4, z FP32 b 2", "'hidden' with 'z': the names differ"),
        ("x FP32 s0 4, h FP32 2 s0 8", "y FP32 s0 3, getitem_1 FP32 2 s0 8", "'h' with 'getitem_1': the names differ"),
        ("x FP32 b 4, memory FP32 b 2", "y INT64 b", "'memory' sounds like a state"),
        ("state_in FP32 b 2, prev_state FP32 b 2", "next_state FP32 b 2", "more than one tensor"),
    ],
)
def test_doubts_are_told_and_not_proposed(inputs: str, outputs: str, word: str) -> None:
    assert proposed(inputs, outputs) == []
    assert any(word in doubt for doubt in doubts(inputs, outputs)), doubts(inputs, outputs)


def test_controls() -> None:
    inputs = "INPUT INT32 b 1, START INT32 b 1, END BOOL b, READY FP32 b 1, CORRID UINT64 b 1, STATE INT32 b 1"
    controls = propose([value(line) for line in inputs.split(", ")], [value("OUTPUT INT32 b 1"), value("STATE_OUT INT32 b 1")]).controls
    assert controls is not None
    assert (controls.start, controls.end, controls.ready, controls.correlation_id) == ("START", "END", "READY", "CORRID")
    assert propose([value("start INT64 b 1"), value("end FP32 b 2")], [value("y FP32 b")]).controls is None


@pytest.mark.parametrize(
    ("inputs", "outputs", "why"),
    [
        ("x FP32 b 8, h0 FP32 1 b 4", "y FP32 b 8, hn FP32 1 b 4", 'ending of a next value; axis 1 is the batch: it is called "b"'),
        ("x FP32 b 8, past_h FP32 b 4", "y FP32 b 8, present_h FP32 b 4", "but for the words for before and after; axis 0 is the batch"),
        ("x FP32 ? 8, state FP32 2 ? 4", "y FP32 ? 8, stateN FP32 2 ? 4", "axis 1 is the batch: it is the only one that varies"),
        ("x FP32 ? 8, state FP32 ? ? 4", "y FP32 ? 8, stateN FP32 ? ? 4", "axis 0 is the batch: it is the first one that varies"),
        ("x FP32 1, state FP32 16", "y FP32 1, stateN FP32 16", "no axis is the batch: the call has none"),
        ("x FP32 b 8, state FP32 2 4", "y FP32 b 8, stateN FP32 2 4", "no axis is the batch: none varies and keeps its name"),
    ],
)
def test_each_pair_says_why(inputs: str, outputs: str, why: str) -> None:
    (pair,) = propose([value(line) for line in inputs.split(", ")], [value(line) for line in outputs.split(", ")]).pairs
    assert why in pair.why
