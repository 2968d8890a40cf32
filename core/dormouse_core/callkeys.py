"""What makes two copies of one call the same call (rule *call-key*).

A key is ``{timestamp}-{id}``. The gateway makes one for each call and repeats it at every retry; a caller's ``dormouse-idempotency-key``
replaces the id, and one of the form ``{timestamp}-{id}`` brings its timestamp too. Two keys are equal when their ids are; the timestamp
only says how old a key is, so that a late copy of a call whose key is no longer kept is refused instead of run again (rule *horizon*).

The prefixes keep the makers of ids apart: nothing that a caller writes can equal an id that a gateway or a worker made.

    g-{nonce}-{n}   a gateway's          c-{anything}   a caller's          w-{nonce}-{n}   a worker's own, for a call that came without one
    a-{id}          of an alarm's step (`alarms`)

A timestamp says how old a key is only beside others of the same clock. So a key also names its *maker*: the gateway's process whose clock
made the timestamp, or CALLERS for a caller's own. Each maker's timestamps have a horizon of their own (`steps`), and a gateway's rise with
every call. What orders calls across makers is `arrived_us`, the gateway's time of every call, whoever made its key.

A timestamp is written in exactly 16 digits: microseconds since 1970, from 2001 to 2286. Fewer would read the first group of some UUIDs as a
time long ago, and the call would be refused as too old.
"""

from typing import Any

import msgspec

from dormouse_core import headernames
from dormouse_core.errors import Again, InvalidArgument, Unavailable
from dormouse_core.limits import CLOCK_AHEAD_SECONDS, IDEMPOTENCY_KEY_CHARACTERS

RESERVED = "dormouse_"  # how names of a request's parameters begin that Dormouse reads itself
PARAMETER = "dormouse_idempotency_key"
MAX_AHEAD_US = int(CLOCK_AHEAD_SECONDS * 1e6)
CALLERS = ""
"""The maker of timestamps that callers bring."""
OF_STEPS = "step-"
"""How the ids of calls that steps make begin (`childcalls`): nobody gives such an id to another call."""
ANYBODY = "?"
"""The maker of a caller's id in a record of a build that did not write makers down: a gateway's timestamp, or the caller's."""
_DIGITS = 16


class CallKey(msgspec.Struct, frozen=True):
    """`timestamp_us` orders the keys of one maker by age; `id`, with its prefix, is the identity."""

    timestamp_us: int
    id: str
    made_by: str | None = None
    """Whose clock made the timestamp, where the id does not say it."""
    gateway_us: int = 0
    """The gateway's time of the call, where the timestamp is a caller's own; 0: the timestamp is it."""

    def __str__(self) -> str:
        """The same at every copy of the call. A caller's key without a timestamp has one for each time at which it came: not shown."""
        return self.id if self.opaque else f"{self.timestamp_us:016d}-{self.id}"

    @property
    def opaque(self) -> bool:
        """A caller's key without a timestamp of its own: the same key, sent again, comes with another."""
        return self.id.startswith("c-") and self.maker != CALLERS

    @property
    def of_step(self) -> bool:
        """Of a call that a step makes: its id is never another's, whatever time comes with it."""
        return self.id.startswith(f"c-{OF_STEPS}")

    @property
    def maker(self) -> str:
        return maker_of(self.id) if self.made_by is None else self.made_by

    @property
    def arrived_us(self) -> int:
        return self.gateway_us or self.timestamp_us


def maker_of(ident: str) -> str:
    """Who made the timestamp that came with an id, as far as the id says it: g-{nonce}-{n} and w-{nonce}-{n} do."""
    if ident.startswith("c-"):
        return CALLERS
    end = ident.find("-", 2)
    return ident[:end] if end > 0 else ident[:1]


