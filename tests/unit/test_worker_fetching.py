"""A model is fetched whole or not at all, from each kind of place, and what cannot be had says why."""

import hashlib
import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
import types
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from dormouse_core import modeluris
from dormouse_core.backoff import Backoff
from dormouse_testing.ports import free_port
from dormouse_worker import fetching
from dormouse_worker.fetching import buckets, downloads, hub
from dormouse_worker.fetching.downloads import PARTIAL, Passing, Source, download
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable

BODY = b"model" * 100_000
DIGEST = hashlib.sha256(BODY).hexdigest()


class Fake:
    """A source that fails as often as it is told."""

    name = "fake://model"

    def __init__(self, files: dict[str, bytes], *errors: Exception) -> None:
        self.content = files
        self.errors = list(errors)
        self.reads = 0

    def files(self) -> list[str]:
        return list(self.content)

    def read(self, file: str) -> Iterator[bytes]:
        self.reads += 1
        yield self.content[file][:10]
        if self.errors:
            raise self.errors.pop(0)
        yield self.content[file][10:]


@pytest.fixture
def bring(tmp_path: Path) -> Callable[..., Path]:
    def bring(source: Source, sha256: str | None = None) -> Path:
        return download(source, "fake://model", sha256, tmp_path / "models", pause=lambda seconds: None)

    return bring


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "models").iterdir()]


def test_one_file_is_a_file_and_is_found_again(bring: Callable[..., Path]) -> None:
    source = Fake({"m.onnx": BODY})
    path = bring(source, DIGEST)
    assert (path.name, path.read_bytes()) == ("m.onnx", BODY)
    assert bring(source, DIGEST) == path
    assert source.reads == 1


def test_several_are_a_folder(bring: Callable[..., Path]) -> None:
    path = bring(Fake({"m.onnx": b"a", "weights/w.bin": b"b"}))
    assert (path / "m.onnx").read_bytes() + (path / "weights" / "w.bin").read_bytes() == b"ab"
    assert bring(Fake({"m.onnx": b"a", "w.bin": b"b"})).is_dir(), "also where none is in a folder of its own"


def test_a_transfer_that_breaks_off_is_tried_again(bring: Callable[..., Path], tmp_path: Path) -> None:
    source = Fake({"m.onnx": BODY}, Passing("reset"), Passing("reset"))
    assert bring(source, DIGEST).read_bytes() == BODY
    assert source.reads == 3
    assert len(left(tmp_path)) == 1


@pytest.mark.parametrize(
    ("errors", "sha256", "kind", "text"),
    [
        ([Passing("reset by peer")] * 3, None, ModelUnavailable, "reset by peer, 3 times"),
        ([ModelUnavailable("404")], None, ModelUnavailable, "404"),
        ([OSError(28, "No space left on device")], None, ModelUnavailable, "cannot be kept: No space left on device"),
        ([], "0" * 64, ModelInvalid, "is expected"),
        ([KeyboardInterrupt("stop")], None, KeyboardInterrupt, "stop"),
    ],
)
def test_nothing_is_left_of_what_failed(
    bring: Callable[..., Path], tmp_path: Path, errors: list[Exception], sha256: str | None, kind: type[BaseException], text: str
) -> None:
    with pytest.raises(kind, match=text):
        bring(Fake({"m.onnx": BODY}, *errors), sha256)
    assert left(tmp_path) == []


def test_what_a_killed_worker_left_is_cleared(bring: Callable[..., Path], tmp_path: Path) -> None:
    half = tmp_path / "models" / f"abc{PARTIAL}"
    half.mkdir(parents=True)
    (half / "m.onnx").write_bytes(b"half")
    bring(Fake({"m.onnx": BODY}))
    assert f"abc{PARTIAL}" not in left(tmp_path)


@pytest.mark.parametrize("name", ["../m.onnx", "/etc/passwd", "a/../../m.onnx", "."])
def test_no_file_leads_out_of_the_folder(bring: Callable[..., Path], tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelInvalid, match="points outside"):
        bring(Fake({name: b"x", "m.onnx": b"y"}))
    assert left(tmp_path) == []


