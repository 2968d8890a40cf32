"""What is known of a form: of calls that may run together, because they have the same sizes and share the same values.

The experiment at a model's loading (`independence`) cannot try every size that callers send, and a model may go another way for some: an If
on a length. So the first two calls of a form that wait at the same time run alone, are answered, and then run together once more, unseen.
Only where that gives the same are calls of the form joined; where it does not, they run alone, and the leader is told: it keeps the form
with the revision's proof, and no worker that hears of it joins its calls (`dormouse_core.separate`).

A form also knows how large a row of it is and how long it takes, so that a joined run stays small and short.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dormouse_core import limits, separate
from dormouse_kit import log
from dormouse_proto import state_pb2

from dormouse_worker.batches.work import Work
from dormouse_worker.models.signatures import Signature, shape_text
from dormouse_worker.rows.comparing import difference, magnitude

MOST = 4096
"""Forms that are remembered; the one that was used least lately is tried again."""
KEY_BYTES = 12
SHARED_BYTES = 64
"""Of a value that rows share: a longer one is no switch, and does not make a form of its own."""


@dataclass(slots=True)
class Form:
    """`joins`: whether its calls run together; None: it was not tried yet. `seconds`: that a row takes in a joined run; 0: not known.
    `size`: bytes of a row's inputs and states; 0: not known. `key`: a digest of what its calls have in common, the same in every worker."""

    key: bytes
    joins: bool | None = None
    seconds: float = 0.0
    size: int = 0

    def rows(self, most: int, work: Work, seconds: float) -> int:
        """How many rows may run together: `most` and what fits into memory and `seconds`. `work`: one of its calls."""
        if not self.size:
            arrays = (*work.request.inputs.values(), *work.states.values())
            self.size = max(1, sum(array.nbytes for array in arrays) // work.request.rows)
        most = min(most, limits.BATCHING_BYTES // self.size)
        return min(most, int(seconds / self.seconds)) if self.seconds else most

    def ran(self, rows: int, seconds: float) -> None:
        each = seconds / rows
        self.seconds = 0.8 * self.seconds + 0.2 * each if self.seconds else each

    def stopped(self, rows: int, seconds: float) -> None:
        """A joined run took too long: this is the least that a row takes."""
        self.seconds = max(self.seconds, seconds / rows)


class Forms:
    def __init__(self, known: Iterable[state_pb2.Batching.Form] = ()) -> None:
        """`known`: those whose calls run alone."""
        self.alone = {form.key: form.why for form in known}
        """Key -> why: sizes and what differs, half a sentence. What this worker found itself is in it up to `FORMS_KEPT`."""
        self.on_found: Callable[[], None] = lambda: None
        """Called when `alone` has grown by what this worker found."""
        # Calls without a size that varies are what the experiment has tried.
        self._forms: OrderedDict[tuple[Any, ...], Form] = OrderedDict()
        self._forms[()] = self._new((), True)

    def of(self, group: tuple[Any, ...]) -> Form:
        """`group`: of the stacker."""
        if not group:
            return self._forms[()]
        key = _short(group)
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._new(key, None)
            if len(self._forms) > MOST:
                self._forms.move_to_end(())
                self._forms.popitem(last=False)
        else:
            self._forms.move_to_end(key)
        return form

    def _new(self, key: tuple[Any, ...], joins: bool | None) -> Form:
        digest = hashlib.blake2b(repr(key).encode(), digest_size=KEY_BYTES).digest()
        return Form(digest, joins=False if digest in self.alone else joins)

    def separate(self, form: Form, work: Work, wrong: str) -> None:
        """Calls of `form` run alone from now on. `work`: one of them; `wrong`: what is found, half a sentence."""
        form.joins = False
        why = f"{_sizes(work)}: {wrong}"
        log.warning(separate.sentence(why))
        if form.key not in self.alone and len(self.alone) < limits.FORMS_KEPT:
            self.alone[form.key] = why
            self.on_found()

    def learn(self, known: Iterable[state_pb2.Batching.Form]) -> bool:
        """What other workers found. Whether any of it is new."""
        news = {form.key: form.why for form in known if form.key not in self.alone}
        self.alone.update(news)
        for form in self._forms.values():
            if form.key in news:
                form.joins = False
        return bool(news)


def _sizes(work: Work) -> str:
    return ", ".join(f"{name} {shape_text(array.shape)}" for name, array in (work.request.inputs | work.states).items())


def _short(group: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        _short(part) if isinstance(part, tuple) else b"" if isinstance(part, bytes) and len(part) > SHARED_BYTES else part for part in group
    )


@dataclass(slots=True)
class Trial:
    """Two calls of a form: what each got alone, and then the comparison."""

    form: Form
    works: Sequence[Work]
    outputs: list[Sequence[np.ndarray]] = field(default_factory=list)

    def judge(self, signature: Signature, joined: Sequence[np.ndarray]) -> str | None:
        """Whether the joined outputs are what the calls got alone; None: they are, else what is not."""
        places = [(t.name, t.datatype, t.axis or 0) for t in signature.outputs]
        places += [(s.output, s.datatype, s.batch_axis or 0) for s in signature.states]
        total = sum(work.request.rows for work in self.works)
        for index, (name, datatype, axis) in enumerate(places):
            alone = [outputs[index] for outputs in self.outputs]
            if joined[index].shape[axis : axis + 1] != (total,):
                return f'the output "{name}" has the shape {list(joined[index].shape)} for {total} rows'
            floor = max(magnitude(array, datatype) for array in alone)
            at = 0
            for array, work in zip(alone, self.works, strict=True):
                part = joined[index].take(range(at, at + work.request.rows), axis)
                at += work.request.rows
                off = difference(array, part, datatype, floor) if array.shape == part.shape else math.inf
                if off > limits.BATCHING_TOLERANCES.get(datatype, 0.0):
                    return f'the output "{name}" of a call differs when another call\'s rows run with it'
        return None
