"""Session ids and names that would be paths, prefixes or escapes elsewhere, through the whole system (case 8.O3): each is a session of its
own, or refused; and nothing that is ended or deleted takes a neighbour along."""

import json
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from conftest import unavailable
from dormouse_testing.up import TOTAL, Up, missing, row, save_models, system
from dormouse_testing.workers import Client, outputs_of, request_of

IDS: list[int | str] = [
    "a", "a/b", "../a", "a%2Fb", "a%2fb", "a b", "a?b", "a#b", "é", "e\u0301", "\0", "a\0", "\n", "a\n", "x" * 128, "7", 7, -7,
    -(2**63), 2**63 - 1, ".", "..", "a/", "/a", "a//b", "i:7", "s:a", "/s:a",
]  # fmt: skip
NEIGHBOURS = ("total", "total2", "total-2", "tota", "total-2-b")
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    if reason := missing():
        unavailable(reason)
    folder = tmp_path_factory.mktemp("ids")
    save_models(folder)
    for name in NEIGHBOURS:
        (folder / f"{name}.yaml").write_text(TOTAL.replace("name: total", f"name: {name}"))
    with system(folder) as started:
        started.wait_ready()
        for name in NEIGHBOURS:
            started.until_phase(name, "Ready", "Asleep")
        yield started


@pytest.fixture
def client(up: Up) -> Iterator[Client]:
    with Client(up.gateway) as found:
        yield found


def step(
    client: Client, add: int, session: int | str, function: str = "total", tenant: str = "", *, start: bool = False, end: bool = False
) -> float:
    """The session's sum after it; the id where Triton has it."""
    request = request_of(function, x=row(add))
    if isinstance(session, int):
        request.parameters["sequence_id"].int64_param = session
    else:
        request.parameters["sequence_id"].string_param = session
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    metadata = [("dormouse-tenant", tenant)] if tenant else []
    return value(client.infer(request, metadata, timeout=30))


def named(client: Client, add: int, session: str) -> float:
    """The same by metadata, which carries printable ASCII."""
    return value(client.infer(request_of("total", x=row(add)), [("dormouse-session", session)], timeout=30))


def value(reply: object) -> float:
    found: np.ndarray = outputs_of(reply)["y"]  # type: ignore[arg-type]
    return float(found.reshape(-1)[0])


def test_each_id_is_a_session_of_its_own(up: Up, client: Client) -> None:
    """With two workers, so that where Lua and Python differ a step goes to the wrong owner; and again after all have slept."""
    up.command("scale", "total", "2")
    up.until(lambda: up.get("total")["readyReplicas"] == 2)
    for number, session in enumerate(IDS, 1):
        assert step(client, number, session, start=True) == number, repr(session)
    for number, session in enumerate(IDS, 1):
        assert step(client, 1000, session) == 1000 + number, repr(session)
        if isinstance(session, str) and session.isprintable() and session.isascii():
            assert named(client, 0, session) == 1000 + number, repr(session)
    found = json.loads(up.command("sessions", "total", "-o", "json").stdout)
    assert len(found) == len(IDS)
    up.command("scale", "total", "auto")
    up.until_phase("total", "Asleep")
    for number, session in enumerate(IDS, 1):
        assert step(client, 0, session) == 1000 + number, repr(session)


@pytest.mark.parametrize("session", ["x" * 129, "é" * 129, "", 0])
def test_what_is_no_id_is_refused(client: Client, session: int | str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        step(client, 1, session, start=True)
    assert raised.value.code() is Code.INVALID_ARGUMENT
    assert "sequence_id" in raised.value.details() or "session" in str(raised.value.details())


@pytest.mark.parametrize("session", ["", "x" * 129])
def test_what_is_no_name_is_refused(client: Client, session: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        named(client, 1, session)
    assert raised.value.code() is Code.INVALID_ARGUMENT
    assert "dormouse-session" in str(raised.value.details())


def test_the_end_of_a_session_takes_no_neighbour_along(client: Client) -> None:
    """`a` ends while everything lives that begins so, or would lead there as a path; under every tenant whose name could run into an id."""
    tenants = ("", "t", "t/s:a", "t%2Fs:a", "..")
    for tenant in tenants:
        for number, session in enumerate(IDS, 1):
            step(client, number, session, "total2", tenant, start=True)
    assert step(client, 0, "a", "total2", "t", end=True) == 1
    for tenant in tenants:
        for number, session in enumerate(IDS, 1):
            if (tenant, session) != ("t", "a"):
                assert step(client, 0, session, "total2", tenant) == number, (tenant, session)
    with pytest.raises(grpc.RpcError, match="START"):
        step(client, 0, "a", "total2", "t")


def test_the_end_of_a_function_takes_no_neighbour_along(up: Up, client: Client) -> None:
    """`total-2` is deleted while functions live whose names begin or end like it; made anew it knows nothing."""
    for name in NEIGHBOURS:
        step(client, 5, "neighbour", name, start=True)
    up.command("delete", "total-2")
    with pytest.raises(grpc.RpcError) as raised:
        step(client, 5, "neighbour", "total-2")
    assert raised.value.code() is Code.NOT_FOUND
    for name in NEIGHBOURS:
        if name != "total-2":
            assert step(client, 1, "neighbour", name) == 6, name
    up.command("apply", "-f", str(up.folder / "total-2.yaml"))
    up.until_phase("total-2", "Ready", "Asleep")
    with pytest.raises(grpc.RpcError, match="START"):
        step(client, 1, "neighbour", "total-2")
    assert step(client, 1, "neighbour", "total-2", start=True) == 1
