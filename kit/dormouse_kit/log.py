"""One line for each event, the same in every part:

``2026-11-25T10:00:00.123Z worker  shard acquired function=speech/vad shard=3``

The time in UTC, the part, what happened as a plain phrase, then fields. Values with spaces, quotes or line ends are quoted, so a line is an
event and a caller's text cannot forge one; what is very long is cut in its middle, and what a terminal would act on is written out
(`dormouse_core.plain`), whoever wrote it. Libraries' records go the same way from WARNING on, or from the level that DORMOUSE_LOG_LEVEL
names, with their logger's name in front; of those that a caller can cause, so many a second and no more.

Our own lines do not go through the root logger: a worker's handler may set up `logging` as it likes, and they are written all the same.
"""

import json
import logging
import os
import sys
import time
import traceback
from typing import TextIO

from dormouse_core.plain import plain

LEVEL = "DORMOUSE_LOG_LEVEL"
"""The environment variable with the level from which records of libraries and handlers are written; our own are from INFO on."""
CAUSED = frozenset({"grpc", "asyncio"})
"""Libraries that write for what comes from outside: grpc a traceback for each header value that is no UTF-8."""
FLOOD = 10
"""Their records a second."""
LEVELS = ("debug", "info", "warning", "error", "critical")

LONGEST = 16_384
"""Characters of one value, of a traceback or of a library's text."""


class _Events(logging.Logger):
    """Ours. No settings of others reach it: not the root's, nor `logging.disable`, nor a configuration that disables what exists."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # as in logging
        return bool(self.handlers) and level >= self.level


_events = _Events("dormouse", logging.INFO)


def event(text: str, **fields: object) -> None:
    """Something happened that a person following the log should see."""
    _write(logging.INFO, text, fields)


def warning(text: str, *, raised: BaseException | None = None, **fields: object) -> None:
    """Something went wrong that heals by itself or concerns one item only. `raised`: its traceback goes along."""
    if _events.isEnabledFor(logging.WARNING):
        _events.log(logging.WARNING, "%s", line(text, fields), exc_info=None if raised is None else (type(raised), raised, None))


def _write(level: int, text: str, fields: dict[str, object]) -> None:
    if _events.isEnabledFor(level):
        _events.log(level, "%s", line(text, fields))


def line(text: str, fields: dict[str, object]) -> str:
    """``text key=value …``; fields that are None are left out."""
    return " ".join([_one_line(text), *(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = _cut(str(value))
    if text and all(character.isprintable() and character not in ' "=' for character in text):
        return text
    return _quoted(text)


def _quoted(text: str) -> str:
    return plain(json.dumps(text, ensure_ascii=False))


def _one_line(text: str) -> str:
    text = _cut(text)
    return text if text.isprintable() else plain(" ".join(text.split()))


def _cut(text: str) -> str:
    """The end of a traceback says more than its beginning."""
    left_out = len(text) - LONGEST
    if left_out <= 0:
        return text
    return f"{text[: LONGEST // 4]}... ({left_out} characters are left out) ...{text[-(LONGEST - LONGEST // 4) :]}"


def _trace(error: BaseException) -> str:
    """With its causes; whatever its own methods do, at least where it was raised."""
    trace = BaseException.__dict__["__traceback__"].__get__(error)
    try:
        return "".join(traceback.format_exception(type(error), error, trace))
    except BaseException:
        return "".join(traceback.format_tb(trace))


class _Formatter(logging.Formatter):
    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def format(self, record: logging.LogRecord) -> str:
        seconds, milliseconds = divmod(int(record.created * 1000), 1000)
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        text = _one_line(record.getMessage())
        if record.name != _events.name:
            text = f"{record.levelname.lower()} {record.name}: {text}"
        elif record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()} {text}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" trace={_quoted(_cut(_trace(record.exc_info[1])))}"
        return plain(f"{at}.{milliseconds:03d}Z {self.part}  {text}")


class _Flood(logging.Filter):
    """Of records of libraries that a caller can cause with each call: so many a second, the others by number."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[int, int]] = {}  # by the library: the second, and how many in it

    def filter(self, record: logging.LogRecord) -> bool:
        library = record.name.partition(".")[0]
        if library not in CAUSED:
            return True
        second, count = self._seen.get(library, (0, 0))
        now = int(record.created)
        left_out = count - FLOOD if now != second else 0
        count = 1 if now != second else count + 1
        self._seen[library] = (now, count)
        if left_out > 0:
            record.msg, record.args = f"{record.getMessage()} ({left_out} records before it are left out)", ()
        return count <= FLOOD


def setup(part: str, *, stream: TextIO | None = None, level: str | None = None) -> None:
    """To be called once, by a process's `main`. `stream`: stderr unless told otherwise. `level`: of `LEVELS`; None: the environment's."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(part))
    handler.addFilter(_Flood())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    _events.handlers[:] = [handler]
    wanted = (os.environ.get(LEVEL, "") if level is None else level).lower()
    root.setLevel(wanted.upper() if wanted in LEVELS else logging.WARNING)
    logging.captureWarnings(True)
    if wanted and wanted not in LEVELS:
        warning(f"{LEVEL} is not a level", found=wanted, allowed=", ".join(LEVELS))
