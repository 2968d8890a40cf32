"""A gRPC server of our options that gives back what it is sent, for tests of channels."""

import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from dormouse_kit.grpc_options import Options, server_options

METHOD = "/t.T/E"


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[str]:
    """Its address on loopback."""

    async def echo(request: bytes, context: object) -> bytes:
        return request

    server = grpc.aio.server(options=server_options())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", {"E": grpc.unary_unary_rpc_method_handler(echo)}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def echoed(address: str, options: Options, message: bytes, *, timeout: float = 20.0) -> bytes:
    """The answer over a channel of its own."""
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        return await call(message, timeout=timeout)
