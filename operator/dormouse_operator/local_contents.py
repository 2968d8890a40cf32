"""On one machine the operator reads what a worker will: a file:// model's content is known when its function is applied."""

import asyncio

from dormouse_core.errors import Unavailable
from dormouse_core.seams import Clock
from dormouse_core.spec import FunctionSpec
from dormouse_kit import contents

from dormouse_operator.function_entries import Content

TRIES = 10
PAUSE = 0.2
"""Seconds between two tries to read what is being written."""


def reader(root: str, clock: Clock) -> Content:
    """`root`: the folder under which file:// lies. The content raises Unavailable for files that somebody goes on writing: taken for
    what is not known, they would be "unchanged"."""

    async def content(spec: FunctionSpec) -> str:
        path = contents.place(spec, root)
        if path is None:
            return ""
        for tried in range(TRIES):
            if tried:
                await clock.sleep(PAUSE)
            try:
                return await asyncio.to_thread(contents.digest, path, contents.beside(spec))
            except contents.Changed:
                continue
            except OSError:
                return ""  # the worker says better why it cannot be read
        raise Unavailable(f"spec.model.uri: {path.name} is being written; nothing was applied. Apply again when it is done")

    return content
