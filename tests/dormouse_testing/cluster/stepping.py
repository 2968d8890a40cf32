"""Callers that never pause, and whether they get on: steps that are sent again under their key, and calls of which none may fail."""

import collections
import threading
import time
from collections.abc import Sequence
from typing import ClassVar, Self

import grpc

from dormouse_testing.cluster.client import eventually
from dormouse_testing.cluster.functions import Dormouse


class Going:
    """Calls one after the other in a thread of its own, until it is left. `wrong`: what must not be, which ends it."""

    pause: ClassVar[float]  # seconds between two

    def __init__(self, name: str) -> None:
        self.name, self.count, self.longest = name, 0, 0.0
        self.errors: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set() and not self.wrong:
            began = time.monotonic()
            self._one()
            self.longest = max(self.longest, time.monotonic() - began)
            self._end.wait(self.pause)

    def _one(self) -> None:
        raise NotImplementedError


class Stepping(Going):
    """Steps of one session of the function `held`, each under its key until it is answered, with the total that must be there."""

    pause = 0.02

    def __init__(self, dormouse: Dormouse, session: str) -> None:
        super().__init__(session)
        self._dormouse = dormouse

    def _one(self) -> None:
        key = f"{int(time.time() * 1e6):016d}-{self.name}-{self.count}"
        while (total := self._try(key)) is None:
            time.sleep(0.1)
        self.count += 1
        if total != self.count:
            self.wrong.append(f"{self.name}: {total} found after {self.count} steps")

    def _try(self, key: str) -> int | None:
        try:
            return self._dormouse.call("held", 1, session=self.name, key=key, timeout=30)
        except grpc.RpcError as error:
            self.errors[f"{error.code().name}: {error.details()}"[:160]] += 1
            return None


class Calling(Going):
    """Calls of one function, some 5 a second, none of which is sent again. `session`: steps, each of which must count once."""

    pause = 0.2

    def __init__(self, dormouse: Dormouse, name: str, session: str = "") -> None:
        super().__init__(name)
        self._dormouse, self._session = dormouse, session

    def _one(self) -> None:
        try:
            found = self._dormouse.call(self.name, 1, session=self._session, timeout=60)
        except grpc.RpcError as error:
            self.wrong.append(f"{self.name} after {self.count}: {error.code().name}: {error.details()}")
            return
        self.count += 1
        if found != (self.count if self._session else 1):
            self.wrong.append(f"{self.name}: {found} found after {self.count}")


def go_on(what: str, callers: Sequence[Going], more: int = 5) -> None:
    """Each of them has had more answers since, and none is wrong."""
    counts = [each.count for each in callers]
    eventually(
        f"every caller goes on {what}",
        lambda: any(each.wrong for each in callers) or all(each.count > c + more for each, c in zip(callers, counts, strict=True)),
        90,
    )
    assert [wrong for each in callers for wrong in each.wrong] == []
    print(f"{what}:", {each.name: (each.count, round(each.longest, 1), dict(each.errors)) for each in callers})
    for each in callers:
        each.errors.clear()
        each.longest = 0.0
