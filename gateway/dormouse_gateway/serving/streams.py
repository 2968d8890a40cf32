"""One `ModelStreamInfer` as a state machine: messages in, steps to send, responses out. Pure: no clock, no transport.

A caller may put many sequences of many functions on one stream and wait for none of its replies. What it is promised
(rules *one-at-a-time*, *call-key* and *failed-step*):

- steps of one session run one at a time, in the order of their messages; different sessions run together;
- replies of one session leave in that order, and so do those of a stateless function's calls, which run together;
  across sessions they leave as they come, and carry the request's id;
- each message is a call under a key of its own, `{µs of arrival, strictly rising}-{stream}-{i}`, however often sent; or under its caller's:
  the message's parameter `dormouse_idempotency_key`, else the stream's key with the message's number;
- a step that fails fails the later steps of its session that had come before its error was written: they were meant
  for a state that there is not. A `sequence_start` among them begins anew.

So that a caller who does not read costs no more memory than one who does, a message counts as unanswered until its
last response is written, and nothing is read beyond `STREAM_MESSAGES` unanswered messages or `STREAM_BYTES` of them.
"""

import contextlib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from dormouse_core import callkeys, headernames, limits, streamed
from dormouse_core.errors import Aborted, DormouseError, InvalidArgument, Unavailable
from dormouse_core.seams import Reply

from dormouse_gateway import naming

MAX_PARTS = 64  # parts of replies that wait to be written, or limits.STREAM_BYTES; then the workers' streams are not read
FIRST_DIGITS = 9  # of `dormouse-first-message`


@dataclass(slots=True, eq=False)
class Step:
    """One message of the stream, from its arrival to its last response."""

    id: str
    model: str
    version: str
    size: int
    start: bool
    acknowledge: bool
    """The caller wants an empty last response behind a reply in parts."""
    named: naming.Named
    metadata: dict[str, str]
    timestamp: int
    message: bytes = b""
    refusal: DormouseError | None = None
    """Known before it is sent."""
    reply: Reply | None = None
    parted: bool = False


