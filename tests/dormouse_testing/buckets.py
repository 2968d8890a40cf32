"""As much of S3 as a backup needs: objects that are put, whole or in parts, read, listed and deleted."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

LISTING = "<ListBucketResult><Name>b</Name><KeyCount>{}</KeyCount><IsTruncated>false</IsTruncated>{}</ListBucketResult>"
ENTRY = "<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag><Size>{}</Size></Contents>"


class S3:
    """`objects`: by bucket/key. `refusing`: it answers 403."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.refusing = False
        self._parts: dict[int, bytes] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                code, found = (
                    (403, b"<Error><Code>AccessDenied</Code></Error>") if outer.refusing else outer._answer(self.command, self.path, body)
                )
                self.send_response(code)
                for name, value in {
                    "Content-Length": str(len(found)),
                    "ETag": '"e"',
                    "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(found)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the library's names

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def _answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        split = urlsplit(target)
        key, query = split.path.lstrip("/").replace("%2D", "-").replace("%2E", "."), parse_qs(split.query, keep_blank_values=True)
        match method:
            case "PUT" if "partNumber" in query:
                self._parts[int(query["partNumber"][0])] = body
                return 200, b""
            case "PUT":
                self.objects[key] = body
                return 200, b""
            case "POST" if "uploads" in query:
                return 200, b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            case "POST" if "uploadId" in query:
                self.objects[key] = b"".join(self._parts[number] for number in sorted(self._parts))
                return 200, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            case "POST" if "delete" in query:
                gone = [part.partition("<")[0] for part in body.decode().split("<Key>")[1:]]
                for name in gone:
                    self.objects.pop(f"{key.rstrip('/')}/{name}", None)
                told = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in gone)
                return 200, f"<DeleteResult>{told}</DeleteResult>".encode()
            case "DELETE":
                self.objects.pop(key, None)
                return 204, b""
            case "GET" if "list-type" in query:
                prefix = f"{key.rstrip('/')}/"
                below = query.get("prefix", [""])[0]
                found = {name.removeprefix(prefix): len(value) for name, value in self.objects.items() if name.startswith(prefix + below)}
                return 200, LISTING.format(len(found), "".join(ENTRY.format(*each) for each in sorted(found.items()))).encode()
            case "GET" if key in self.objects:
                return 200, self.objects[key]
        return 404, b"<Error><Code>NoSuchKey</Code></Error>"


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    made = S3()
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()
