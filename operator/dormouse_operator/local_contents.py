"""On one machine the operator reads what a worker will: a file:// model's content is known when its function is applied."""

import asyncio

from dormouse_core.spec import FunctionSpec
from dormouse_kit import contents

from dormouse_operator.registering import Content


def reader(root: str) -> Content:
    """`root`: the folder under which file:// lies."""

    async def content(spec: FunctionSpec) -> str:
        path = contents.place(spec, root)
        if path is None:
            return ""
        try:
            return await asyncio.to_thread(contents.digest, path, contents.beside(spec))
        except OSError:
            return ""  # the worker says better why it cannot be read

    return content