@dataclass(slots=True)
class Line:
    """The steps of one session, or of one stateless function, that are not answered yet, the oldest first."""

    steps: deque[Step] = field(default_factory=deque)
    flying: Step | None = None
    failed: Step | None = None
    """Its error is on its way to the caller: later steps fail with it."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Out:
    """A response to write. `step` None: to a message that could not be read."""

    response: bytes
    step: Step | None
    last: bool
    error: Reply | None = None


class Stream:
    def __init__(self, metadata: Mapping[str, str], ident: str, default_namespace: str) -> None:
        """`ident`: the id part of the messages' keys without the message's number; new for every stream."""
        own = (headernames.CALL, headernames.IDEMPOTENCY_KEY, headernames.FIRST_MESSAGE)
        self._metadata = {key: value for key, value in metadata.items() if key not in own}
        self._ident = ident
        self._idempotency = metadata.get(headernames.IDEMPOTENCY_KEY, "")
        self._default_namespace = default_namespace
        self._first = int(metadata.get(headernames.FIRST_MESSAGE, "0"))
        self._count = 0
        self._newest_us = 0
        self._lines: dict[tuple[str, str], Line] = {}
        self._ready: list[Step] = []
        self._out: deque[Out] = deque()
        self._parts = 0  # bytes of parts among them
        self.unanswered = 0
        self.bytes = 0
        """Of the unanswered messages."""

    # ----------------------------------------------------------------------------------------------------------------- messages

    def receive(self, message: bytes, now_us: int, refusal: DormouseError | None = None, *, verified: bool = True) -> Step | None:
        """A message came at wall time `now_us`, by a clock that is known to be good where `verified`. `refusal`: it is to be answered so,
        in its turn, as one whose key is no key is. None: it was unreadable, which is its answer.
        """
        number = self._count
        self._count += 1
        self._newest_us = max(now_us, self._newest_us + 1)
        self.unanswered += 1
        ident = model = version = ""
        try:
            request = naming.parse(message)
            ident, model, version = request.id, request.model_name, request.model_version
            named = naming.infer(self._metadata, request, self._default_namespace)
        except DormouseError as error:
            response = streamed.error(error.message, error.code, ident, model, version)
            self._out.append(Out(response, None, True, Reply(error.code, b"", error.message)))
            return None
        metadata, timestamp = self._metadata, now_us
        try:
            metadata = {**self._metadata, **self._keys(number, callkeys.named("", request.parameters))}
            timestamp = naming.timestamp(metadata, request, now_us, verified)
        except DormouseError as error:
            refusal = refusal or error  # its session is known: the steps behind it are meant for a state that there will not be
        step = Step(
            ident,
            model,
            version,
            len(message),
            naming.flag(request, "sequence_start"),
            naming.flag(request, streamed.EMPTY_FINAL),
            named,
            metadata,
            timestamp,
            message if refusal is None else b"",
            refusal,
        )
        self.bytes += step.size
        line = self._lines.setdefault(_key(step), Line())
        line.steps.append(step)
        if not named.session:
            self._begin(line, step)
        elif line.flying is None:
            self._next(line)
        return step

    def _keys(self, number: int, own: str) -> dict[str, str]:
        """`own`: the key that the message itself brings, if any."""
        keys = {headernames.CALL: f"{self._newest_us:016d}-{self._ident}-{number}"}
        if own:
            keys[headernames.IDEMPOTENCY_KEY] = own
        elif self._idempotency:
            keys[headernames.IDEMPOTENCY_KEY] = numbered(self._idempotency, self._first + number)
        return keys

    def begin(self) -> list[Step]:
        """Steps whose turn has come since the last time: each is to be sent, and then `done`."""
        ready, self._ready = self._ready, []
        return ready

    # ------------------------------------------------------------------------------------------------------------------ answers

    def part(self, step: Step, response: bytes) -> None:
        """One of the responses to `step`, not the last: provisional (rule *streamed-parts*)."""
        step.parted = True
        self._out.append(Out(response, step, False))
        self._parts += len(response)

    def done(self, step: Step, reply: Reply) -> None:
        step.message = b""
        line = self._lines[_key(step)]
        step.reply = reply
        if step.named.session:
            line.flying = None
            line.steps.popleft()
            self._answer(line, step, reply)
            self._next(line)
            return
        if step.parted:  # what is in parts does not wait for the calls before it
            line.steps.remove(step)
            self._answer(line, step, reply)
        while line.steps and (first := line.steps[0].reply) is not None:
            self._answer(line, line.steps.popleft(), first)

    def _next(self, line: Line) -> None:
        """A session's next steps, until one is to be sent."""
        while line.steps and line.flying is None:
            step = line.steps[0]
            if line.failed is not None and not step.start:
                line.steps.popleft()
                text = f"not run: an earlier step of its sequence on this stream failed: {line.text}"
                self._answer(line, step, Reply(Aborted.code, b"", text))
            elif step.refusal is not None:
                line.steps.popleft()
                self._answer(line, step, Reply(step.refusal.code, b"", step.refusal.message))
            else:
                line.failed = None
                line.flying = step
                self._ready.append(step)

    def _begin(self, line: Line, step: Step) -> None:
        if step.refusal is None:
            self._ready.append(step)
        else:
            self.done(step, Reply(step.refusal.code, b"", step.refusal.message))

    def _answer(self, line: Line, step: Step, reply: Reply) -> None:
        step.message = b""
        count = reply.metadata.get(headernames.STEP, "")
        number = int(count) if count.isascii() and count.isdigit() else 0
        if reply.code:
            response = streamed.error(reply.details, reply.code, step.id, step.model, step.version)
            self._out.append(Out(response, step, True, reply))
            if step.named.session and line.failed is None:
                line.failed, line.text = step, reply.details
        elif step.parted or headernames.DECOUPLED in reply.metadata:
            response = streamed.acknowledgement(step.id, step.model, step.version, number) if step.acknowledge else b""
            self._out.append(Out(response, step, True))
        else:
            self._out.append(Out(streamed.response(reply.message, final=True, step=number), step, True))
        step.reply = None

    # ------------------------------------------------------------------------------------------------------------------ writing

    def take(self) -> Out | None:
        """The next response to write (nothing, if it is empty). Then tell `written`."""
        if not self._out:
            return None
        out = self._out.popleft()
        self._parts -= 0 if out.last else len(out.response)
        return out

    def written(self, out: Out) -> None:
        if not out.last:
            return
        self.unanswered -= 1
        step = out.step
        if step is None:
            return
        self.bytes -= step.size
        key = _key(step)
        line = self._lines.get(key)
        if line is None:
            return
        if line.failed is step:
            line.failed = None
        if not line.steps and line.failed is None:
            del self._lines[key]

    @property
    def full(self) -> bool:
        """No further message is to be read now."""
        return self.unanswered >= limits.STREAM_MESSAGES or self.bytes >= limits.STREAM_BYTES

    @property
    def crowded(self) -> bool:
        """No further parts are to be read from workers now."""
        return len(self._out) >= MAX_PARTS or self._parts >= limits.STREAM_BYTES

    @property
    def idle(self) -> bool:
        return self.unanswered == 0

    @property
    def lines(self) -> int:
        return len(self._lines)


def _key(step: Step) -> tuple[str, str]:
    return step.named.label, step.named.session


def numbered(key: str, number: int) -> str:
    """The key of message `number` under a stream's key."""
    parts = callkeys.split(key)
    return f"{key}/{number}" if parts is None else f"{parts[0] + number:016d}-{parts[1]}/{number}"


def check(metadata: Mapping[str, str], now_us: int, verified: bool = True) -> None:
    """InvalidArgument: a caller's key that no message of the stream could use, or one without the number of the first message.

    The number must be written, 0 too. A stream that is opened again for the messages that were not answered begins in the middle; numbered
    from 0 they would have the keys of earlier messages, and where the content is equal ("the next step") be answered with the replies of
    those and run nothing.
    """
    idempotency, first = metadata.get(headernames.IDEMPOTENCY_KEY, ""), metadata.get(headernames.FIRST_MESSAGE)
    if first is None:
        if idempotency:
            raise InvalidArgument(
                f"{headernames.FIRST_MESSAGE}: absent beside {headernames.IDEMPOTENCY_KEY}, which names each message by its number; "
                "a new stream gives 0, one that is opened again the number of the first message that it sends again"
            )
        return
    if not idempotency:
        raise InvalidArgument(f"{headernames.FIRST_MESSAGE}: {first!r} found without {headernames.IDEMPOTENCY_KEY}, to which it belongs")
    if not (first.isascii() and first.isdigit() and len(first) <= FIRST_DIGITS):
        raise InvalidArgument(f"{headernames.FIRST_MESSAGE}: {first!r} found, a number of at most {FIRST_DIGITS} digits is allowed")
    with contextlib.suppress(Unavailable):  # a timestamp that this clock cannot judge: a worker does
        callkeys.parse("", numbered(idempotency, int(first)), now_us, callkeys.LocalKeys("relay"), verified=verified)
