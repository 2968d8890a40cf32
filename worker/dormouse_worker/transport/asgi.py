"""The transport: ASGI without a coroutine per call.

What comes in is pyvoy's ASGI events; what goes on is whole calls, in the order in which they arrived, as many as wait. The seam is two
methods: `take(n)` hands over calls, `reply(batch)` takes their encoded answers. A faster transport (an Envoy module of our own that gathers
calls in Envoy's thread) can replace this module without the rest noticing.

A coroutine and a Task per call would cost more than parsing and inference together, so the hot path returns a placeholder instead of a
coroutine and goes on in callbacks. Everything else (health, metadata, the control stream) is an ordinary coroutine.

pyvoy has no event for a caller that went away: after a whole body `receive()` answers at once, with `http.disconnect` if the caller is
gone. So calls that wait are asked each SWEEP seconds.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from dormouse_core import headernames
from dormouse_core.errors import Code, DeadlineExceeded, Decoupled, DormouseError, Internal, Unavailable
from dormouse_core.usages import Usage
from dormouse_kit import log

from dormouse_worker.process import bootstrap
from dormouse_worker.transport import frames

_AGAIN, _BY, _DECOUPLED = (name.encode() for name in (headernames.AGAIN, headernames.BY, headernames.DECOUPLED))

SWEEP = 0.05
Receive = Callable[[], "asyncio.Future[dict[str, Any]]"]
Send = Callable[[dict[str, Any]], Any]
Scope = dict[str, Any]
Metadata = list[tuple[bytes, bytes]] | None

_OK_HEADERS = [(b"content-type", bootstrap.CONTENT_TYPE.encode())]
_OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": _OK_HEADERS, "trailers": False}
_BODY = "http.response.body"
_GRPC = (b"content-type", b"application/grpc")


class Placeholder:
    """Stands where pyvoy expects a task."""

    def add_done_callback(self, callback: Any, *, context: Any = None) -> None: ...

    def remove_done_callback(self, callback: Any) -> int:
        return 0

    def __await__(self) -> Iterator[None]:
        return iter(())

    def result(self) -> None: ...
    def exception(self) -> None: ...
    def cancel(self, msg: object = None) -> bool:
        return False

    def done(self) -> bool:
        return True

    def close(self) -> None: ...


PLACEHOLDER = Placeholder()


def task_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
    return coroutine if coroutine is PLACEHOLDER else asyncio.Task(coroutine, loop=loop, **options)


class Call:
    """One ModelInfer, from its first byte to its answer."""

    __slots__ = (
        "_chunks",
        "_receive",
        "_send",
        "_size",
        "body",
        "deadline",
        "gone",
        "headers",
        "kept",
        "left",
        "level",
        "on_closed",
        "on_gone",
        "sent_bytes",
        "since",
        "taken",
        "transport",
        "used",
    )

    streams = False
    """It came on ModelStreamInfer: it may be answered in parts."""
    clears = False
    """It is no call, but asks to have the worker cleared for one."""

    def __init__(self, transport: "Transport", headers: list[tuple[bytes, bytes]], receive: Receive, send: Send) -> None:
        self.transport = transport
        self.headers = headers
        self._receive = receive
        self._send = send
        self._chunks: list[bytes] | None = None
        self._size = 0
        self.body = b""
        self.since = 0.0
        self.deadline = float("inf")
        """The caller's, on the monotonic clock; set by the service."""
        self.gone = False
        """Answered, cancelled or expired: whatever was to be done for this call need not be done."""
        self.left = False
        """Its caller went away, or the caller's deadline passed, before it was answered: it may run all the same."""
        self.sent_bytes = 0
        """Of the parts that went before its answer."""
        self.taken = False
        """`Transport.take` has handed it over."""
        self.level: int | None = None
        """How many steps wait for it, once it has a place in the worker."""
        self.kept = False
        """The answer is one that an earlier copy of this call was given: not counted again."""
        self.used: Usage | None = None
        """What a call without a session has used, once it ran."""
        self.on_gone: Callable[[], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        """Called once when nobody waits for it any more, also where it was answered."""

    def received(self, future: "asyncio.Future[dict[str, Any]]") -> None:
        try:
            event = future.result()
            if event["type"] != "http.request":
                self.gone = True
                return
            chunk = event["body"]
            if event["more_body"] or self._chunks is not None:
                if self._chunks is None:
                    self._chunks = []
                self._chunks.append(chunk)
                self._size += len(chunk)
                # A body over the limit is handed on as far as it came: its prefix says how large it was to be, and it is refused for that.
                if event["more_body"] and self._size <= self.transport.limit + frames.PREFIX:
                    self._receive().add_done_callback(self.received)
                    return
                chunk = b"".join(self._chunks)
                self._chunks = None
            self.body = chunk
            self.transport.arrived(self)
        except Exception as error:
            self.gone = True
            self.refuse(Internal(f"the worker could not read the call: {error!r}"))

    def poll(self) -> None:
        """Asks whether the caller is still there."""
        self._receive().add_done_callback(self._polled)

    def _polled(self, future: "asyncio.Future[dict[str, Any]]") -> None:
        if future.cancelled() or future.exception() is not None or future.result()["type"] == "http.disconnect":
            self.transport.leave(self)

    def answer(self, framed: bytes, metadata: Metadata) -> None:
        self._put(_OK if metadata is None else {**_OK, "headers": [*metadata, *_OK_HEADERS]}, {"type": _BODY, "body": framed})

    def refuse(self, error: DormouseError) -> None:
        self._put({"type": "http.response.start", "status": 200, "headers": error_headers(error)}, {"type": _BODY})

    def _put(self, *events: dict[str, Any]) -> None:
        try:
            for event in events:
                self._send(event)
        except Exception:  # the caller is gone: pyvoy raises its own ClientDisconnectedError, which it does not export
            self.gone = True


class Ask(Call):
    """One `clearing.CLEAR`: waits as calls do, and goes when its caller goes. Its answer is always a refusal."""

    __slots__ = ()

    clears = True

    def refuse(self, error: DormouseError) -> None:
        self._put({"type": "http.response.start", "status": 200, "headers": error_headers(error, _GRPC[1])}, {"type": _BODY})


def error_headers(error: DormouseError, content_type: bytes = bootstrap.CONTENT_TYPE.encode()) -> list[tuple[bytes, bytes]]:
    """A trailers-only answer. `dormouse-again` comes before any other header but the content type (rule *again*).

    `dormouse-by` tells the relay that this is the worker's word: its gRPC library gives a broken connection the same codes.
    """
    headers = [(b"content-type", content_type)]
    if isinstance(error, Unavailable) and error.again is not None:
        headers.append((_AGAIN, error.again.value.encode()))
    elif isinstance(error, Decoupled):
        headers.append((_DECOUPLED, b"1"))
    headers += [
        (_BY, b"worker"),
        (b"grpc-status", b"%d" % int(error.code)),
        (b"grpc-message", frames.status_message(error.message)),
    ]
    return headers


KINDS = {bootstrap.INFER: Call}


class Transport:
    """The ASGI application. `ready` is called once a turn of the loop in which calls arrived; `other` serves every path that is none of
    `kinds`.
    """

    _asgi_single_callable = True  # what pyvoy asks before it calls the application with (scope, receive, send)

    def __init__(
        self, limit: int, other: Callable[["Exchange"], Awaitable[None]], kinds: Mapping[str, type[Call]] = MappingProxyType(KINDS)
    ) -> None:
        self.limit = limit
        self._kinds = kinds
        self.ready: Callable[[], None] | None = None
        self.ended: Callable[[Call, DormouseError | None], None] | None = None
        """Called once for each call that arrived, when it is over."""
        self._other = other
        self._waiting: list[Call] = []
        self._open: dict[Call, None] = {}
        self._scheduled = False
        self._sweeping = False

    # ------------------------------------------------------------------------------------------------------- from pyvoy
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        kind = self._kinds.get(scope["path"]) if scope["type"] == "http" else None
        if kind is not None:
            call = kind(self, scope["headers"], receive, send)
            receive().add_done_callback(call.received)
            return PLACEHOLDER
        return self._plain(scope, receive, send)

    async def _plain(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']}: not served")
        exchange = Exchange(scope, receive, send, self.limit)
        try:
            await self._other(exchange)
        except DormouseError as error:
            await exchange.fail(error)
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # uncaught, it would look like success to the caller
            await exchange.fail(Internal(f"the worker failed: {error!r}"))

    def arrived(self, call: Call) -> None:
        call.since = time.monotonic()
        self._waiting.append(call)
        self._open[call] = None
        if not self._scheduled:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._turn)
            if not self._sweeping:
                self._sweeping = True
                loop.call_later(SWEEP, self._sweep)

    def _turn(self) -> None:
        self._scheduled = False
        if self.ready is not None:
            self.ready()

    # ---------------------------------------------------------------------------------------------------------- the seam
    def take(self, limit: int) -> list[Call]:
        """Up to `limit` calls that arrived and were not taken yet. One whose caller went away, or whose deadline passed, meanwhile is over,
        and passed over."""
        first, self._waiting = self._waiting[:limit], self._waiting[limit:]
        taken = [call for call in first if not call.gone]
        for call in taken:
            call.taken = True
        if self._waiting and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)
        return taken

    def reply(self, batch: Iterable[tuple[Call, bytes, Metadata]]) -> None:
        """Answers calls with OK: (call, one framed message, further metadata). One that is gone already is passed over."""
        for call, framed, metadata in batch:
            if call.gone:
                continue
            self._close(call, None)
            call.answer(framed, metadata)

    def refuse(self, call: Call, error: DormouseError) -> None:
        """Answers one call with an error, at once."""
        if not call.gone:
            self._close(call, error)
            call.refuse(error)

    def leave(self, call: Call, error: DormouseError | None = None) -> None:
        """Nobody waits for this call any more: its caller went away, or its deadline passed (then with the `error` to answer)."""
        if call.gone:
            return
        call.left = True
        on_gone = call.on_gone
        if error is not None:
            self.refuse(call, error)
        else:
            self._close(call, DormouseError("the caller went away", Code.CANCELLED))
        if on_gone is not None:
            on_gone()

    def _close(self, call: Call, error: DormouseError | None) -> None:
        call.gone = True
        closed = call.on_closed
        call.on_gone = call.on_closed = None  # they lead back to the call: a cycle for each would keep the garbage collector busy
        self._open.pop(call, None)
        if closed is not None:
            closed()
        if self.ended is not None:
            self.ended(call, error)

    @property
    def open(self) -> int:
        """Calls that arrived whole and have no answer yet."""
        return len(self._open)

    def _sweep(self) -> None:
        now = time.monotonic()
        wrong: list[tuple[Call, Exception]] = []
        for call in list(self._open):
            try:
                if call.deadline <= now:
                    self.leave(call, DeadlineExceeded("the caller's deadline passed"))
                elif now - call.since >= SWEEP:
                    call.poll()
            except Exception as error:  # the trouble of one call: the deadlines of the others pass all the same
                wrong.append((call, error))
        for call, raised in wrong:
            log.warning("the deadline of a call could not be checked", raised=raised)
            call.since = float("inf")  # not again: twenty times a second it would say the same
            if call.deadline <= now:
                call.deadline = float("inf")
        self._sweeping = bool(self._open)
        if self._sweeping:
            asyncio.get_running_loop().call_later(SWEEP, self._sweep)


