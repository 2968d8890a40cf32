"""What a member's peers say, or whatever answers in their place: understood, nobody, or not known."""

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from dormouse_core.members import Answer, Member, Unclear
from dormouse_kit.etcd.membership import asked
from dormouse_testing.ports import free_port

GOOD = b'[{"id": 18446744073709551615, "peerURLs": ["http://a:2380"], "name": "e-0"}, {"id": 2, "peerURLs": ["b"], "isLearner": true}]'


class Peer(http.server.BaseHTTPRequestHandler):
    body, cluster, status = GOOD, "abc", 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        if self.cluster:
            self.send_header("X-Etcd-Cluster-ID", self.cluster)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[tuple[str, type[Peer]]]:
    handler = type("Handler", (Peer,), {})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


async def test_a_members_answer_is_read(peer: tuple[str, type[Peer]]) -> None:
    members = (Member(2**64 - 1, "e-0", ("http://a:2380",)), Member(2, "", ("b",), learner=True))
    assert await asked(peer[0], None) == Answer("abc", members)


@pytest.mark.parametrize(
    ("body", "cluster", "status"),
    [
        (b"[]", "abc", 200),
        (b"{}", "abc", 200),
        (b"null", "abc", 200),
        (b"[1]", "abc", 200),
        (b'[{"id": 1}]', "abc", 200),
        (b'[{"id": "x", "peerURLs": ["a"]}]', "abc", 200),
        (b'[{"id": 1, "peerURLs": "a"}]', "abc", 200),
        (b"\xff", "abc", 200),
        (b"[" * 100_000, "abc", 200),
        (GOOD[:-1] + b" " * (2 << 20) + b"]", "abc", 200),
        (GOOD, "", 200),
        (GOOD, "abc", 503),
    ],
)
async def test_an_answer_that_is_not_understood_is_not_nobody(peer: tuple[str, type[Peer]], body: bytes, cluster: str, status: int) -> None:
    peer[1].body, peer[1].cluster, peer[1].status = body, cluster, status
    assert isinstance(await asked(peer[0], None), Unclear)


async def test_nobody_is_there_where_a_connection_is_refused() -> None:
    assert await asked(f"http://127.0.0.1:{free_port()}", None) is None


async def test_an_address_that_is_none_is_not_nobody() -> None:
    assert isinstance(await asked("http://[bad", None), Unclear)


@pytest.mark.parametrize("code", [socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_AGAIN, socket.EAI_FAIL])
async def test_nobody_is_there_where_there_is_no_such_name_and_not_where_a_name_server_has_trouble(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """ "No data" is also what glibc says where the question for an IPv4 address fails at the server and the one for IPv6 finds nothing."""

    def resolve(*_: Any, **__: Any) -> None:
        raise socket.gaierror(code, "as the C library says it")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    found = await asked("http://e-1.peers:2380", None)
    assert (found is None) is (code == socket.EAI_NONAME)
    assert found is None or isinstance(found, Unclear)
