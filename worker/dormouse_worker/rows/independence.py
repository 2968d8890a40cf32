"""The experiment that shows whether a model's rows are independent of each other: only then rows of several callers run together.

Calls of 1, 2 and 3 rows are run alone, then together in both orders and beside copies of one of them, in each manner of `drawing`; each
caller's part of the joined outputs must be what it got alone, within `limits.BATCHING_TOLERANCES`; then in crowds, beside rows of values
that mean something to models, and over many steps of a session. An experiment can only refute: what it shows is that nothing was found
with inputs that differ in these ways. That is why the graph is looked at beside it (`mixing`, `deciding`).

Three ends: `Shown`, with the axis on which each output has the rows; `Mixed`, with the output and how far it was off; `Unknown`, where no
experiment could be made, or one that shows nothing.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from dormouse_core import limits

from dormouse_worker.rows.comparing import apart, difference, magnitude, rounds, same, wide
from dormouse_worker.rows.drawing import MANNERS, QUIET, Choice, Port, choices, draw, join, others, strange

UNEVEN = 1e-3
"""Where calls differ in magnitude on purpose: the part of the largest one's scale that counts for a smaller one."""
OWN = 100
"""How many tolerances an element may be off by its own measure rather than the largest element's: a score beside pixels, a place."""
STEPS = 64
"""Of a session, over which what is rounded may grow."""
CALLS = (1, 2, 3)
"""Rows of the calls that are compared. Those of sessions have 1 each."""


@dataclass(frozen=True, slots=True)
class Out:
    """An output, in the order of the run's results. `axis`: where the rows are, if that is said; None: it is found out."""

    name: str
    datatype: str
    axis: int | None = None
    state: bool = False

    @property
    def title(self) -> str:
        return f'{"state" if self.state else "output"} "{self.name}"'


@dataclass(frozen=True, slots=True)
class Shown:
    """`axes`: of the outputs, in their order. `difference`: the largest, relative to the largest value of its output; `what`: of which."""

    axes: tuple[int, ...]
    difference: float
    what: str


@dataclass(frozen=True, slots=True)
class Mixed:
    message: str


@dataclass(frozen=True, slots=True)
class Unknown:
    message: str


class Late(Exception):
    """The experiment takes too long, or what the text says."""


Verdict = Shown | Mixed | Unknown
Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]
"""Raises Late once the experiment's time is over, anything else where the model refuses its input."""
Alone = list[tuple[dict[str, np.ndarray], list[np.ndarray]]]


class _Refuted(Exception):
    """Rows depend on each other, or an output does not have them."""


def experiment(run: Run, ports: Sequence[Port], outs: Sequence[Out], most: int, seed: int = 0) -> Verdict:
    """`most`: rows of the largest joined run."""
    return _Experiment(run, ports, outs, most, seed).judge()


