"""What a call's metadata says: which function, which session, which key, how long.

The gateway has read the same already, for calls whose metadata names them without reading the message. So the worker reads both, and
refuses what contradicts: to take the first would run a step in a session that the caller did not mean.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dormouse_core import callkeys, headernames
from dormouse_core.callkeys import CallKey, LocalKeys
from dormouse_core.clocks import TimeReading
from dormouse_core.errors import Again, InvalidArgument, Unavailable
from dormouse_core.keys import Function
from dormouse_core.sessions.names import session_key

from dormouse_worker.transport.frames import Headers

_CALL = headernames.CALL.encode()
_FIRST_MESSAGE = headernames.FIRST_MESSAGE.encode()
_FUNCTION = headernames.FUNCTION.encode()
_IDEMPOTENCY_KEY = headernames.IDEMPOTENCY_KEY.encode()
_MAX_MESSAGE = headernames.MAX_MESSAGE.encode()
_REV = headernames.REV.encode()
_SESSION = headernames.SESSION.encode()
_TENANT = headernames.TENANT.encode()
_UID = headernames.UID.encode()

_KEPT = 100_000
_OURS = (b"dormouse-", b"grpc-timeout")


def read(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name. InvalidArgument: one of ours given twice, with two values, or what only a stream has."""
    found = dict(headers)
    if len(found) != len(headers):
        seen: dict[bytes, bytes] = {}
        for name, value in headers:
            if name.startswith(_OURS) and seen.setdefault(name, value) != value:
                raise InvalidArgument(f"{name.decode()}: given twice, as {text(seen[name])!r} and {text(value)!r}")
    if _FIRST_MESSAGE in found:
        raise InvalidArgument(f"{headernames.FIRST_MESSAGE}: found on a call of its own, it belongs to a stream")
    return found


def message_bytes(headers: Headers, highest: int) -> int:
    """How large the call's request and its reply may be: the installation's limit, which the gateway says, and at most `highest`."""
    return min(_number(headers, _MAX_MESSAGE) or highest, highest)


def text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def check_function(headers: Headers, function: Function) -> None:
    """Refuses a call that was routed for another function, or for another life of this one's name."""
    uid = headers.get(_UID)
    if uid is not None and text(uid) != function.uid:
        raise Unavailable(f"this worker serves {function.label} with uid {function.uid}, not {text(uid)}", Again.NOT_MINE)
    name = headers.get(_FUNCTION)
    if name is not None and text(name) != function.label:
        raise InvalidArgument(f"{headernames.FUNCTION}: {text(name)!r} found, this worker serves {function.label!r}")


@dataclass(slots=True)
class SessionCall:
    """The session side of one call."""

    session: int | str
    key: str  # session_key
    start: bool
    end: bool
    create: bool
    call_key: CallKey
    rev: int
    tenant: str


class Identity:
    """Whose a call is, and its key. `time`: what timestamps are judged by; without it, the wall clock is."""

    def __init__(self, nonce: str, time: TimeReading | None = None) -> None:
        self._local = LocalKeys(nonce)
        self._time = time

    def whose(self, headers: Headers, parameters: Any, now_us: int | None = None) -> tuple[str, CallKey]:
        """(tenant, key). InvalidArgument: a key of the wrong form, or metadata that no gRPC library sends."""
        verified = True
        if now_us is None:
            now_us, verified = (time.time_ns() // 1000, True) if self._time is None else self._time.read()
        get = headers.get
        tenant = _strict(_TENANT, get(_TENANT, b""))
        idempotency = callkeys.named(text(get(_IDEMPOTENCY_KEY, b"")), parameters)
        field = callkeys.field_of(parameters)
        call = text(get(_CALL, b""))
        return tenant, callkeys.parse(call, idempotency, now_us, self._local, verified=verified, field=field)


class SessionReader:
    """Reads the session side of calls of one stateful function. `time`: see `Identity`."""

    def __init__(self, function: Function, nonce: str, time: TimeReading | None = None) -> None:
        self._name = function.name
        self._identity = Identity(nonce, time)
        self._keys: dict[tuple[str, int | str], str] = {}

    def read(self, headers: Headers, parameters: Any, now_us: int | None = None) -> SessionCall:
        """InvalidArgument: no session, two different ones, a parameter of the wrong type."""
        sequence = _sequence_id(parameters)
        get = headers.get
        named = get(_SESSION)
        session: int | str
        if named is None:
            if sequence is None:
                raise InvalidArgument(f"inference request to model '{self._name}' must specify a non-zero or non-empty correlation ID")
            session = sequence
        else:
            session = _strict(_SESSION, named)
            if sequence is not None and sequence != session:
                raise InvalidArgument(f"{headernames.SESSION}: {session!r} found, but sequence_id is {sequence!r}; give one, or the same")
        start = _flag(parameters, "sequence_start")
        tenant, call_key = self._identity.whose(headers, parameters, now_us)
        return SessionCall(
            session,
            self._keys.get((tenant, session)) or self._key(tenant, session, "sequence_id" if named is None else headernames.SESSION),
            start,
            _flag(parameters, "sequence_end"),
            start or named is not None,
            call_key,
            _number(headers, _REV),
            tenant,
        )

    def _key(self, tenant: str, session: int | str, field: str) -> str:
        """Sessions are stepped many times; their names are percent-encoded once."""
        if len(self._keys) >= _KEPT:
            self._keys.clear()
        key = self._keys[tenant, session] = session_key(tenant, session, field)
        return key


def _sequence_id(parameters: Any) -> int | str | None:
    if "sequence_id" not in parameters:
        return None
    parameter = parameters["sequence_id"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param or None
    if kind == "string_param":
        return parameter.string_param or None
    raise InvalidArgument(f"parameters.sequence_id: {kind or 'no value'} found, int64_param and string_param are allowed")


def _flag(parameters: Any, name: str) -> bool:
    if name not in parameters:
        return False
    parameter = parameters[name]
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidArgument(f"parameters.{name}: {kind or 'no value'} found, bool_param is allowed")
    return bool(parameter.bool_param)


def _strict(name: bytes, value: bytes) -> str:
    """gRPC's metadata is printable ASCII. HTTP/2 and Envoy let more through; the relay's library does not: one answer on both ways."""
    found = value.decode("latin-1")
    if not (found.isascii() and found.isprintable()):
        raise InvalidArgument(f"{name.decode()}: {text(value)!r} found, printable ASCII is allowed in metadata")
    return found


def _number(headers: Headers, name: bytes) -> int:
    value = headers.get(name)
    if value is None:
        return 0
    if not value.isdigit() or len(value) > 19:
        raise InvalidArgument(f"{name.decode()}: {text(value)!r} found, a number is expected")
    return int(value)
