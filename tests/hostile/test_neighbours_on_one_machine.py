"""Another user of the machine, and a web page in a browser on it, beside `dormouse up`.

The other user is `nobody`, which root becomes: where the tests do not run as root, there is none to be tried.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import unavailable
from dormouse import home as homes
from dormouse.home import Home, Run
from dormouse_core.errors import InvalidArgument
from dormouse_testing.etcd_server import EtcdServer
from dormouse_testing.http2 import Connection
from dormouse_testing.places import connected
from dormouse_testing.up import DOUBLE, TOTAL, Up, missing, row, save_models
from dormouse_testing.workers import Client, outputs_of, request_of

NOBODY = 65534
AWAKE = "scaleToZeroAfter: 1h"
ORIGIN = "https://evil.example"
DIAL = """
import json, os, socket, sys
found = {}
for path in json.loads(sys.argv[1]):
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
        found[path] = "open"
    except OSError as error:
        found[path] = type(error).__name__
print(json.dumps([os.getuid(), found]))
"""


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """A folder that everybody may enter: what is closed is what Dormouse closes."""
    if reason := missing():
        unavailable(reason)
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir="/tmp"))
    folder.chmod(0o755)
    started: Up | None = None
    try:
        save_models(folder)
        (folder / "double.yaml").write_text(DOUBLE.replace("scaleToZeroAfter: 3s", AWAKE))
        (folder / "total.yaml").write_text(TOTAL.replace("scaleToZeroAfter: 3s", AWAKE))
        started = Up(folder)
        started.wait_ready()
        with Client(started.gateway) as client:
            for name, width in (("double", 4), ("total", 1)):
                metadata = [("dormouse-session", "secret")] if name == "total" else []
                client.infer(request_of(name, x=row(*[1.0] * width)), metadata, timeout=60)
        yield started
    finally:
        if started is not None:
            started.close()
        shutil.rmtree(folder, ignore_errors=True)


def of_the_system(up: Up) -> set[int]:
    """The processes of the system: `up` and all that it started, by their parents."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = {up.process.pid}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def listening(up: Up) -> tuple[set[int], set[str]]:
    """(ports of TCP, paths of Unix sockets) at which the system listens."""
    inodes = set()
    for pid in of_the_system(up):
        with contextlib.suppress(OSError):
            for entry in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.update(re.findall(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{entry}")))
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                ports.add(int(words[1].rpartition(":")[2], 16))
    paths = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[3] == "00010000" and words[6] in inodes:
            path = words[7]
            paths.add(path if path.startswith("/") else str(up.sockets / path))  # etcd's, which it names in its own folder
    return ports, paths


def as_nobody(program: str, *words: str) -> Any:
    """What the program prints as JSON. It runs in an interpreter that nobody may run: a virtual environment may lie in a closed folder."""
    if os.geteuid() != 0:
        unavailable("becoming another user needs root")
    for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            command = [python, "-I", "-S", "-c", program, *words]
            done = subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, cwd="/", timeout=90)
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout)
    return unavailable("no Python that user nobody may run")


def test_the_system_listens_at_three_ports_and_else_at_closed_sockets(up: Up) -> None:
    """Store, its peers, relay, workers, leader, the operator's control, xDS, admin: nobody else opens any of them."""
    ports, paths = listening(up)
    run = up.run
    assert ports == {int(run["gateway"].rpartition(":")[2]), *run["metrics"].values()}
    names = {Path(path).name for path in paths}
    assert {"etcd:1", "etcd:2", "relay.sock", "agents.sock", "control.sock", "provider.sock", "xds.sock", "envoy.sock"} <= names
    assert len([name for name in names if name.endswith("-calls.sock")]) == 2
    uid, found = as_nobody(DIAL, json.dumps(sorted(paths)))
    assert uid == NOBODY
    assert found == dict.fromkeys(paths, "PermissionError")


def test_negative_control_in_an_open_folder_an_open_socket_is_anybodys(up: Up) -> None:
    store = up.sockets / "etcd:1"
    folders = (up.folder / ".dormouse", up.sockets)
    try:
        for folder in folders:
            folder.chmod(0o755)
        store.chmod(0o777)
        assert as_nobody(DIAL, json.dumps([str(store)]))[1] == {str(store): "open"}
    finally:
        store.chmod(0o755)
        for folder in folders:
            folder.chmod(0o700)


def test_nobody_else_reads_what_is_stored(up: Up) -> None:
    """The files: the store's, the workers' specs, logs of runs."""
    look = "import json, os, sys; print(json.dumps([os.access(path, os.R_OK) for path in json.loads(sys.argv[1])]))"
    paths = [str(path) for path in (up.folder / ".dormouse").rglob("*")]
    assert len(paths) > 5
    assert not any(as_nobody(look, json.dumps(paths)))


