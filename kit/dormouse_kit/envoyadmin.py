"""What an Envoy of ours says on its admin interface, a Unix socket."""

import asyncio
import contextlib
import re


async def admin(path: str, method: str, target: str) -> str:
    """Envoy's answer to one admin request. OSError: it does not answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(f"{method} {target} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head.lower():
        body = unchunked(body)
    return body.decode(errors="replace")


def unchunked(body: bytes) -> bytes:
    """HTTP/1.1's chunked coding taken off (RFC 9112, 7.1); trailers and extensions do not occur here. OSError: it cannot be read."""
    out = []
    while body:
        size, _, body = body.partition(b"\r\n")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", size):
            raise OSError("the admin's answer cannot be read")
        length = int(size, 16)
        out.append(body[:length])
        body = body[length + 2 :]
    return b"".join(out)
