"""Which function and which session a call means, from its metadata and its message: what the relay does for the calls
that router.lua left to it, and the one place in the gateway that words a refusal of a contradiction.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dormouse_core import callkeys, headernames, modelnames, wire
from dormouse_core.errors import InvalidArgument, Unavailable
from dormouse_core.sessions.names import session_key
from dormouse_proto import inference_pb2
from google.protobuf.message import DecodeError

_LABEL = "[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NAMED = re.compile(f"({_LABEL})/({_LABEL})")


@dataclass(frozen=True, slots=True)
class Named:
    namespace: str
    name: str
    session: str = ""
    """The session's key (`dormouse_core.sessions.names`), '' where the call has none."""

    @property
    def label(self) -> str:
        return f"{self.namespace}/{self.name}"


def single(pairs: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Metadata as a mapping. InvalidArgument: one of Dormouse's own keys more than once, or not in gRPC's characters.

    Of other keys, binary values and those that no gRPC library would send on to a worker (HTTP/2 lets other clients write any byte) are
    left out.
    """
    out: dict[str, str] = {}
    for key, value in pairs:
        if isinstance(value, bytes) or not (value.isascii() and value.isprintable()):
            if key in headernames.CALLERS:
                raise InvalidArgument(f"{key}: {value!r} found, printable ASCII is allowed in metadata")
            continue
        if key in out and key in headernames.CALLERS:
            raise InvalidArgument(f"{key}: given more than once in the metadata, once is allowed")
        out[key] = f"{out[key]},{value}" if key in out else value
    return out


def unary(metadata: Mapping[str, str]) -> None:
    """InvalidArgument: a call of its own has metadata that only a stream's messages are named by."""
    if headernames.FIRST_MESSAGE in metadata:
        raise InvalidArgument(f"{headernames.FIRST_MESSAGE}: found on a call of its own, it belongs to a stream")


def function(metadata: Mapping[str, str], model: str, default_namespace: str) -> Named:
    """The function of a call that names `model`. The authority's function, if any, was written into the metadata by router.lua."""
    given = metadata.get(headernames.FUNCTION)
    if given is not None:
        match = _NAMED.fullmatch(given)
        if match is None:
            raise InvalidArgument(f"{headernames.FUNCTION}: {given!r} found, namespace/name is allowed")
        named = Named(match[1], match[2])
        if model and modelnames.parse(model) not in (("", named.name), (named.namespace, named.name)):
            raise InvalidArgument(f"model_name: {model!r} found, but the call is addressed to function {named.label}")
        return named
    if not model:
        raise InvalidArgument(f"model_name: empty; a function is named by the metadata {headernames.FUNCTION}, the authority or model_name")
    parsed = modelnames.parse(model)
    if parsed is None:
        raise InvalidArgument(f"model_name: {model!r} found, name or namespace/name is allowed")
    return Named(parsed[0] or default_namespace, parsed[1])


def sequence(request: inference_pb2.ModelInferRequest) -> int | str | None:
    """Triton's `sequence_id`; 0 and '' mean none."""
    if "sequence_id" not in request.parameters:
        return None
    parameter = request.parameters["sequence_id"]
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        return parameter.int64_param or None
    if kind == "string_param":
        return parameter.string_param or None
    if kind is None:
        return None
    raise InvalidArgument(f"sequence_id: {kind} found, int64_param or string_param is allowed")


def parse(message: bytes) -> inference_pb2.ModelInferRequest:
    """What routing needs of it; of a long message no more than that is built. InvalidArgument, ResourceExhausted."""
    try:
        return inference_pb2.ModelInferRequest.FromString(wire.routing(message))
    except DecodeError:
        raise InvalidArgument("the message is not an inference.ModelInferRequest") from None


def infer(metadata: Mapping[str, str], request: inference_pb2.ModelInferRequest, default_namespace: str) -> Named:
    """The function and the session of a ModelInfer. InvalidArgument says what is wrong."""
    named = function(metadata, request.model_name, default_namespace)
    in_metadata, in_message = metadata.get(headernames.SESSION), sequence(request)
    if in_metadata is None and in_message is None:
        return named
    if in_metadata is not None and in_message is not None and in_metadata != in_message:
        raise InvalidArgument(f"sequence_id: {in_message!r} found, but the metadata {headernames.SESSION} says {in_metadata!r}")
    session: int | str = in_metadata if in_metadata is not None else in_message or ""
    field = headernames.SESSION if in_metadata is not None else "sequence_id"
    return Named(named.namespace, named.name, session_key(metadata.get(headernames.TENANT, ""), session, field))


def flag(request: inference_pb2.ModelInferRequest, name: str) -> bool:
    """A parameter that is true or false; of another kind it counts as absent here: the worker refuses it."""
    return name in request.parameters and request.parameters[name].bool_param


def restamped(metadata: Mapping[str, str], now_us: int) -> Mapping[str, str]:
    """The same with this gateway's time in the gateway's key, where that one is so far ahead that every worker would refuse it: Envoy's
    clock has jumped, and it is not told yet. The id stays, and with it what the call is. A lower timestamp never lets a copy run twice: it
    only counts as older."""
    parts = callkeys.split(metadata.get(headernames.CALL, ""))
    if parts is None or parts[0] <= now_us + callkeys.MAX_AHEAD_US:
        return metadata
    return {**metadata, headernames.CALL: f"{now_us:016d}-{parts[1]}"}


def timestamp(metadata: Mapping[str, str], request: inference_pb2.ModelInferRequest, now_us: int, verified: bool = True) -> int:
    """The gateway's time of a call, by which held calls of one session leave. InvalidArgument where a worker would refuse the key;
    `verified`: whether `now_us` is by a clock that is known to be good. Where it is not, the worker judges."""
    local = callkeys.LocalKeys("relay")
    idempotency = callkeys.named(metadata.get(headernames.IDEMPOTENCY_KEY, ""), request.parameters)
    field = callkeys.field_of(request.parameters)
    try:
        return callkeys.parse(metadata.get(headernames.CALL, ""), idempotency, now_us, local, verified=verified, field=field).arrived_us
    except Unavailable:
        return now_us
