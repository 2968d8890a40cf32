"""What makes two copies of one call the same call (rule 6).

A key is ``{timestamp}-{id}``. The gateway makes one for each call and repeats it at every retry; a caller's ``dormouse-idempotency-key``
replaces the id, and one of the form ``{timestamp}-{id}`` brings its timestamp too. Two keys are equal when their ids are; the timestamp
only says how old a key is, so that a late copy of a call whose key is no longer kept is refused instead of run again (rule 7).

The prefixes keep the makers of ids apart: nothing that a caller writes can equal an id that a gateway or a worker made.

    g-{nonce}-{n}   a gateway's          c-{anything}   a caller's          w-{nonce}-{n}   a worker's own, for a call that came without one

A timestamp is written in exactly 16 digits: microseconds since 1970, from 2001 to 2286. Fewer would read the first group of some UUIDs as a
time long ago, and the call would be refused as too old.
"""

from dataclasses import dataclass
from typing import Any

from dormouse_core.errors import InvalidArgument

RESERVED = "dormouse_"  # how names of a request's parameters begin that Dormouse reads itself
PARAMETER = "dormouse_idempotency_key"
MAX_ID_CHARACTERS = 128
MAX_AHEAD_US = 60_000_000  # a timestamp further ahead of the worker's clock is refused
_DIGITS = 16


@dataclass(frozen=True, slots=True)
class CallKey:
    """`timestamp_us` orders keys by age; `id`, with its prefix, is the identity."""

    timestamp_us: int
    id: str

    def __str__(self) -> str:
        return f"{self.timestamp_us:016d}-{self.id}"


class LocalKeys:
    """Makes keys for calls that reach a worker without a gateway's. `nonce` is new for every process."""

    def __init__(self, nonce: str) -> None:
        self._prefix = f"w-{nonce}-"
        self._count = 0

    def next(self, now_us: int) -> CallKey:
        self._count += 1
        return CallKey(now_us, f"{self._prefix}{self._count}")


def split(text: str) -> tuple[int, str] | None:
    """(timestamp, id) of ``{16 digits}-{id}``; None for any other text."""
    if len(text) > _DIGITS + 1 and text[_DIGITS] == "-":
        digits = text[:_DIGITS]
        if digits.isascii() and digits.isdigit():
            return int(digits), text[_DIGITS + 1 :]
    return None


def parse(call: str, idempotency: str, now_us: int, local: LocalKeys) -> CallKey:
    """The key of a call from its two headers (each '' where absent), at a worker whose wall clock reads `now_us`.

    `call` is the gateway's ``dormouse-call``, `idempotency` the caller's ``dormouse-idempotency-key``. InvalidArgument: a gateway's key of
    another form, a caller's that is not printable ASCII or too long, a timestamp more than a minute ahead.
    """
    timestamp = 0
    ident = ""
    if call:
        parts = split(call)
        if parts is None or not parts[1].startswith("g-"):
            raise InvalidArgument(f"dormouse-call: {call[:80]!r} found, '{{16 digits}}-g-{{nonce}}-{{n}}' is what a gateway writes")
        timestamp, ident = parts
        _check_ahead("dormouse-call", timestamp, now_us)
    if idempotency:
        # Compared as bytes in a record: what is not ASCII has more than one spelling of the same text.
        if not (idempotency.isascii() and idempotency.isprintable()):
            raise InvalidArgument("dormouse-idempotency-key: printable ASCII characters are allowed")
        parts = split(idempotency)
        if parts is not None:
            timestamp, own = parts
            _check_ahead("dormouse-idempotency-key", timestamp, now_us)
        else:
            own = idempotency
            timestamp = timestamp or now_us
        if len(own) > MAX_ID_CHARACTERS:
            raise InvalidArgument(f"dormouse-idempotency-key: {len(own)} characters found, at most {MAX_ID_CHARACTERS} are allowed")
        return CallKey(timestamp, f"c-{own}")
    if ident:
        return CallKey(timestamp, ident)
    return local.next(now_us)


def _check_ahead(field: str, timestamp_us: int, now_us: int) -> None:
    if timestamp_us > now_us + MAX_AHEAD_US:
        seconds = (timestamp_us - now_us) / 1e6
        raise InvalidArgument(f"{field}: a timestamp {seconds:.0f} s ahead of this worker's clock found, at most 60 s are allowed")


def reserved(parameters: Any) -> None:
    """InvalidArgument: one of a request's parameters has a name that is kept for Dormouse and means nothing: most likely a key that was
    misspelt, without which a resend would run again.
    """
    for name in parameters:
        if name.startswith(RESERVED) and name != PARAMETER:
            raise InvalidArgument(f"parameters.{name}: unknown; of the names that begin with {RESERVED}, {PARAMETER} is allowed")


def named(idempotency: str, parameters: Any) -> str:
    """The caller's key of one request, from its metadata ('' where absent) and from its parameter `dormouse_idempotency_key`; '': none.

    InvalidArgument: the parameter is no string or empty, or the two contradict each other.
    """
    if PARAMETER not in parameters:
        return idempotency
    parameter = parameters[PARAMETER]
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "string_param" or not parameter.string_param:
        found = "an empty string" if kind == "string_param" else kind or "no value"
        raise InvalidArgument(f"parameters.{PARAMETER}: {found} found, a string of 1 to {MAX_ID_CHARACTERS} characters is allowed")
    key: str = parameter.string_param
    if idempotency and idempotency != key:
        raise InvalidArgument(f"parameters.{PARAMETER}: {key!r} found, but the metadata dormouse-idempotency-key says {idempotency!r}")
    return key