class LocalKeys:
    """Makes keys for calls that reach a worker without a gateway's. `nonce` is new for every process."""

    def __init__(self, nonce: str) -> None:
        self.maker = f"w-{nonce}"
        self._prefix = f"w-{nonce}-"
        self._count = 0
        self._last_us = 0

    def next(self, now_us: int) -> CallKey:
        self._count += 1
        return CallKey(self.stamp(now_us), f"{self._prefix}{self._count}")

    def stamp(self, now_us: int) -> int:
        """Rises, also where the clock does not."""
        self._last_us = max(now_us, self._last_us + 1)
        return self._last_us


def split(text: str) -> tuple[int, str] | None:
    """(timestamp, id) of ``{16 digits}-{id}``; None for any other text."""
    if len(text) > _DIGITS + 1 and text[_DIGITS] == "-":
        digits = text[:_DIGITS]
        if digits.isascii() and digits.isdigit():
            return int(digits), text[_DIGITS + 1 :]
    return None


def parse(
    call: str, idempotency: str, now_us: int, local: LocalKeys, *, verified: bool = True, field: str = headernames.IDEMPOTENCY_KEY
) -> CallKey:
    """The key of a call from its two headers (each '' where absent), at a process whose clock reads `now_us`.

    `call` is the gateway's ``dormouse-call``, `idempotency` the caller's own key, which stands in `field`. InvalidArgument: a gateway's key
    of another form, a caller's that is not printable ASCII or too long, a caller's own timestamp more than a minute ahead where `now_us` is
    `verified`. Unavailable, to be tried elsewhere: any other timestamp more than a minute ahead. It is not the caller's fault: which of the
    two clocks is wrong is not known here.
    """
    timestamp = 0
    ident = ""
    if call:
        parts = split(call)
        if parts is None or not parts[1].startswith("g-"):
            raise InvalidArgument(f"dormouse-call: {call[:80]!r} found, '{{16 digits}}-g-{{nonce}}-{{n}}' is what a gateway writes")
        timestamp, ident = parts
        _check_ahead(headernames.CALL, timestamp, now_us, fault=False)
    if idempotency:
        # Compared as bytes in a record: what is not ASCII has more than one spelling of the same text.
        if not (idempotency.isascii() and idempotency.isprintable()):
            raise InvalidArgument(f"{field}: printable ASCII characters are allowed")
        parts = split(idempotency)
        own = idempotency if parts is None else parts[1]
        if len(own) > IDEMPOTENCY_KEY_CHARACTERS:
            most = IDEMPOTENCY_KEY_CHARACTERS
            raise InvalidArgument(f"{field}: {len(own)} characters found, at most {most} are allowed")
        arrived = timestamp or local.stamp(now_us)
        if parts is None:
            return CallKey(arrived, f"c-{own}", maker_of(ident) if ident else local.maker)
        _check_ahead(field, parts[0], now_us, fault=verified)
        return CallKey(parts[0], f"c-{own}", CALLERS, arrived)
    if ident:
        return CallKey(timestamp, ident)
    return local.next(now_us)


def _check_ahead(field: str, timestamp_us: int, now_us: int, *, fault: bool) -> None:
    if timestamp_us > now_us + MAX_AHEAD_US:
        seconds = (timestamp_us - now_us) / 1e6
        text = f"{field}: the timestamp is {seconds:.0f} s ahead of this process's clock (limit {CLOCK_AHEAD_SECONDS:g} s)"
        raise InvalidArgument(text) if fault else Unavailable(text, Again.CLOCK)


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
        raise InvalidArgument(f"parameters.{PARAMETER}: {found} found, a string of 1 to {IDEMPOTENCY_KEY_CHARACTERS} characters is allowed")
    key: str = parameter.string_param
    if idempotency and idempotency != key:
        raise InvalidArgument(f"parameters.{PARAMETER}: {key!r} found, but the metadata {headernames.IDEMPOTENCY_KEY} says {idempotency!r}")
    return key


def field_of(parameters: Any) -> str:
    """Where the caller's key of one request stands, for messages: a caller who set no metadata looks for none."""
    return f"parameters.{PARAMETER}" if PARAMETER in parameters else headernames.IDEMPOTENCY_KEY