class Exchange:
    """One call off the hot path, as a coroutine sees it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.method: str = scope["method"]
        self.headers = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._limit = limit
        self._started = False

    async def chunk(self) -> tuple[bytes, bool]:
        """(bytes, more to come). ConnectionError: the caller is gone."""
        # Whoever waits here may be cancelled, as at the end of a drain. pyvoy still answers when the call ends, and logs a traceback where
        # its future is cancelled by then.
        event = await asyncio.shield(self._receive())
        if event["type"] != "http.request":
            raise ConnectionResetError("the caller is gone")
        return event["body"], event["more_body"]

    async def message(self) -> bytes:
        """The one message of a unary call."""
        body = b""
        more = True
        while more:
            chunk, more = await self.chunk()
            body += chunk
            if len(body) > self._limit + frames.PREFIX:
                raise frames.too_large(len(body), self._limit)
        return frames.unframe(body, self.headers, self._limit)

    async def begin(self) -> None:
        """Sends the headers of a gRPC answer."""
        self._started = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [_GRPC], "trailers": True})

    async def write(self, message: bytes) -> None:
        """Sends one message of a stream."""
        await self._send({"type": _BODY, "body": frames.frame(message), "more_body": True})

    async def end(self) -> None:
        await self._send({"type": _BODY, "body": b"", "more_body": False})
        await self._send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False})

    async def answer(self, message: bytes) -> None:
        """A unary answer, whole."""
        await self.begin()
        await self._send({"type": _BODY, "body": frames.frame(message)})
        await self._send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")], "more_trailers": False})

    async def text(self, status: int, body: bytes, content_type: bytes = b"text/plain; charset=utf-8") -> None:
        """A plain HTTP answer."""
        self._started = True
        await self._send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        await self._send({"type": _BODY, "body": body})

    async def fail(self, error: DormouseError) -> None:
        """Ends with an error, whatever was sent before."""
        if not self._started:
            self._started = True
            headers = error_headers(error, _GRPC[1])
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": _BODY})
            return
        await self._send({"type": _BODY, "body": b"", "more_body": False})
        headers = error_headers(error)[1:]
        await self._send({"type": "http.response.trailers", "headers": headers, "more_trailers": False})
