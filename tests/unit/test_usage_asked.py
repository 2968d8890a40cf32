"""How many may ask the leader for usage at once."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from dormouse_core.errors import Unavailable
from dormouse_operator.services import USAGES, ControlService
from dormouse_proto import control_pb2


class Aborted(Exception):
    pass


class Context:
    def __init__(self) -> None:
        self.code: grpc.StatusCode | None = None

    async def abort(self, code: grpc.StatusCode, message: str) -> None:
        self.code = code
        raise Aborted(message)


class Usage:
    down = False

    async def rows(self, request: object, now_us: int) -> AsyncIterator[control_pb2.UsageResponse]:
        yield control_pb2.UsageResponse()
        if self.down:
            raise Unavailable("the store does not answer")
        yield control_pb2.UsageResponse()


async def test_eight_at_once_and_a_place_is_free_again_however_one_ended() -> None:
    usage = Usage()
    leader: Any = SimpleNamespace(usage=usage, timekeeper=SimpleNamespace(skew=SimpleNamespace(best_us=lambda: 1)))
    service, context = ControlService(leader), Context()

    def ask() -> Any:
        return service.Usage(control_pb2.UsageRequest(), context)

    open_ = [ask() for _ in range(USAGES)]
    for each in open_:
        await anext(each)
    with pytest.raises(Aborted, match="no more at once: ask again later"):
        await anext(ask())
    assert context.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await open_[0].aclose()  # its caller went away
    open_[0] = ask()
    await anext(open_[0])
    usage.down = True
    with pytest.raises(Aborted, match="does not answer"):
        await anext(open_[1])
    usage.down = False
    open_[1] = ask()
    await anext(open_[1])
    assert [len([response async for response in each]) for each in open_] == [1] * USAGES
    assert len([response async for response in ask()]) == 2
