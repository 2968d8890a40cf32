"""One line for each event, the same in every part:

``2026-11-25T10:00:00.123Z worker  shard acquired function=speech/vad shard=3``

The time in UTC, the part, what happened as a plain phrase, then fields. Values with spaces, quotes or line ends are quoted, so a line is an
event and a caller's text cannot forge one. Libraries' records go the same way from WARNING on, or from the level that DORMOUSE_LOG_LEVEL
names, with their logger's name in front.
"""

import json
import logging
import os
import sys
import time
import traceback
from typing import TextIO

LEVEL = "DORMOUSE_LOG_LEVEL"
"""The environment variable with the level from which records of libraries and handlers are written; our own are from INFO on."""
LEVELS = ("debug", "info", "warning", "error", "critical")

_events = logging.getLogger("dormouse")


def event(text: str, **fields: object) -> None:
    """Something happened that a person following the log should see."""
    _write(logging.INFO, text, fields)


def warning(text: str, *, raised: BaseException | None = None, **fields: object) -> None:
    """Something went wrong that heals by itself or concerns one item only. `raised`: its traceback goes along."""
    if _events.isEnabledFor(logging.WARNING):
        _events.warning("%s", line(text, fields), exc_info=raised)


def _write(level: int, text: str, fields: dict[str, object]) -> None:
    if _events.isEnabledFor(level):
        _events.log(level, "%s", line(text, fields))


def line(text: str, fields: dict[str, object]) -> str:
    """``text key=value …``; fields that are None are left out."""
    return " ".join([_one_line(text), *(f"{name}={_value(value)}" for name, value in fields.items() if value is not None)])


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and all(character.isprintable() and character not in ' "=' for character in text):
        return text
    return json.dumps(text, ensure_ascii=False)


def _one_line(text: str) -> str:
    return " ".join(text.split()) if "\n" in text or "\r" in text else text


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
        if record.exc_info and record.exc_info[0]:
            text += f" trace={json.dumps(''.join(traceback.format_exception(*record.exc_info)), ensure_ascii=False)}"
        return f"{at}.{milliseconds:03d}Z {self.part}  {text}"


def setup(part: str, *, stream: TextIO | None = None, level: str | None = None) -> None:
    """To be called once, by a process's `main`. `stream`: stderr unless told otherwise. `level`: of `LEVELS`; None: the environment's."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(part))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    wanted = (os.environ.get(LEVEL, "") if level is None else level).lower()
    root.setLevel(wanted.upper() if wanted in LEVELS else logging.WARNING)
    _events.setLevel(logging.INFO)
    logging.captureWarnings(True)
    if wanted and wanted not in LEVELS:
        warning(f"{LEVEL} is not a level", found=wanted, allowed=", ".join(LEVELS))
