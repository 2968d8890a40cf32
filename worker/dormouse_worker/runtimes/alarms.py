"""The alarms that one step of a handler sets and cancels: what stands behind `ctx.alarm` (`dormouse_core.alarms` decides). They are part of
the step's outcome: where it fails, nothing was asked for."""

import math
import numbers
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dormouse_core import alarms, asking
from dormouse_core.errors import DormouseError, FailedPrecondition, InvalidArgument, text_of
from dormouse_core.limits import ALARM_AHEAD_DAYS

from dormouse_worker.batches.requests import Decoder

_LATEST = 253_402_300_800  # the end of the year 9999


class StepAlarms:
    """Of one step; see `dormouse_core.handlers.AlarmClock`."""

    def __init__(self, decoder: Decoder, now_us: int, refusal: str = "") -> None:
        """`decoder`: of the function, whose step it is that is asked for. `refusal`: why the step may set none."""
        self._decoder = decoder
        self._now_us = now_us
        self._refusal = refusal
        self._lock = threading.Lock()  # a handler may set them from threads of its own
        self._changes: list[alarms.Change] | None = []

    def set(self, at: object, inputs: Mapping[str, Any], name: object) -> None:
        change = alarms.check(name, self._due_us(at), self._request(inputs), self._now_us)
        if self._refusal:
            raise FailedPrecondition(f"alarm: {self._refusal}")
        self._add(change)

    def cancel(self, name: object) -> None:
        self._add(alarms.Cancel(alarms.check_name(name)))

    def end(self) -> tuple[alarms.Change, ...]:
        """What the step asked for; from now on it asks for nothing more."""
        with self._lock:
            changes, self._changes = self._changes or [], None
        return tuple(changes)

    def _add(self, change: alarms.Change) -> None:
        with self._lock:
            if self._changes is None:
                raise FailedPrecondition("alarm: asked for after the step had ended")
            self._changes.append(change)

    @staticmethod
    def _due_us(at: object) -> int:
        if isinstance(at, datetime):
            if at.utcoffset() is None:
                raise InvalidArgument("alarm: at: a time without a zone found; a datetime with one (`datetime.now(UTC)`) is allowed")
            at = at.timestamp()
        if isinstance(at, bool) or not isinstance(at, numbers.Real):  # NumPy's numbers are such: what a step is given holds them
            raise InvalidArgument(f"alarm: at: {type(at).__name__} found, a datetime with a zone or seconds since 1970 are allowed")
        seconds: Any = at
        # Compared before anything is made of it: no float holds every integer, nor a million times every float.
        if seconds != seconds or seconds in (math.inf, -math.inf):
            raise InvalidArgument(f"alarm: at: {seconds!r} found, a finite number of seconds since 1970 is allowed")
        if seconds > _LATEST:
            raise InvalidArgument(f"alarm: at: a time after the year 9999 found, at most {ALARM_AHEAD_DAYS} days ahead are allowed")
        return round(float(seconds) * 1e6) if seconds > 0 else 0

    def _request(self, inputs: object) -> bytes:
        if not isinstance(inputs, Mapping) or not all(isinstance(name, str) for name in inputs):
            raise InvalidArgument(f"alarm: inputs: {type(inputs).__name__} found, a mapping of names to arrays is allowed")
        try:
            request: bytes = asking.request("", inputs).SerializeToString()
            self._decoder.decode(request)
        except DormouseError as error:
            raise type(error)(f"alarm: {error.message}") from None
        except Exception as error:  # whatever NumPy makes of what a handler gives
            raise InvalidArgument(f"alarm: inputs: {text_of(error)}") from None
        return request
