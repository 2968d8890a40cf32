"""hf://owner/repository[@revision]/path: a file or a folder of a repository at Hugging Face, or at the mirror that `HF_ENDPOINT` names.

Two requests of its API are all that is needed; `HF_TOKEN` opens what is private, and goes to this server alone. A revision that is a commit
is the only one that stays the same: two workers of a function may be started weeks apart.
"""

import json
import os
import re
from collections.abc import Iterator
from urllib.parse import quote, urlsplit

from dormouse_core.errors import text_of
from dormouse_core.modeluris import ModelUri

from dormouse_worker.fetching import web
from dormouse_worker.models.refusals import ModelInvalid, ModelUnavailable

ENDPOINT = "https://huggingface.co"
PAGE = 64 << 20
"""Bytes of one page of a listing."""
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


class Hub:
    def __init__(self, model: ModelUri) -> None:
        self._model = model
        self._endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT).rstrip("/")
        if not self._endpoint.startswith("https://"):
            raise ModelInvalid(f"HF_ENDPOINT: {self._endpoint!r} found, https://host is allowed")
        self._token = os.environ.get("HF_TOKEN", "")
        self._root = model.path.strip("/") if model.folder else model.path.rpartition("/")[0]
        self.name = model.text

    def files(self) -> list[str]:
        if not self._model.folder:
            return [self._model.path.rpartition("/")[2]]
        where = f"/{quote(self._root)}" if self._root else ""
        url = f"{self._endpoint}/api/models/{self._model.place}/tree/{quote(self._model.revision, safe='')}{where}?recursive=true"
        found: list[str] = []
        while url:
            with web.opened(url, self.name, self._token) as response:
                found += self._page(response.read(PAGE + 1))
                more = _NEXT.search(response.headers.get("Link", ""))
            url = more[1] if more else ""
            if url and _server(url) != _server(self._endpoint):
                raise ModelUnavailable(
                    f"spec.model.uri: {self.name}: the next part of its listing is at another server, {url[:200]!r}; "
                    "HF_TOKEN is not sent there"
                )
        return [path.removeprefix(f"{self._root}/") if self._root else path for path in found]

    def _page(self, text: bytes) -> list[str]:
        """Paths of files."""
        try:
            if len(text) > PAGE:
                raise ValueError(f"more than {PAGE} bytes")
            return [str(item["path"]) for item in json.loads(text) if item["type"] == "file"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ModelUnavailable(f"spec.model.uri: {self.name}: its listing cannot be read: {text_of(error)}") from error

    def read(self, file: str) -> Iterator[bytes]:
        path = f"{self._root}/{file}" if self._root else file
        url = f"{self._endpoint}/{self._model.place}/resolve/{quote(self._model.revision, safe='')}/{quote(path)}"
        return web.read(url, self.name, self._token)


def _server(url: str) -> tuple[str, str]:
    """Scheme and authority."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()
