"""A TCP proxy that misbehaves on request: what a network does, without touching the machine's."""

import asyncio
import contextlib
from types import TracebackType


class Proxy:
    """Forwards loopback connections to `target` ("host:port"). `endpoint` is where to connect."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._flows = {"request": asyncio.Event(), "reply": asyncio.Event()}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.endpoint = ""
        self.accepted = 0
        self.swallow = 0  # so many connections, the next ones, are never passed on
        self.passed = {"request": 0, "reply": 0}  # bytes
        self.open()

    def open(self) -> None:
        """Everything flows, also what was held."""
        for flow in self._flows.values():
            flow.set()

    def hold(self, *directions: str) -> None:
        """From now on "request" and "reply" bytes are taken in and not passed on; connections stay open (a black hole sends no reset)."""
        for direction in directions or tuple(self._flows):
            self._flows[direction].clear()

    def cut(self) -> None:
        """Resets every connection; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        await _turns()  # asyncio loses a socket that was accepted in the turn in which its server is closed
        self._server.close()
        self.cut()
        self.open()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await _turns()  # a transport that was aborted closes its socket in a turn of the loop

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        if self.swallow:
            self.swallow -= 1
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
            self._writers.discard(writer)
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(upstream)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump("request", reader, upstream))
                group.create_task(self._pump("reply", upstream_reader, writer))
        finally:
            for end in (writer, upstream):
                self._writers.discard(end)
                end.transport.abort()

    async def _pump(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flows[direction].wait()
                writer.write(data)
                self.passed[direction] += len(data)
                await writer.drain()
            writer.write_eof()


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
