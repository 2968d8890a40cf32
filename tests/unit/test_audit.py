"""`make audit`, against a database on this machine that answers as OSV does: what it knows is told, and that it did not answer, too."""

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KNOWN = {("PyPI", "jinja2", "2.4.1"): ["GHSA-1", "PYSEC-2"], ("Bitnami", "etcd", "3.6.4"): ["BIT-etcd-1"]}
TOLD: dict[str, dict[str, Any]] = {
    "GHSA-1": {
        "summary": "Sandbox escape", "aliases": ["CVE-2014-1"],
        "affected": [{
            "package": {"name": "Jinja2"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.7.2"}]},
                       {"type": "GIT", "events": [{"fixed": "acb672b6"}]}],
        }],
    },
    "PYSEC-2": {"summary": ""},
    "BIT-etcd-1": {"summary": "Auth bypass"},
}  # fmt: skip


def load() -> ModuleType:
    place = importlib.util.spec_from_file_location("audit_tool", ROOT / "tools/audit.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules["audit_tool"] = module  # dataclasses look there
    place.loader.exec_module(module)
    return module


audit = load()


class Database(BaseHTTPRequestHandler):
    """One vulnerability a page. `broken`: what is answered instead."""

    asked: list[dict[str, Any]]
    broken: bytes | None = None

    def do_POST(self) -> None:
        queries = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        type(self).asked += queries
        results = []
        for query in queries:
            known = KNOWN.get((query["package"]["ecosystem"], query["package"]["name"], query["version"]), [])
            page = int(query.get("page_token") or 0)
            more = {"next_page_token": str(page + 1)} if page + 1 < len(known) else {}
            results.append({"vulns": [{"id": known[page]}], **more} if known else {})
        self._answer({"results": results})

    def do_GET(self) -> None:
        self._answer(TOLD[self.path.rpartition("/")[2]])

    def _answer(self, found: object) -> None:
        body = self.broken if self.broken is not None else json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def database() -> Iterator[str]:
    Database.asked, Database.broken = [], None
    with ThreadingHTTPServer(("127.0.0.1", 0), Database) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def project(folder: Path, *pins: str, etcd: str = "3.5.99") -> Path:
    (folder / "requirements").mkdir()
    text = "".join(f"{pin} \\\n    --hash=sha256:{'0' * 64}\n" for pin in pins)
    (folder / "requirements/run.txt").write_text(f"# made by a tool\n{text}")
    (folder / "requirements/dev.txt").write_text(text)
    (folder / "deploy/helm/dormouse").mkdir(parents=True)
    (folder / "deploy/helm/dormouse/values.yaml").write_text(f"  image: {{repository: quay.io/coreos/etcd, tag: v{etcd}, pullPolicy: x}}\n")
    return folder


def test_what_is_known_is_told_with_where_and_what_mends_it(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = project(tmp_path, "jinja2==2.4.1", "attrs==26.1.0", etcd="3.6.4")
    assert audit.main(["--database", database], root) == 1
    said = capsys.readouterr().out
    assert "jinja2 2.4.1 (dev.txt, run.txt): GHSA-1, CVE-2014-1: Sandbox escape; mended in 2.7.2\n" in said
    assert "PYSEC-2: no summary; no mended version is known" in said, "also of the second page"
    assert "etcd 3.6.4 (values.yaml): BIT-etcd-1" in said
    assert "3 locked packages, 3 known vulnerabilities, 0 accepted" in said
    assert "attrs" not in said


def test_what_was_looked_at_is_told_and_counts_no_more(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted = ["--accept", "CVE-2014-1", "--accept", "PYSEC-2"]
    assert audit.main(["--database", database, *accepted], project(tmp_path, "jinja2==2.4.1")) == 0
    assert "accepted: jinja2 2.4.1" in capsys.readouterr().out


def test_nothing_known_is_nothing_known(database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main(["--database", database], project(tmp_path, "attrs==26.1.0")) == 0
    assert "2 locked packages, 0 known vulnerabilities" in capsys.readouterr().out


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"<html>a proxy's page</html>",
        b"[]",
        b"{}",
        b'{"results": [{}]}',
        b'{"results": [5, []]}',
        b'{"results": [{"vulns": [{}]}, {}]}',
        b"{}{",
    ],
)
def test_no_answer_is_not_taken_for_nothing_known(broken: bytes, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Database.broken = broken
    assert audit.main(["--database", database], project(tmp_path, "attrs==26.1.0")) == 2
    said = capsys.readouterr()
    assert "the database could not be asked, so NOTHING is known about 2 locked packages" in said.err
    assert said.out == ""


@pytest.mark.parametrize("nobody", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://127.0.0.1:1"])
def test_nor_is_nobody_there(nobody: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one sentence, and with another status than for what is known."""
    assert audit.main(["--database", nobody], project(tmp_path, "attrs==26.1.0")) == 2
    said = capsys.readouterr()
    assert "NOTHING is known" in said.err
    assert (said.err.count("\n"), said.out) == (1, "")


def test_everything_that_is_locked_is_asked_about(database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the project itself: each pin of each file, and the programs."""
    assert audit.main(["--database", database]) in (0, 1)
    asked = {(query["package"]["name"], query["version"]) for query in Database.asked}
    for path in (ROOT / "requirements").glob("*.txt"):
        pins = [
            line.split(" ")[0].split("==") for line in path.read_text().splitlines() if "==" in line and not line.startswith((" ", "#"))
        ]
        assert pins
        assert {(name.lower(), version) for name, version in pins} <= asked
    assert {name for name, _ in asked} >= {"envoy", "etcd"}
    assert {query["version"] for query in Database.asked if query["package"]["name"] == "etcd"} >= {"3.6.16"}


def test_the_charts_etcd_has_its_users_rights_mended() -> None:
    """CVE-2026-73499, the latest of those by which a user passes its rights: mended in 3.6.14."""
    (version,) = [package.version for package, places in audit.locked().items() if places == ["values.yaml"]]
    assert tuple(map(int, version.split("."))) >= (3, 6, 14)