class _Experiment:
    def __init__(self, run: Run, ports: Sequence[Port], outs: Sequence[Out], most: int, seed: int) -> None:
        self._run = run
        self._ports = ports
        self._outs = outs
        self._most = most
        self._rng = np.random.default_rng(seed)
        self._calls = (1, 1, 1) if any(port.state for port in ports) else CALLS
        self._axes: list[int | None] = [out.axis for out in outs]
        self._varies = [False] * len(outs)
        self._first: list[np.ndarray | None] = [None] * len(outs)
        self._largest = (0.0, "")
        self._trials = 0
        self._plain: Alone = []
        """The calls of the first manner, and what they got alone."""

    def judge(self) -> Verdict:
        try:
            tried = self._choose()
            if isinstance(tried, Unknown):
                return tried
            for manner in MANNERS:
                self._try(manner, tried)
            for choice in others(self._ports, tried):
                self._try(MANNERS[0], choice)
            if self._plain:
                for rows in self._totals():
                    self._crowd(rows)
                self._beside()
                self._follow(tried)
        except _Refuted as refuted:
            return Mixed(str(refuted) if self._repeats() else "the model answers the same call differently each time")
        except Late as late:
            return Unknown(str(late) or f"the experiment takes longer than {limits.BATCHING_SECONDS:g} s")
        if not self._trials:
            return Unknown("the model refuses random values of more than one row")
        still = next((out for out, varies in zip(self._outs, self._varies, strict=True) if not varies), None)
        if still is not None:
            return Unknown(f"{still.title} was the same in every run of the experiment, which shows nothing")
        return Shown(tuple(axis or 0 for axis in self._axes), *self._largest)

    def _choose(self) -> Choice | Unknown:
        """What the model takes. What it says of the first choice is told if it takes none: the later ones are stranger."""
        said = ""
        for choice in choices(self._ports):
            feeds = [draw(self._ports, rows, 0, MANNERS[0], choice, self._rng) for rows in self._calls]
            if sum(array.nbytes for array in feeds[0].values()) * min(self._most, limits.BATCH_SIZE) > limits.BATCHING_BYTES:
                said = said or f"{min(self._most, limits.BATCH_SIZE)} rows take more than {limits.BATCHING_BYTES} bytes"
                continue
            try:
                for each in feeds:
                    self._run(each)
            except Late:
                raise
            except Exception as error:
                said = said or f"the model refuses random values ({_told(error)})"
            else:
                return choice
        return Unknown(said)

    def _try(self, manner: str, choice: Choice) -> None:
        """One manner: alone, then together. _Refuted: rows are mixed. A manner that the model refuses says nothing."""
        alone: Alone = []
        shared: dict[str, np.ndarray] = {}
        rows = 0
        for count in self._calls:
            feeds = {**draw(self._ports, count, rows, manner, choice, self._rng), **shared}
            shared = {port.name: feeds[port.name] for port in self._ports if port.axis is None}
            rows += count
            try:
                alone.append((feeds, self._run(feeds)))
            except Late:
                raise
            except Exception:
                return
        if manner == MANNERS[0] and not self._plain:
            self._plain = alone
        self._trials += 1
        self._observe(alone)
        even = manner not in ("magnitudes", "peaks")
        scales = [self._scale(out, [outputs[index] for _, outputs in alone]) for index, out in enumerate(self._outs)]
        floors = [scale if even else UNEVEN * scale for scale in scales]
        a, b, c = alone
        for together in ([a, b, c], [c, b, a], [b, a], [a, a, b], [b, c, c]):
            self._compare(together, self._joined(together), floors, even)

    def _totals(self) -> list[int]:
        """Numbers of rows: other kernels run for other ones. The last is as many as will ever run together."""
        size = sum(array.nbytes for array in self._plain[0][0].values())
        most = max(1, min(self._most, limits.BATCHING_BYTES // max(1, size)))
        found, rows = [], 2
        while rows < most:
            found.append(rows)
            rows = 2 * rows + 1
        return [*found, most]

    def _crowd(self, rows: int) -> None:
        """So many rows, one call's the first and the last of them."""
        one, *others = self._plain
        left = rows - 2 * self._rows(one[0])
        if left < 0:
            return
        together: Alone = []
        for call in itertools.cycle([*others, one]):
            if not left:
                break
            if self._rows(call[0]) <= left:
                together.append(call)
                left -= self._rows(call[0])
        self._compare([one, *together, one], self._joined([one, *together, one]), [0.0] * len(self._outs))

    def _beside(self) -> None:
        """Values that mean something to models, in another call's row: whatever they are, calls beside it stay as they were."""
        first, last = self._plain[0][0], self._plain[1][0]
        rows = self._rows(first)
        kept = [*range(rows), *range(2 * rows, 2 * rows + self._rows(last))]
        usual = self._run(join(self._ports, [first, first, last]))
        for neighbour in strange(self._ports, first, self._rng):
            try:
                found = self._run(join(self._ports, [first, neighbour, last]))
            except Late:
                raise
            except Exception as error:
                if self._takes(neighbour):
                    raise _Refuted(f"the model refuses rows together that it takes alone ({_told(error)})") from None
                continue
            for index, out in enumerate(self._outs):
                axis = self._axes[index] or 0
                before, after = usual[index], found[index]
                if before.shape != after.shape or self._off(out, before.take(kept, axis), after.take(kept, axis)):
                    raise _Refuted(f"{out.title} of a call depends on the values of another call's rows")

    def _takes(self, feeds: dict[str, np.ndarray]) -> bool:
        try:
            self._run(feeds)
        except Late:
            raise
        except Exception:
            return False
        return True

    @staticmethod
    def _off(out: Out, a: np.ndarray, b: np.ndarray, scale: np.ndarray | None = None) -> bool:
        return apart(a, b, out.datatype, scale) > OWN * limits.BATCHING_TOLERANCES.get(out.datatype, 0.0)

    def _follow(self, choice: Choice) -> None:
        """What is rounded otherwise in a joined step goes into the next one: over many steps it may grow. Where nothing is, nothing can."""
        states = [port.name for port in self._ports if port.state]
        if not states or not self._largest[0]:
            return
        places = [index for index, out in enumerate(self._outs) if out.state]
        shared = {port.name: self._plain[0][0][port.name] for port in self._ports if port.axis is None}
        alone = [{name: outputs[at] for name, at in zip(states, places, strict=True)} for _, outputs in self._plain]
        joined: dict[str, np.ndarray] | None = None
        for step in range(STEPS):
            feeds = [{**draw(self._ports, 1, step, QUIET, choice, self._rng), **shared, **own} for own in alone]
            try:
                got = [(each, self._run(each)) for each in feeds]
                together = self._run({**join(self._ports, feeds), **(joined or {})})
            except Late:
                raise
            except Exception:
                return  # it takes no more steps of such values
            try:
                self._compare(got, together, [self._scale(out, [o[i] for _, o in got]) for i, out in enumerate(self._outs)])
            except _Refuted as refuted:
                raise _Refuted(f"{refuted} for {step + 2} steps of a session") from None
            alone = [{name: outputs[at] for name, at in zip(states, places, strict=True)} for _, outputs in got]
            joined = {name: together[at] for name, at in zip(states, places, strict=True)}

    def _repeats(self) -> bool:
        """Whether the same call gets the same answer; where nothing can be said, it does."""
        try:
            return not self._plain or all(
                a.shape == b.shape and same(a, b) for a, b in zip(self._plain[0][1], self._run(self._plain[0][0]), strict=True)
            )
        except Exception:
            return True

    def _joined(self, together: Alone) -> list[np.ndarray]:
        try:
            return self._run(join(self._ports, [feeds for feeds, _ in together]))
        except Late:
            raise
        except Exception as error:
            raise _Refuted(f"the model refuses rows together that it takes alone ({_told(error)})") from None

    def _observe(self, alone: Alone) -> None:
        """Whether outputs say anything: one that never changes is independent of everything."""
        for index in range(len(self._outs)):
            for _, outputs in alone:
                array = outputs[index]
                known = self._first[index]
                if known is None:
                    self._first[index] = array
                elif not self._varies[index]:
                    small = [slice(0, min(sizes)) for sizes in zip(array.shape, known.shape, strict=False)]
                    self._varies[index] = array.ndim != known.ndim or not same(array[tuple(small)], known[tuple(small)])
                flat = array.reshape(-1)
                self._varies[index] = self._varies[index] or (flat.size > 1 and not same(flat[1:], flat[:-1]))

    @staticmethod
    def _scale(out: Out, arrays: Sequence[np.ndarray]) -> float:
        """The largest finite magnitude: one number that is near 0 by chance says nothing about what rounding may do to it."""
        return max(magnitude(array, out.datatype) for array in arrays)

    def _compare(self, alone: Alone, joined: Sequence[np.ndarray], floors: Sequence[float], own: bool = False) -> None:
        """Each caller's part of `joined` against what it got alone; the callers' rows lie one behind the other. `own`: each element by its
        own measure too, the largest that it has in any row."""
        counts = [self._rows(feeds) for feeds, _ in alone]
        for index, out in enumerate(self._outs):
            arrays = [outputs[index] for _, outputs in alone]
            axis = self._axis(index, out, arrays, counts, joined[index])
            at = 0
            for array, count in zip(arrays, counts, strict=True):
                part = joined[index].take(range(at, at + count), axis)
                at += count
                if same(array, part):
                    continue
                self._judge(out, array, part, floors[index])
                if own and self._off(out, array, part, self._largest_of_each(out, arrays, axis)):
                    raise _Refuted(f"{out.title} of a call has elements that differ when another call's rows run with it")

    @staticmethod
    def _largest_of_each(out: Out, arrays: Sequence[np.ndarray], axis: int) -> np.ndarray:
        """The largest finite magnitude of each element over all rows."""
        numbers = np.abs(np.concatenate([wide(array, out.datatype) for array in arrays], axis))
        return np.asarray(np.max(np.where(np.isfinite(numbers), numbers, 0), axis, keepdims=True, initial=0))

    def _axis(self, index: int, out: Out, arrays: Sequence[np.ndarray], counts: Sequence[int], joined: np.ndarray) -> int:
        known, total = self._axes[index], sum(counts)
        for axis in range(joined.ndim) if known is None else (known,):
            others = joined.shape[:axis] + joined.shape[axis + 1 :]
            if joined.shape[axis : axis + 1] == (total,) and all(
                array.shape[axis : axis + 1] == (count,) and array.shape[:axis] + array.shape[axis + 1 :] == others
                for array, count in zip(arrays, counts, strict=True)
            ):
                self._axes[index] = axis
                return axis
        where = "" if known is None else f" on axis {known}"
        raise _Refuted(
            f"{out.title} does not have the rows of its call{where}: its shape is {list(arrays[0].shape)} for {_counted(counts[0])} and "
            f"{list(joined.shape)} for {_counted(total)}"
        )

    def _rows(self, feeds: Mapping[str, np.ndarray]) -> int:
        return next(int(feeds[port.name].shape[port.axis]) for port in self._ports if port.axis is not None)

    def _judge(self, out: Out, alone: np.ndarray, part: np.ndarray, floor: float) -> None:
        found = difference(alone, part, out.datatype, floor)
        if found > limits.BATCHING_TOLERANCES.get(out.datatype, 0.0):
            how = "in value"
            if rounds(out.datatype):
                how = f"by {found:.2g} of its largest value" if np.isfinite(found) else "in what is no number"
            raise _Refuted(f"{out.title} of a call differs {how} when another call's rows run with it")
        if found > self._largest[0]:
            self._largest = (found, out.title)


def _told(error: Exception) -> str:
    """The first line of ONNX Runtime's text, from where it speaks of the model."""
    return str(error).splitlines()[0].rpartition("Status Message: ")[2][:160].rstrip(". ")


def _counted(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"
