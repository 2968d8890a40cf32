"""The project's log, written to memory for the time of a test."""

import contextlib
import io
import logging
from collections.abc import Iterator

from dormouse_kit import log


@contextlib.contextmanager
def logged(program: str) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.setup(program, stream=stream)
    try:
        yield stream
    finally:
        root.handlers[:] = before
        log._events.handlers.clear()
        root.setLevel(level)
        logging.captureWarnings(False)
