"""Calls that a step makes of other functions (`ctx.call`): whom it may call, under which key, and how deep.

**The key** follows from what does not change when the step is run again: whose step it is (the function's place in the store, tenant,
session), the step's own key, whom it calls, and how many calls of that session the step has made before. So a step that is run again, after
whatever death, makes the same calls under the same keys, and a session that ran one answers it with what it kept. Calls are counted for
each session that is called, so that calls of different sessions may be made side by side, in any order.

Its timestamp is that of the step's key: the only time that is the same whenever the step is run. A session that has forgotten the key
refuses such a call as too old (rule *horizon*); it never runs it again.

**A function stands once in a path**: among the functions whose steps wait for each other. A session's steps run one after the other, so a
step that waited for another of its own session would wait for ever; and a function that called itself might do so without end. The path
travels with the call, and whoever comes to stand in it twice is refused at once.

Two sessions whose steps call each other at the same moment have two paths, and none of them shows it: both wait until a deadline passes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest

from dormouse_core import headernames, modelnames
from dormouse_core.callkeys import OF_STEPS, CallKey
from dormouse_core.errors import Code, DormouseError, FailedPrecondition, InvalidArgument, ResourceExhausted
from dormouse_core.keys import Function
from dormouse_core.limits import CALL_DEPTH, IDEMPOTENCY_KEY_CHARACTERS, SESSION_CALLS
from dormouse_core.sessions.names import session_key

Path = tuple[str, ...]
"""namespace/name of each function whose step waits, the outermost first."""


def target(function: object, namespace: str) -> str:
    """namespace/name of the function that a step in `namespace` means. InvalidArgument: nothing can be called so."""
    parsed = modelnames.parse(function) if isinstance(function, str) else None
    if parsed is None:
        raise InvalidArgument(f"call: function: {function!r} found, name or namespace/name is allowed")
    return f"{parsed[0] or namespace}/{parsed[1]}"


def is_label(text: str) -> bool:
    """Whether it is namespace/name, as we write it."""
    return "/" in text and modelnames.parse(text) == text.partition("/")[::2]


def check(path: Path, label: str) -> None:
    """May the last of `path` call `label`? InvalidArgument: it stands in it already, or it is too deep. PERMISSION_DENIED: it is of another
    namespace."""
    if label == path[-1]:
        raise InvalidArgument(f"call: function: {label!r} found, which is the one that calls; a function does not call itself")
    if label in path:
        way = " -> ".join((*path, label))
        raise InvalidArgument(f"call: function: {label!r} found, whose step waits for this one ({way}); a call in a circle never ends")
    if len(path) >= CALL_DEPTH:
        raise InvalidArgument(f"call: function: {label!r} would be called {len(path)} calls deep, at most {CALL_DEPTH - 1} are allowed")
    namespace = path[-1].partition("/")[0]
    if label.partition("/")[0] != namespace:
        raise DormouseError(
            f"call: function: {label!r} found, a function of namespace {namespace!r} calls functions of its own namespace",
            Code.PERMISSION_DENIED,
        )


def read(text: str) -> Path:
    """A path as it is written in metadata. InvalidArgument: nobody of ours wrote this."""
    path = tuple(text.split(",")) if text else ()
    if len(path) > CALL_DEPTH or not all(map(is_label, path)):
        raise InvalidArgument(f"the path of a call: {text[:80]!r} found, at most {CALL_DEPTH} functions as namespace/name are allowed")
    return path


def written(path: Path) -> str:
    return ",".join(path)


@dataclass(slots=True)
class Calling:
    """The calls of one step. `key`: the step's own; `session`: its session's name in the store, the tenant in it, '' where there is none;
    `content`: digest of what the step was asked, where it has no session: only a session refuses another request under a key that it knows;
    `path`: who waits for it, without itself."""

    function: Function
    key: CallKey
    session: str = ""
    tenant: str = ""
    path: Path = ()
    content: bytes = b""
    _made: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    """How many calls of each session have a number."""
    _named: set[tuple[str, str | None, str]] = field(default_factory=set)

    @property
    def whole(self) -> Path:
        """With itself: what goes along with its calls."""
        return (*self.path, self.function.label)

    def next(self, function: object, session: object, name: object = None) -> tuple[str, str]:
        """Whom the step's next call goes to, and its key. `name`: the handler's, for the call; None: it has a number. InvalidArgument,
        FailedPrecondition, ResourceExhausted, PERMISSION_DENIED: it is not made."""
        label = target(function, self.function.namespace)
        check(self.whole, label)
        if name is not None:
            _check_name(name)
        if session is not None and not isinstance(session, str):
            raise InvalidArgument(f"call: session: {type(session).__name__} found, a text is allowed")
        if session == "":
            raise InvalidArgument("call: session: empty; a session has a name, and a call without one has None")
        for field_name, value in (("call: session", session or ""), (headernames.TENANT, self.tenant)):
            if not (value.isascii() and value.isprintable() and value == value.strip()):  # it travels as metadata
                raise InvalidArgument(
                    f"{field_name}: {value!r} found, printable ASCII that neither begins nor ends with a space is allowed"
                )
        if session is not None:
            session_key(self.tenant, session, "call: session")
            if self.key.opaque:
                raise _timeless(self.key, label)
        known = isinstance(name, str) and (label, session, name) in self._named
        if session is not None and not known and self._calls_of(label, session) >= SESSION_CALLS:
            raise ResourceExhausted(
                f"call: session: {session!r} of {label} was called {SESSION_CALLS} times in this step, which is the limit: of more it "
                "would not know each again when the step is repeated"
            )
        if isinstance(name, str):
            self._named.add((label, session, name))
            return label, key_of(self, label, session, name)
        number = self._made[label, session]
        self._made[label, session] += 1
        return label, key_of(self, label, session, number)

    def _calls_of(self, label: str, session: str | None) -> int:
        return self._made[label, session] + sum((label, session) == each[:2] for each in self._named)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise InvalidArgument(f"call: key: {type(name).__name__} found, a text is allowed")
    if not (1 <= len(name) <= IDEMPOTENCY_KEY_CHARACTERS and name.isascii() and name.isprintable()):
        most = IDEMPOTENCY_KEY_CHARACTERS
        raise InvalidArgument(f"call: key: {name[:80]!r} found, 1 to {most} printable ASCII characters are allowed")


def _timeless(key: CallKey, label: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"call: {label} has sessions, and the key under which this step was asked for says no time: {key.id.removeprefix('c-')!r} found in "
        f"{headernames.IDEMPOTENCY_KEY}, {{16 digits}}-{{id}} (microseconds since 1970, the same whenever it is sent) is allowed, or no "
        "key; a session that had forgotten the call would run it again"
    )


def key_of(step: Calling, label: str, session: str | None, call: int | str) -> str:
    """The idempotency key of a step's call of one session: by its number (0, 1, ...), or by the handler's name for it.

    Timestamps rise with the number: no call must pass for older than the one before it. Whatever has a name has one timestamp: its place
    among the others may differ when the step is run again, and a copy with a later timestamp than the first could pass the horizon that the
    first has raised."""
    whose = (step.function.data_path, step.tenant, step.session, step.key.id, step.content.hex())
    which = f"n:{call}" if isinstance(call, str) else str(call)
    made = OF_STEPS + digest((*whose, label, "" if session is None else f"s:{session}", which)).hex()[:32]
    if step.key.opaque:
        return made
    return f"{step.key.timestamp_us + (SESSION_CALLS if isinstance(call, str) else call):016d}-{made}"


def digest(parts: Sequence[str]) -> bytes:
    """Each part behind its length, so that no two different lists are written alike."""
    return sha256(b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)).digest()


# ------------------------------------------------------------------------------------------------------------- who may call


def shown(secret: str) -> bytes:
    """What lies in the store of a worker's secret. Only the function's own user may write there, so who knows the secret is that worker."""
    return sha256(secret.encode()).digest()


def proves(stored: bytes, secret: str) -> bool:
    return bool(stored) and compare_digest(stored, shown(secret))


def unsaid() -> FailedPrecondition:
    return FailedPrecondition("call: this worker knows no gateway: whoever started it named none")
