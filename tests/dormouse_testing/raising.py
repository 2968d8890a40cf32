"""ASGI applications that fail in every place where one can, for `test_worker_transport`."""

from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    how = dict(scope["headers"]).get(b"how", b"")
    while (await receive())["more_body"]:
        pass
    if how == b"at once":
        raise RuntimeError("boom")
    kind = b"application/grpc" if how == b"wrong type" else b"application/x-dormouse-reply"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)], "trailers": False})
    if how == b"after the headers":
        raise RuntimeError("boom")
    await send({"type": "http.response.body", "body": b"\0\0\0\0\1", "more_body": how == b"in the body"})
    if how == b"in the body":
        raise RuntimeError("boom")
