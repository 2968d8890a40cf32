"""What metadata may hold: the relay and the worker give one answer, whichever way a call takes."""

import pytest
from dormouse_core.errors import InvalidArgument
from dormouse_core.keys import Function
from dormouse_gateway import naming
from dormouse_worker.transport.calls import SessionReader

UNWRITABLE = ["ü".encode(), b"a\xff", b"a\tb", b"a\x00"]


def as_grpcio_gives_it(value: bytes) -> str | bytes:
    """Text where it is UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


@pytest.mark.parametrize("value", UNWRITABLE)
@pytest.mark.parametrize("name", ["dormouse-session", "dormouse-tenant"])
def test_what_no_grpc_library_sends_on_is_refused_on_both_ways(name: str, value: bytes) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: .*printable ASCII"):
        naming.single([(name, as_grpcio_gives_it(value))])
    headers = {b"dormouse-session": b"a", name.encode(): value}
    with pytest.raises(InvalidArgument, match=f"{name}: .*printable ASCII"):
        SessionReader(Function("ns", "fn", "u"), "n").read(headers, {}, 1_700_000_000_000_000)


@pytest.mark.parametrize("value", UNWRITABLE)
def test_it_is_left_out_of_what_is_passed_on(value: bytes) -> None:
    assert naming.single([("trace", as_grpcio_gives_it(value)), ("a-bin", b"\x00"), ("b", " c~")]) == {"b": " c~"}
