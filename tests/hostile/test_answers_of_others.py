"""Bytes from outside end no part: an empty answer to a probe, a broken line from a handler's process, a header that is no text."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dormouse import parts, supervisors
from dormouse.home import Home
from dormouse_core.errors import DormouseError
from dormouse_gateway.envoy import process as envoy
from dormouse_kit import log
from dormouse_kit.envoyadmin import unchunked
from dormouse_worker.process import probing, supervisor
from dormouse_worker.process.jsonstore import JsonStore, Refused
from dormouse_worker.process.link import Link
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
ANYTHING = st.none() | st.integers() | st.text(max_size=9)
JSON = ANYTHING | st.lists(ANYTHING, max_size=3) | st.dictionaries(st.sampled_from(["result", "TTL", "problem", "x"]), ANYTHING, max_size=3)
ANSWERS = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda head, body: b"HTTP/1.1 " + head + b"\r\n\r\n" + body, st.binary(max_size=20), st.binary(max_size=100)),
    st.builds(lambda body: b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body, st.binary(max_size=100)),
    JSON.map(lambda value: b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(value).encode()),
)
EMPTY = b""


class Answering:
    """A Unix socket that gives everybody the same bytes, and hangs up."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.answer = EMPTY
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(self.path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    connection.sendall(self.answer)
                except OSError:
                    continue

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    made = Answering(tmp_path_factory.mktemp("a") / parts.STORE)
    yield made
    made.close()


def test_any_answer_to_a_probe_is_an_answer_or_none(answering: Answering) -> None:
    @QUICK
    @given(ANSWERS)
    @example(EMPTY)
    @example(b"HTTP/1.1\r\n\r\n")
    @example(b"HTTP/1.1 " + b"9" * 5000 + b" OK\r\n\r\n")
    def holds(answer: bytes) -> None:
        answering.answer = answer
        assert probing.alive(answering.path, 2.0) in (True, False)
        assert probing.active(answering.path) >= 0
        probe = probing.process(answering.path, 0.0)
        while (sock := probe.sock) is not None:
            sock.setblocking(True)
            probe.read()
        assert probe.status is not None
        assert 0 <= probe.status < 1000

    holds()


def test_negative_control_an_empty_answer_has_no_second_word() -> None:
    with pytest.raises(IndexError):
        EMPTY.split(b" ", 2)[1]


def test_an_answer_of_the_store_is_heard_at_its_socket(answering: Answering) -> None:
    """Whose name has a colon."""
    store = JsonStore({"endpoints": [f"unix:{answering.path}"]})
    answering.answer = b'HTTP/1.1 200 OK\r\n\r\n{"result": {"TTL": "3"}}'
    assert store.keep_alive(1) == 3


def test_any_answer_of_the_store_is_an_answer_or_a_refusal(answering: Answering) -> None:
    store = JsonStore({"endpoints": [f"unix:{answering.path}"]})

    @QUICK
    @given(ANSWERS)
    @example(EMPTY)
    @example(b'HTTP/1.1 200 OK\r\n\r\n{"result": 1}')
    def holds(answer: bytes) -> None:
        answering.answer = answer
        for ask in (lambda: store.keep_alive(1), lambda: store.change("k", b"v", 1)):
            try:
                ask()
            except (OSError, ValueError, Refused):
                continue

    holds()


async def test_any_answer_of_an_admin_is_an_answer_or_none(answering: Answering) -> None:
    for answer in (EMPTY, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-5\r\nx", b"HTTP/1.1 200 OK\r\n\r\n[1]", b"\xff" * 10):
        answering.answer = answer
        with pytest.raises(OSError):
            await envoy.active(answering.path)


@given(st.binary(max_size=200))
def test_any_chunks_are_read_or_refused(body: bytes) -> None:
    try:
        assert len(unchunked(body)) <= len(body)
    except OSError:
        return


@QUICK
@given(
    st.lists(st.binary(max_size=100) | st.builds(lambda x: json.dumps(x).encode() + b"\n", st.recursive(st.none() | st.text(), st.lists)))
)
def test_any_line_of_a_child_is_a_message_or_none(data: list[bytes]) -> None:
    link = Link(None)  # type: ignore[arg-type]  # it only reads
    for part in data:
        assert all(isinstance(message, dict) for message in link.feed(part))


@pytest.mark.parametrize("message", [{"problem": 5}, {"problem": {"code": "x"}}, {"registered": [1]}, {"ready": {}}, {"problem": None}])
def test_a_message_of_another_form_is_none(message: dict[str, Any]) -> None:
    child = object.__new__(supervisor.Child)
    child.link, child.ready, child.drained, child.problem, child.registered = Link(None), False, False, None, {}  # type: ignore[arg-type]
    child.hear(json.dumps(message).encode() + b"\n")
    assert (child.problem, child.registered) == (None, {})


TEXTS = (b"", b"\xff", b"[" * 100_000, b"1", b'{"code": Infinity, "reason": 1, "message": 2}', b'{"pid": "x"}', b'{"code": 9}', b"null")


@pytest.mark.parametrize("text", TEXTS)
def test_any_file_that_another_process_left_is_read_or_none(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "reason.json"
    path.write_bytes(text)
    assert supervisors._read(path) is None
    place = Home(tmp_path)
    place.prepare()
    place.run_file.write_bytes(text)
    with pytest.raises(DormouseError, match="nothing runs"):
        place.read_run()
    with place.locked():
        pass


# ----------------------------------------------------------------------------------------------------- what a caller makes a library say


def written(many: int, name: str, guard: Callable[[logging.Handler], None]) -> int:
    """Lines in the log after so many records, all in one second."""
    seen = 0

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            nonlocal seen
            seen += 1

    handler = Counting()
    guard(handler)
    for _ in range(many):
        record = logging.LogRecord(name, logging.ERROR, "x.py", 1, "Invalid encoding on %s", (b"\xff",), None)
        record.created = 1_764_000_000.5
        handler.handle(record)
    return seen


def test_what_callers_make_a_library_say_is_bounded() -> None:
    assert written(1000, "grpc._cython.cygrpc", lambda handler: handler.addFilter(log._Flood())) == log.FLOOD
    assert written(1000, "a.handlers.own", lambda handler: handler.addFilter(log._Flood())) == 1000


def test_negative_control_without_the_guard_each_call_is_a_traceback() -> None:
    assert written(1000, "grpc._cython.cygrpc", lambda handler: None) == 1000
