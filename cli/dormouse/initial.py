"""`dormouse init model.onnx`: a manifest for a model, to be read and corrected by a person.

The proposal is `dormouse_core.proposing`'s; the manifest is read back by the code that a worker uses before it is written, so that what is
written loads.
"""

import json
import re
from argparse import Namespace
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dormouse_core import spec as specs
from dormouse_core.errors import FailedPrecondition, InvalidArgument
from dormouse_core.limits import FUNCTION_NAME_CHARACTERS, STATE_BYTES
from dormouse_core.plain import plain
from dormouse_core.proposing import Pair, Proposal, Value, propose
from dormouse_core.tensors import from_onnx


def init(options: Namespace) -> None:
    model = Path(options.model)
    if model.is_dir() or not model.exists():
        raise InvalidArgument(f"{model}: {'a folder' if model.is_dir() else 'no such file'}, an ONNX model is expected")
    name = options.name or _name(model)
    target = Path(options.output) if options.output else Path(f"{name}.yaml")
    folder = Path.cwd() if options.output == "-" else target.parent.resolve()
    if not model.resolve().is_relative_to(folder):
        raise InvalidArgument(f"{model}: not under {folder}, where the manifest would be: file:// reaches only what is in that folder")
    text = manifest(name, model, f"file://{model.resolve().relative_to(folder).as_posix()}")
    if options.output == "-":
        print(text, end="")
        return
    if target.exists() and not options.force:
        raise InvalidArgument(f"{target}: exists already; --force writes over it, --output - prints the manifest")
    target.write_text(text)
    print(plain(f"{target} written; read it, then: dormouse up {folder}"))


def manifest(name: str, model: Path, uri: str) -> str:
    """InvalidArgument: the name or the model is none. FailedPrecondition: the model cannot run here."""
    inputs, outputs = read(model)
    proposal = propose(inputs, outputs)
    sessions = specs.parse_manifest(render(name, uri, proposal, [])).spec.sessions
    text = render(name, uri, proposal, _batching(model, sessions))
    specs.parse_manifest(text)
    return text


def _batching(model: Path, sessions: specs.SessionsSpec | None) -> list[str]:
    """What the worker's own experiment says of calls that run together, as lines of the spec. ModelInvalid: the model cannot be served."""
    from dormouse_worker.runtimes.onnx import OnnxRuntime

    states = sessions.states if sessions else ()
    runtime = OnnxRuntime(model, states, 1, sessions.controls if sessions else None)
    runtime.batch(specs.Batching(), states)
    signature = runtime.signature
    found = signature.batching
    assert found is not None
    lines = [f"  # {plain(found.message)}"]
    if found.rows and any(found.axes.values()):
        lines.append(f"  batching: {{axes: {_flow(dict(sorted(found.axes.items())))}}}  # where the rows lie")
    elif found.reason == "Dependent":
        lines.append("  batching: {axes: {}}  # no axis to join calls along")
    elif found.reason == "NotShown":
        lines.append("  # If rows are independent of each other, say so with batching: {maxBatchSize: 32}")
    return lines


def render(name: str, uri: str, proposal: Proposal, batching: Sequence[str]) -> str:
    """`batching`: lines of the spec about calls that run together."""
    lines = [
        "apiVersion: dormouse.dev/v1alpha1",
        "kind: InferenceFunction",
        f"metadata: {{name: {name}}}",
        "spec:",
        "  runtime: onnx",
        f"  model: {{uri: {json.dumps(uri)}}}",
    ]
    if proposal.pairs:
        lines += ["  sessions:", "    states:  # proposed by their names: check that each output is the next value of its input"]
        for why, alike in groupby(proposal.pairs, lambda pair: pair.why):
            pairs = list(alike)
            more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
            lines.append(f"      # {plain(pairs[0].input.name)}{more}: {plain(why)}")
            lines += [f"      - {_state(pair)}" for pair in pairs]
        if growth := sum(pair.growth for pair in proposal.pairs):
            lines += [
                f"    # What begins with a size of 0 grows, by {growth} bytes with each place: with {STATE_BYTES // growth}",
                f"    # a session is full ({STATE_BYTES} bytes), and its steps are refused (RESOURCE_EXHAUSTED).",
                "    # A handler can keep the last places alone.",
            ]
        controls = proposal.controls
        if controls is not None:
            named = {
                "start": controls.start,
                "end": controls.end,
                "ready": controls.ready,
                "correlationId": controls.correlation_id,
            }
            lines.append(f"    controls: {_flow({key: value for key, value in named.items() if value is not None})}")
    elif not proposal.doubts and proposal.controls is None:
        lines.append("  # No sessions: no output is the next value of an input, going by names, datatypes and shapes.")
    elif proposal.controls is not None:
        lines.append("  # The model has inputs that are named like Triton's sequence controls, but no state was found to keep.")
    lines += batching
    if proposal.doubts:
        lines.append("  # Not proposed, because it is not certain; add to sessions.states what is a state:")
        lines += [f"  #   {plain(doubt)}" for doubt in proposal.doubts]
    return "\n".join(lines) + "\n"


def _state(pair: Pair) -> str:
    fields: dict[str, Any] = {"input": pair.input.name, "output": pair.output.name, "shape": list(pair.input.shape)}
    if pair.batch_axis is not None:
        fields["batchAxis"] = pair.batch_axis
    fields["initial"] = "zeros" if pair.initial is None else {"shape": list(pair.initial)}
    comment = "" if pair.initial is None else "  # the dimensions that vary begin so: check"
    return _flow(fields) + comment


def _flow(value: Any) -> str:
    """YAML in one line; JSON's quotes only where a name needs them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", value) and value.lower() not in _WORDS
    return value if plain else json.dumps(value)


_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def _name(model: Path) -> str:
    """A function's name from the file's, or the folder's where the file is called model.onnx."""
    stem = model.resolve().parent.name if model.stem == "model" else model.stem
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:FUNCTION_NAME_CHARACTERS].strip("-")
    if not name:
        raise InvalidArgument(f"{model}: no function name can be made from this file's name; give one with --name")
    return name


def read(model: Path) -> tuple[list[Value], list[Value]]:
    """Inputs and outputs, as the model declares them. FailedPrecondition: it does not load."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common root but this
        raise FailedPrecondition(f"{model} does not load: {error} (ONNX Runtime {onnxruntime.__version__})") from None
    return _values(session.get_inputs()), _values(session.get_outputs())


def _values(values: Any) -> list[Value]:
    """An input of another kind (optional, a sequence) is no state; whether it can be served is told when a runtime reads the manifest."""
    return [Value(value.name, from_onnx(value.type) or value.type, tuple(value.shape)) for value in values]