def test_a_folder_has_the_digest_of_what_sha256sum_prints_of_it(bring: Callable[..., Path], tmp_path: Path) -> None:
    source = Fake({"m.onnx": b"a", "w/w.bin": b"b"})
    listing = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in source.content.items())
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert (bring(source, digest) / "w" / "w.bin").read_bytes() == b"b"
    with pytest.raises(ModelInvalid, match=rf"fake://model has {digest}, the digest of its 2 files \(m\.onnx, w/w\.bin\); "):
        bring(source, DIGEST)
    assert len(left(tmp_path)) == 1
    with pytest.raises(ModelUnavailable, match="no file is there"):
        bring(Fake({}))


# ------------------------------------------------------------------------------------------------------------------ servers


class Handler(http.server.BaseHTTPRequestHandler):
    """What its server's `answers` say for a path: (status, headers, body)."""

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        server.asked.append((self.path, self.headers.get("Authorization", "")))
        status, headers, body = server.answers.get(self.path.partition("?")[0], (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, text: str, *words: object) -> None:
        """Tests ask `asked`."""


class Server(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.host = f"localhost:{self.server_address[1]}"
        self.tls: ssl.SSLContext | None = None

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The handshake is its handler's: one that the caller breaks off ends with its connection."""
        connection, address = super().get_request()
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Callers break off on purpose."""


def serving(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2", "-addext", "subjectAltName=DNS:localhost"]
    words += ["-addext", "basicConstraints=critical,CA:FALSE"]  # rustls takes no authority for a server
    subprocess.run(["openssl", "req", *words, "-out", cert, "-keyout", key], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def secure(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    server = Server()
    server.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.tls.load_cert_chain(*certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv(fetching.FOLDER, str(tmp_path / "models"))
    monkeypatch.setattr(downloads, "AGAIN", Backoff(0.0, 0.0))
    yield from serving(server)


def fetch(uri: str, sha256: str | None = None) -> Path:
    return fetching.fetch(uri, sha256, "")


def test_https(secure: Server, tmp_path: Path) -> None:
    secure.answers["/a/m%20x.onnx"] = (200, {}, BODY)
    path = fetch(f"https://{secure.host}/a/m%20x.onnx?signature=secret", DIGEST)
    assert (path.name, path.read_bytes()) == ("m x.onnx", BODY)


def test_https_says_what_the_server_said_and_no_signature(secure: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="404 Not Found") as found:
        fetch(f"https://{secure.host}/none.onnx?signature=secret")
    assert "secret" not in found.value.message
    assert len(secure.asked) == 1
    secure.answers["/busy.onnx"] = (503, {}, b"")
    with pytest.raises(ModelUnavailable, match="503 Service Unavailable, 3 times"):
        fetch(f"https://{secure.host}/busy.onnx")
    assert left(tmp_path) == []


def test_a_body_that_ends_early_is_no_model(secure: Server, tmp_path: Path) -> None:
    secure.answers["/m.onnx"] = (200, {"Content-Length": str(len(BODY) + 1)}, BODY)
    with pytest.raises(ModelUnavailable, match="broke off after 500000 of 500001 bytes, 3 times"):
        fetch(f"https://{secure.host}/m.onnx")
    assert left(tmp_path) == []


CHUNKED = {"Transfer-Encoding": "chunked", "Content-Length": ""}


@pytest.mark.parametrize("headers", [{"Content-Length": ""}, {"Content-Length": "many"}, {"Content-Length": "\xb2"}, CHUNKED])
def test_a_body_whose_length_is_not_told_is_taken_to_its_end(secure: Server, headers: dict[str, str]) -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if headers is CHUNKED else BODY
    secure.answers["/m.onnx"] = (200, headers, body)
    assert fetch(f"https://{secure.host}/m.onnx", DIGEST).read_bytes() == BODY
    assert [authorization for _, authorization in secure.asked] == [""], "no token is there"


def test_a_transfer_that_the_server_breaks_off_is_passing(secure: Server, tmp_path: Path) -> None:
    secure.answers["/m.onnx"] = (200, CHUNKED, b"fffff\r\nmod")
    with pytest.raises(ModelUnavailable, match=r"the transfer broke off: IncompleteRead\(\d bytes read.*, 3 times"):
        fetch(f"https://{secure.host}/m.onnx")
    assert left(tmp_path) == []


def test_a_transfer_without_a_word_of_why_it_broke_off_is_told_by_its_kind(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", silent)
    with pytest.raises(ModelUnavailable, match="the transfer broke off: TimeoutError, 3 times"):
        fetch(f"https://{secure.host}/m.onnx")


def test_a_server_that_cannot_be_reached_is_passing(secure: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"the server cannot be reached: .*Connection refused.*, 3 times"):
        fetch(f"https://127.0.0.1:{free_port()}/m.onnx")


def test_an_unknown_authority_and_a_redirect_to_http_are_refused(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    secure.answers["/m.onnx"] = (302, {"Location": "http://localhost/m.onnx"}, b"")
    with pytest.raises(ModelInvalid, match="another scheme"):
        fetch(f"https://{secure.host}/m.onnx")
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ModelUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"https://{secure.host}/m.onnx")


def test_hugging_face(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, listed in two pages; the token goes to the hub and not to where it redirects."""
    monkeypatch.setenv("HF_ENDPOINT", f"https://{secure.host}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tree, link = "/api/models/me/net/tree/v1/onnx", f'<https://{secure.host}/more>; rel="next"'
    secure.answers[tree] = (200, {"Link": link}, json.dumps([{"type": "file", "path": "onnx/m.onnx"}, {"type": "directory"}]).encode())
    secure.answers["/more"] = (200, {}, json.dumps([{"type": "file", "path": "onnx/w/w.bin"}]).encode())
    secure.answers["/me/net/resolve/v1/onnx/m.onnx"] = (302, {"Location": f"https://{secure.host}/cdn"}, b"")
    secure.answers["/cdn"] = (200, {}, BODY)
    secure.answers["/me/net/resolve/v1/onnx/w/w.bin"] = (200, {}, b"w")
    path = fetch("hf://me/net@v1/onnx/")
    assert (path / "m.onnx").read_bytes() + (path / "w" / "w.bin").read_bytes() == BODY + b"w"
    assert dict(secure.asked)["/cdn"] == ""
    assert dict(secure.asked)["/me/net/resolve/v1/onnx/m.onnx"] == "Bearer hf_secret"
    assert fetch("hf://me/net@v1/onnx/m.onnx", DIGEST).name == "m.onnx"


@pytest.mark.parametrize(
    "link", ["https://other.example/more", "https://{host}.other.example/more", "http://{host}/more", "https://{host}@other.example/"]
)
def test_the_token_does_not_go_where_a_listing_goes_on(secure: Server, monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    """The control is `test_hugging_face`: a page of the same server gets it."""
    monkeypatch.setenv("HF_ENDPOINT", f"https://{secure.host}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    page = json.dumps([{"type": "file", "path": "onnx/m.onnx"}]).encode()
    secure.answers["/api/models/me/net/tree/v1/onnx"] = (200, {"Link": f'<{link.format(host=secure.host)}>; rel="next"'}, page)
    with pytest.raises(ModelUnavailable, match="the next part of its listing is at another server"):
        fetch("hf://me/net@v1/onnx/")
    assert len(secure.asked) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"type": "file"}]', "5", "[" * 100_000, '{"a": 1}'])
def test_a_listing_that_cannot_be_read_is_told(secure: Server, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"https://{secure.host}")
    secure.answers["/api/models/me/net/tree/v1/onnx"] = (200, {}, text.encode())
    with pytest.raises(ModelUnavailable, match="its listing cannot be read"):
        fetch("hf://me/net@v1/onnx/")


def test_the_token_goes_to_no_hub_without_encryption(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{secure.host}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ModelInvalid, match=r"HF_ENDPOINT: .* found, https://host is allowed"):
        fetch("hf://me/net@v1/onnx/m.onnx")
    assert secure.asked == []


def test_no_page_of_a_listing_is_read_without_end(secure: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"https://{secure.host}")
    page = json.dumps([{"type": "file", "path": "onnx/m.onnx"}]).encode()
    secure.answers["/api/models/me/net/tree/v1/onnx"] = (200, {}, page)
    monkeypatch.setattr(hub, "PAGE", len(page) - 1)
    with pytest.raises(ModelUnavailable, match=f"its listing cannot be read: ValueError: more than {len(page) - 1} bytes"):
        fetch("hf://me/net@v1/onnx/")


LISTING = """<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>models</Name><KeyCount>2</KeyCount>
<IsTruncated>false</IsTruncated>{}</ListBucketResult>"""
ENTRY = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag><Size>{}</Size></Contents>"
OBJECT = {"ETag": '"e"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """As much of S3 as a reader needs."""
    server = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{server.host}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setenv(fetching.FOLDER, str(tmp_path / "models"))
    monkeypatch.setattr(downloads, "AGAIN", Backoff(0.0, 0.0))
    yield from serving(server)


def test_s3(bucket: Server) -> None:
    bucket.answers["/models/v1/m.onnx"] = (200, OBJECT, BODY)
    bucket.answers["/models/v1/w/w.bin"] = (200, OBJECT, b"w")
    bucket.answers["/models"] = (200, {}, LISTING.format(ENTRY.format("v1/m.onnx", len(BODY)) + ENTRY.format("v1/w/w.bin", 1)).encode())
    path = fetch("s3://models/v1/m.onnx", DIGEST)
    assert (path.name, path.read_bytes()) == ("m.onnx", BODY)
    folder = fetch("s3://models/v1/")
    assert (folder / "m.onnx").read_bytes() + (folder / "w" / "w.bin").read_bytes() == BODY + b"w"


def test_a_folder_of_a_bucket_is_what_is_below_it_and_a_whole_bucket_is_one(bucket: Server) -> None:
    """Keys that end in a slash mark folders, as consoles make them."""
    keys = {"v1/m.onnx": BODY, "v1/w/w.bin": b"w", "v1/empty.txt": b""}
    markers = "".join(ENTRY.format(key, 0) for key in ("v1/", "v1/w/", "v1/none/"))
    listing = LISTING.format(markers + "".join(ENTRY.format(key, len(body)) for key, body in keys.items())).encode()
    bucket.answers = {"/models": (200, {}, listing)} | {f"/models/{key}": (200, OBJECT, body) for key, body in keys.items()}
    for uri, root in (("s3://models/v1/", ""), ("s3://models/", "v1")):
        bucket.asked.clear()
        path = fetch(uri)
        found = {str(each.relative_to(path / root)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
        assert found == {"m.onnx": BODY, "w/w.bin": b"w", "empty.txt": b""}
        [listed] = [parse_qs(urlsplit(asked).query) for asked, _ in bucket.asked if "list-type" in asked]
        assert [asked for asked, _ in bucket.asked].count("/models/v1/m.onnx") == 1, "only what is empty is asked for twice"
        assert listed.get("prefix") == ([f"{uri.rpartition('models/')[2]}"] if root == "" else None)


def test_a_bucket_of_google_cloud_storage(bucket: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    account = {"gcs_base_url": f"http://{bucket.host}", "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    bucket.answers["/models/v1%2Fm%2Eonnx"] = (200, OBJECT, BODY)
    assert fetch("gs://models/v1/m.onnx", DIGEST).read_bytes() == BODY


def test_s3_behind_an_authority_of_ones_own(secure: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """SSL_CERT_FILE is for buckets too, though their library has trust of its own."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{secure.host}")
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    secure.answers["/models/m.onnx"] = (200, OBJECT, BODY)
    assert fetch("s3://models/m.onnx", DIGEST).read_bytes() == BODY
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ModelUnavailable, match=r"SSL_CERT_FILE: .*none\.pem cannot be read"):
        fetch("s3://models/other.onnx")


def test_s3_says_what_is_missing(bucket: Server, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"s3://models/none\.onnx") as found:
        fetch("s3://models/none.onnx")
    assert "\n" not in found.value.message
    assert left(tmp_path) == []
    assert len(bucket.asked) == 1, "another try finds it no more"
    bucket.answers["/models/m.onnx"] = (403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    for uri in ("s3://models/m.onnx", "s3://models/v1/"):
        bucket.answers["/models"] = bucket.answers["/models/m.onnx"]
        bucket.asked.clear()
        with pytest.raises(ModelUnavailable, match=rf"^spec.model.uri: {uri}: "):
            fetch(uri)
        assert len(bucket.asked) == 1, "refused, and not tried again"


@pytest.mark.parametrize("uri", ["s3://models/m.onnx", "s3://models/v1/"])
def test_a_bucket_that_fails_is_tried_again(bucket: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setattr(buckets, "RETRIES", {"max_retries": 0, "retry_timeout": timedelta(seconds=30)})
    bucket.answers = {"/models/m.onnx": (500, {}, b""), "/models": (500, {}, b"")}
    with pytest.raises(ModelUnavailable, match=f"{uri}: .*, 3 times"):
        fetch(uri)
    assert left(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------------ within reach


@pytest.mark.parametrize("scheme", ["pvc", "configmap"])
def test_what_is_mounted_is_loaded_from_where_it_lies(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ConfigMap's keys are links to links, as the kubelet makes them; none leads out of the mount."""
    monkeypatch.setattr(modeluris, "MOUNT", str(tmp_path))
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "m.onnx").write_bytes(BODY)
    (tmp_path / "m.onnx").symlink_to("..data/m.onnx")
    (tmp_path / "out.onnx").symlink_to("/etc/hostname")
    assert fetch(f"{scheme}://models/m.onnx", DIGEST).read_bytes() == BODY
    with pytest.raises(ModelInvalid, match="points outside"):
        fetch(f"{scheme}://models/out.onnx")
    with pytest.raises(ModelUnavailable, match=f"the {'claim' if scheme == 'pvc' else 'ConfigMap'} models"):
        fetch(f"{scheme}://models/none.onnx")


def test_a_file_is_loaded_from_where_it_lies_below_the_model_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fetching.FOLDER, str(tmp_path / "models"))
    (tmp_path / "m.onnx").write_bytes(BODY)
    assert fetching.fetch("file://m.onnx", None, str(tmp_path)) == tmp_path / "m.onnx"
    with pytest.raises(ModelUnavailable, match="below the model root"):
        fetching.fetch("file://none.onnx", None, str(tmp_path))


@pytest.mark.parametrize(
    ("uri", "read_only", "private"),
    [
        ("https://host/m.onnx", False, True),
        ("s3://models/m.onnx", False, True),
        ("hf://me/net@v1/m.onnx", False, True),
        ("file://m.onnx", True, True),
        ("file://m.onnx", False, False),
        ("pvc://models/m.onnx", True, False),
        ("configmap://models/m.onnx", False, False),
    ],
)
def test_what_nobody_else_can_change(uri: str, read_only: bool, private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download, and an image's file system. A claim that is read-only here may be written to elsewhere."""
    flags = types.SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID if read_only else os.ST_NOSUID)
    monkeypatch.setattr(os, "statvfs", lambda path: flags)
    assert fetching.private(uri, tmp_path) is private


def test_a_worker_without_a_folder_for_downloads_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fetching.FOLDER, raising=False)
    with pytest.raises(ModelUnavailable, match="no folder for downloads"):
        fetch("https://localhost/m.onnx")
    with pytest.raises(ModelInvalid, match="are allowed"):
        fetch("ftp://localhost/m.onnx")