@pytest.mark.parametrize("verb", ["GET", "POST", "OPTIONS"])
def test_no_port_answers_a_web_page(up: Up, verb: str) -> None:
    """A page of another origin may send, but is given nothing to read; the gateway does not speak its protocol."""
    ports, _ = listening(up)
    for port in ports:
        answer = browser(f"127.0.0.1:{port}", verb)
        assert b"access-control-allow" not in answer.lower()
        assert not answer.startswith(b"HTTP/") or port != int(up.gateway.rpartition(":")[2])


def browser(address: str, verb: str, path: str = "/v3/kv/range", body: str = '{"key":"AA==","range_end":"AA=="}') -> bytes:
    """The answer's bytes."""
    head = f"{verb} {path} HTTP/1.1\r\nhost: {address}\r\norigin: {ORIGIN}\r\naccess-control-request-method: POST\r\nconnection: close\r\n"
    with connected(address) as sock:
        sock.sendall(f"{head}content-type: text/plain\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        answer = b""
        with contextlib.suppress(OSError):
            while part := sock.recv(65536):
                answer += part
        return answer


def test_negative_control_etcd_on_a_port_answers_it(etcd_server: EtcdServer) -> None:
    """As it was: its JSON gateway gives every origin all that is stored."""
    answer = browser(etcd_server.endpoint, "POST")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"access-control-allow-origin: *" in answer.lower()
    assert b'"kvs"' in answer or b'"header"' in answer


def test_a_header_that_is_no_text_is_answered_and_floods_no_log(up: Up) -> None:
    """grpcio writes a traceback for each; so many a second are enough."""
    headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/inference.GRPCInferenceService/ServerReady"), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"x-name", b"\xff"),
    ]  # fmt: skip
    before, began = len(up.log), time.monotonic()
    for _ in range(10):
        with Connection(up.gateway) as connection:
            assert [connection.call(headers, [b"\0\0\0\0\0"]) for _ in range(30)] == ["answered"] * 30
    seconds = int(time.monotonic() - began) + 2
    assert up.log[before:].count("Invalid encoding") <= 11 * seconds
    with Client(up.gateway) as client:
        assert outputs_of(client.infer(request_of("double", x=row(1, 2, 3, 4)), timeout=60))["y"].tolist() == [[2, 4, 6, 8]]


# ------------------------------------------------------------------------------------------------------- a folder that another user made


def link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    (tmp_path / "elsewhere" / "precious").write_text("mine")
    path.symlink_to(tmp_path / "elsewhere")


def theirs(path: Path, tmp_path: Path) -> None:
    path.mkdir()
    os.chown(path, NOBODY, NOBODY)


PLACES: dict[str, Callable[[Home], Path]] = {"root": lambda h: h.root, "specs": lambda h: h.specs, "reasons": lambda h: h.reasons}


@pytest.mark.parametrize("how", [link, theirs])
@pytest.mark.parametrize("place", [*PLACES, "etcd"])
def test_a_folder_of_another_user_or_a_link_is_refused(tmp_path: Path, place: str, how: Callable[[Path, Path], None]) -> None:
    """A link would have the files behind it removed; in a folder of another, that user has the control socket and the data."""
    if how is theirs and os.geteuid() != 0:
        unavailable("giving a folder away needs root")
    home = Home(tmp_path)
    path = home.etcd if place == "etcd" else PLACES[place](home)
    path.parent.mkdir(exist_ok=True)
    how(path, tmp_path)
    with pytest.raises(InvalidArgument, match=r"a link found|belongs to user"):
        home.prepare()
    assert how is theirs or (tmp_path / "elsewhere" / "precious").read_text() == "mine"
    if place == "root":
        with pytest.raises(InvalidArgument, match=r"a link found|belongs to user"):
            home.read_run()


def test_negative_control_without_the_look_the_files_behind_a_link_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path)
    home.root.mkdir()
    link(home.specs, tmp_path)
    monkeypatch.setattr(homes, "own", lambda folder: None)
    home.prepare()
    with home.locked():
        assert not (tmp_path / "elsewhere" / "precious").exists()


def test_a_link_in_place_of_a_file_is_not_written_through(tmp_path: Path) -> None:
    """As in a folder that came with its `.dormouse`."""
    home = Home(tmp_path)
    home.prepare()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    home.run_file.with_suffix(".part").symlink_to(precious)
    home.write_run(Run(os.getpid(), "unix:/x", "127.0.0.1:1", {}))
    (home.root / "lock").symlink_to(precious)
    with pytest.raises(InvalidArgument, match="a link found"), home.locked():
        pass
    assert precious.read_text() == "mine"


def test_an_open_folder_of_ones_own_is_closed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.root.mkdir(mode=0o777)
    home.prepare()
    assert home.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["a,b", "ż", "with space", "x" * 120])
def test_sockets_have_names_that_a_header_can_carry(tmp_path: Path, name: str) -> None:
    """Envoy is told workers' sockets in a list with commas."""
    home = Home(tmp_path / name)
    home.directory.mkdir()
    home.prepare()
    with home.sockets() as folder, socket.socket(socket.AF_UNIX) as bound:
        assert homes.PLAIN.fullmatch(str(folder))
        assert folder.stat().st_mode & 0o777 == 0o700
        bound.bind(str(folder / "w123456-calls.sock"))
